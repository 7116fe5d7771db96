"""Speed of reinforcement learning beside that of the bare environment and of stable-baselines3's actor-critic.

Pong, 16 environments, the column of Rusu et al. 2016 (12 maps of 8x8 by 4, 4x4 by 2 and 3x4, 256 units), RMSProp.
ALE steps the environments on as many threads as torch has, each bound to a core. A loop is environments, inference and
learning, without what comes before and after; loops take turns after every `STEPS` agent steps, and act in the same
environments, which are slow to make. Both learn with images in torch's channels-last format, as gradients of so few
maps then cost half, and both act with one thread of torch, which leaves the cores to the environments.

Where the time goes with rollouts of 20, in a trial on two cores that is not recorded here: of 0.33 ms for an agent step
the environment takes 0.15, acting 0.07, learning 0.08. While the agent acts a core is idle. To have one half of the
environments step then was tried and is no faster, as who waits for ALE's threads keeps a core busy.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from benchmarks.data.arrays import Arrays
from benchmarks.perf.timing import Line, compare_rates
from benchmarks.training.clock import timed

GAME = "pong"
ENVS = 16
STEPS = 960
"""Agent steps of a turn, all environments together: whole rollouts of each length."""
ROLLOUTS = (5, 20)
LR, DECAY, EPS, NORM, ENTROPY = 5e-4, 0.99, 1e-5, 40.0, 0.01
WHOLE_LOOP = 0.45
"""Least speed of the whole loop, relative to the bare environment's."""


def absent() -> list[str]:
    """Say which parts are left out, because a package is not installed."""
    if not (find_spec("gymnasium") and find_spec("ale_py")):
        return ['gymnasium and ale-py are not installed (pip install "avl-plugins[rl]"): no reinforcement learning']
    if not find_spec("stable_baselines3"):
        return ['stable-baselines3 is not installed (pip install "avl-plugins[compare]"): no comparison with its A2C']
    return []


def reinforcement(arrays: Arrays, rounds: int) -> list[Line]:
    """Agent steps a second: environment alone, our loop, that of stable-baselines3."""
    if not (find_spec("gymnasium") and find_spec("ale_py")):
        return []
    from avl_plugins.rl import AtariEnv

    threads = torch.get_num_threads()
    env = AtariEnv(game=GAME, threads=threads, first_core=first_core(threads))(ENVS)
    what = f"agent steps a second, {GAME}"
    lines: list[Line] = []
    for rollout in ROLLOUTS:
        others = {"bare": bare(env)}
        if find_spec("stable_baselines3"):
            others["theirs"] = theirs(env, rollout)
        rate = {name: STEPS / seconds for name, seconds in in_turn(env, rollout, 3 * rounds, others).items()}
        text = f"{what}, ActorCritic, rollout {rollout}"
        lines.append(Line(f"{what}, environment alone, beside rollout {rollout}", rate["bare"]))
        lines.append(compare_rates(text, rate["ours"], rate["bare"], "environment alone", WHOLE_LOOP))
        if "theirs" in rate:
            lines.append(compare_rates(text, rate["ours"], rate["theirs"], "stable-baselines3's A2C", 1.0))
    env.close()
    return lines


def first_core(threads: int) -> int | None:
    """Return the first of so many cores in a row that this process may use; None if there are none."""
    from avl_plugins.rl.atari import usable_cores

    cores = usable_cores()
    return next((core for core in sorted(cores) if cores.issuperset(range(core, core + threads))), None)


def column() -> nn.Sequential:
    """Return the paper's column without its head: (B, 4, 84, 84) -> (B, 256)."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(4, 12, 8, stride=4), nn.ReLU()),
        *(nn.Conv2d(12, 12, 4, stride=2), nn.ReLU()),
        *(nn.Conv2d(12, 12, (3, 4)), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(12 * 7 * 6, 256), nn.ReLU()),
    )


def bare(env: Any) -> Callable[[], float]:
    """Seconds of random play."""
    actions = np.random.default_rng(0).integers(env.single_action_space.n, size=(STEPS // ENVS, ENVS))
    return lambda: timed(lambda: [env.step(row) for row in actions])


def in_turn(env: Any, rollout: int, turns: int, others: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Train an agent of ours and let others take turns with it; median seconds of a turn, ours as "ours"."""
    from gymnasium.vector import VectorWrapper

    from avl_plugins.metrics import return_metrics
    from avl_plugins.rl import ActorCritic, AtariEnv, rl_benchmark

    class Open(VectorWrapper):
        def close(self, **kwargs: Any) -> None:
            """They are closed elsewhere."""

    def make_env(number: int) -> Any:
        """Return the environments, or one like them where a benchmark is made."""
        return Open(env) if number == ENVS else AtariEnv(game=GAME, threads=1)(number)

    first = rollout * ENVS
    visit = rl_benchmark({GAME: make_env}, steps=first + turns * STEPS).train_stream[0]
    model = column().append(nn.Linear(256, visit.actions + 1))
    plugin = Turns(STEPS // first, others)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No loggers specified")
        evaluator = EvaluationPlugin(return_metrics(), loggers=[])
    strategy = ActorCritic(
        model=model,
        optimizer=torch.optim.RMSprop(model.parameters(), lr=LR, alpha=DECAY, eps=EPS),
        num_envs=ENVS,
        rollout=rollout,
        entropy_weight=ENTROPY,
        max_grad_norm=NORM,
        channels_last=True,
        acting_threads=1,
        seed=0,
        plugins=[plugin],
        evaluator=evaluator,
    )
    strategy.train(visit)
    return {name: statistics.median(seconds) for name, seconds in plugin.seconds.items()}


class Turns(SupervisedPlugin):
    """Measures turns of so many updates, the first update left out; after each, the others have theirs."""

    def __init__(self, updates: int, others: Mapping[str, Callable[[], float]]) -> None:
        super().__init__()
        self.updates, self.others = updates, others
        self.done, self.started = -1, 0.0
        self.seconds: dict[str, list[float]] = {name: [] for name in ("ours", *others)}

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        self.done += 1
        if self.done and self.done % self.updates == 0:
            self.seconds["ours"].append(perf_counter() - self.started)
            for name, run in self.others.items():
                self.seconds[name].append(run())
        if self.done % self.updates == 0:
            self.started = perf_counter()


def theirs(env: Any, rollout: int) -> Callable[[], float]:
    """Seconds of stable-baselines3's loop, the same network and settings."""
    from gymnasium import spaces
    from stable_baselines3 import A2C
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import VecEnv

    class Column(BaseFeaturesExtractor):
        def __init__(self, observation_space: spaces.Space[Any]) -> None:
            super().__init__(observation_space, 256)
            self.layers = column()

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            if self.training:
                observations = observations.contiguous(memory_format=torch.channels_last)
            return self.layers(observations)

    class Adapter(VecEnv):
        """Gives the environments as they are; an episode's last observation passes for the next one's first."""

        def __init__(self) -> None:
            super().__init__(ENVS, env.single_observation_space, env.single_action_space)
            self.infos: list[dict[str, Any]] = [{} for _ in range(ENVS)]

        def reset(self) -> Any:
            return env.reset(seed=0)[0]

        def step_async(self, actions: np.ndarray) -> None:
            self.actions = actions

        def step_wait(self) -> Any:
            observations, rewards, terminated, truncated, _ = env.step(self.actions)
            return observations, rewards, terminated | truncated, self.infos

        def close(self) -> None:
            """They are closed elsewhere."""

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [None] * ENVS

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            raise NotImplementedError

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * ENVS

    class ActsWithOneThread(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.before = torch.get_num_threads()
            torch.set_num_threads(1)

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            torch.set_num_threads(self.before)

    acting = ActsWithOneThread()
    agent = A2C(
        "CnnPolicy",
        Adapter(),
        n_steps=rollout,
        learning_rate=LR,
        rms_prop_eps=EPS,
        ent_coef=ENTROPY,
        max_grad_norm=NORM,
        policy_kwargs={"features_extractor_class": Column},
        seed=0,
        device="cpu",
    )
    agent.learn(rollout * ENVS, callback=acting)
    return lambda: timed(lambda: agent.learn(STEPS, callback=acting, reset_num_timesteps=False))
