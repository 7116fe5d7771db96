"""Small vectorised environments whose every number is known, and strategies on them."""

import gymnasium as gym
import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin
from gymnasium.vector import VectorEnv
from silent import Silent
from torch import nn

from avl_plugins.metrics import return_metrics
from avl_plugins.rl import DQN, ActorCritic, TaskRecognition, TaskRecognitionPlugin, rl_benchmark


class Counting(VectorEnv):
    """Environment i observes [i, steps of the episode, action before], and rewards with the action times `scale`.

    Its episodes take `length + i` steps; they end by truncation where `truncates`, else by termination. The step after
    an episode's end begins the next one, without reward.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs, *, length=3, scale=1.0, truncates=False, actions=2):
        self.num_envs = num_envs
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.single_action_space = gym.spaces.Discrete(actions)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self.lengths = length + np.arange(num_envs)
        self.scale, self.truncates = scale, truncates

    def reset(self, *, seed=None, options=None):
        self.at = np.zeros(self.num_envs, dtype=int)
        self.ended = np.zeros(self.num_envs, dtype=bool)
        self.action = np.zeros(self.num_envs)
        return self.seen(), {}

    def step(self, actions):
        begins = self.ended
        self.at = np.where(begins, 0, self.at + 1)
        self.action = np.where(begins, 0, actions)
        rewards = np.where(begins, 0.0, actions * self.scale)
        self.ended = ~begins & (self.at >= self.lengths)
        no = np.zeros(self.num_envs, dtype=bool)
        terminated, truncated = (no, self.ended) if self.truncates else (self.ended, no)
        return self.seen(), rewards, terminated.copy(), truncated.copy(), {}

    def seen(self):
        return np.stack([np.arange(self.num_envs), self.at, self.action], axis=1).astype(np.float32)


class Failing(Counting):
    """Fails at its n-th step: by an exception, or by a reward or observation that is not a number."""

    def __init__(self, num_envs, *, at=4, how="raise", **kwargs):
        super().__init__(num_envs, **kwargs)
        self.left, self.how = at, how

    def step(self, actions):
        self.left -= 1
        found, rewards, *others = super().step(actions)
        if self.left == 0:
            if self.how == "raise":
                raise OSError("the emulator is gone")
            (rewards if self.how == "reward" else found)[0] = np.nan
        return found, rewards, *others


class Bandit(Counting):
    """Episodes of one step; rewards the action `best`."""

    def __init__(self, num_envs, *, best=0):
        super().__init__(num_envs, length=1)
        self.lengths = np.ones(num_envs, dtype=int)
        self.best = best

    def step(self, actions):
        return super().step((np.asarray(actions) == self.best).astype(float))


def make(kind, **kwargs):
    return lambda num_envs: kind(num_envs, **kwargs)


def two_tasks(steps=48, schedule=None, **kwargs):
    """Tasks "a" and "b" that count."""
    tasks = {"a": make(Counting, **kwargs), "b": make(Counting, length=4, **kwargs)}
    return rl_benchmark(tasks, steps=steps, schedule=schedule)


def mlp(outputs, inputs=3):
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def quiet(*more):
    """An evaluator that prints nothing."""
    return EvaluationPlugin(return_metrics(speed=False), *more, loggers=[Silent()])


def actor_critic(model=None, **kwargs):
    model = mlp(3) if model is None else model
    given = {"num_envs": 4, "rollout": 3, "epoch_steps": 24, "eval_episodes": 3, "seed": 1, "evaluator": quiet()}
    return ActorCritic(model=model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-2), **(given | kwargs))


def dqn(model=None, **kwargs):
    model = mlp(2) if model is None else model
    given = {"num_envs": 2, "train_every": 4, "learning_starts": 8, "buffer_size": 40, "batch_size": 6}
    given |= {"target_every": 3, "epsilon_wait": 8, "epsilon_steps": 20, "epoch_steps": 24, "eval_episodes": 3}
    given |= {"seed": 1, "evaluator": quiet(), "fisher_states": 12}
    return DQN(model=model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-2), **(given | kwargs))


class Recorder:
    """Keeps every mini-batch with its outputs and loss."""

    def __init__(self):
        self.batches = []

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def before_backward(self, strategy, **kwargs):
        self.batches.append(([c.clone() for c in strategy.mbatch], strategy.mb_output.detach().clone(), strategy.loss))


class Requests:
    """Requests the labels of a dict by the agent steps after which it does."""

    def __init__(self, labels):
        self.labels = labels

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def observed(self, strategy, observations):
        if strategy.is_training and strategy.steps in self.labels:
            strategy.request_label(self.labels[strategy.steps])


def played(strategy, benchmark):
    """The episodes of an evaluation."""

    class Keep:
        def after_eval_exp(self, strategy, **kwargs):
            self.episodes = list(strategy.episodes)

    keep = Keep()
    strategy.plugins.insert(0, keep)
    strategy.eval(benchmark.test_stream)
    strategy.plugins.remove(keep)
    return keep.episodes


def recognition():
    """A plugin that tells the tasks of `two_tasks` apart by the second number, which goes up to 3 in "a"."""
    return TaskRecognitionPlugin(
        TaskRecognition(shape=(8,), levels=2, window=4),
        every=1,
        least_held=4,
        levels=lambda seen: (seen[:, 1:2] > 3).long().expand(-1, 8),
    )
