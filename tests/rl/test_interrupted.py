"""Ctrl-C and exceptions in training and evaluation: the strategy can be saved, loaded and trained after them."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from rl_cases import Counting, actor_critic, dqn, make, mlp, recognition, two_tasks

from avl_plugins import EWCPlugin, load_checkpoint, save_checkpoint
from avl_plugins.rl import EnvironmentFailedError, TaskGains, rl_benchmark

HOOKS = [hook for hook in dir(SupervisedPlugin) if hook.startswith(("before", "after"))]
TRAINING = [*(hook for hook in HOOKS if "eval" not in hook), "observed", "switch_task"]
EVALUATION = [*(hook for hook in HOOKS if "eval" in hook), "observed"]


def ewc(**kwargs):
    return EWCPlugin(ewc_lambda=1.0, revisits="replace", **kwargs)


AGENTS = {
    "actor-critic": lambda *plugins, **kwargs: actor_critic(TaskGains(mlp(3)), plugins=[*plugins, ewc()], **kwargs),
    "dqn": lambda *plugins, **kwargs: dqn(
        TaskGains(mlp(2)),
        plugins=[recognition(), *plugins, ewc(likelihood="gaussian")],
        learning_starts=4,
        **kwargs,
    ),
}


class Stops:
    """Raises an error from a hook."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def interrupt(self, hook, error, use, *, training):
        """Use the strategy, and have it stopped at the hook's second call where there are several."""
        calls = 0

        def stop(strategy, **kwargs):
            nonlocal calls
            calls += strategy.is_training == training
            if calls == (2 if "iteration" in hook or hook == "observed" else 1):
                raise error

        setattr(self, hook, stop)
        with pytest.raises(type(error)):
            use()
        delattr(self, hook)


def agent(name, stops, **kwargs):
    torch.manual_seed(0)
    return AGENTS[name](stops, **kwargs)


def is_between_experiences(strategy):
    left = (strategy.experience, strategy.progress, strategy.environments, strategy.mbatch, strategy.dataloader)
    return left == (None, None, None, None, [])


def check_goes_on(strategy, fresh):
    """The strategy goes on as the fresh one does, which has been loaded from its file."""
    runs = []
    for each in (strategy, fresh):
        torch.manual_seed(3)
        benchmark = two_tasks(steps=24)
        each.train(benchmark.train_stream[0])
        each.eval(benchmark.test_stream)
        runs.append((each.model.state_dict(), each.steps, each.steps_of, each.updates, each.episodes))
    (one, *counts), (other, *others) = runs
    assert counts == others
    assert all(torch.equal(one[key], other[key]) for key in one if key != "_extra_state")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a plugin's")], ids=["Ctrl-C", "error"])
@pytest.mark.parametrize("name", AGENTS)
def test_training_can_be_interrupted_in_every_hook(name, error, tmp_path):
    stops = Stops()
    strategy, fresh = agent(name, stops), agent(name, Stops())
    benchmark = two_tasks(steps=24)
    for hook in TRAINING:
        if hook == "switch_task":
            stops.observed = lambda strategy, **kwargs: strategy.request_label(1 - strategy.label)
        stops.interrupt(hook, error, lambda: strategy.train(benchmark.train_stream[1]), training=True)
        assert is_between_experiences(strategy), hook
        save_checkpoint(strategy, tmp_path / "file")
        load_checkpoint(fresh, tmp_path / "file")
    del stops.observed
    check_goes_on(strategy, fresh)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a plugin's")], ids=["Ctrl-C", "error"])
@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("nested", [False, True])
def test_an_evaluation_can_be_interrupted_in_every_hook(name, error, nested, tmp_path):
    stops = Stops()
    strategy, fresh = agent(name, stops, eval_every=1 if nested else -1), agent(name, Stops())
    benchmark = two_tasks(steps=24)
    uses = {
        True: lambda: strategy.train(benchmark.train_stream[1], eval_streams=[benchmark.test_stream]),
        False: lambda: strategy.eval(benchmark.test_stream),
    }
    for hook in EVALUATION:
        stops.interrupt(hook, error, uses[nested], training=False)
        assert is_between_experiences(strategy), hook
        save_checkpoint(strategy, tmp_path / "file")
        load_checkpoint(fresh, tmp_path / "file")
    fresh.plugins[-2].eval_every, fresh.plugins[-2].do_initial = strategy.plugins[-2].eval_every, nested
    check_goes_on(strategy, fresh)


class Stopping(Counting):
    """Raises an error at the n-th call of a method, of all its copies together."""

    left, error, where = 10**9, KeyboardInterrupt, "step"

    def __init__(self, num_envs, **kwargs):
        self.called("make")
        super().__init__(num_envs, **kwargs)

    @classmethod
    def called(cls, where):
        if where == cls.where:
            cls.left -= 1
            if cls.left == 0:
                raise cls.error

    def reset(self, **kwargs):
        self.called("reset")
        return super().reset(**kwargs)

    def step(self, actions):
        self.called("step")
        return super().step(actions)

    def close(self, **kwargs):
        self.called("close")
        super().close(**kwargs)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("use", ["train", "eval", "nested"])
@pytest.mark.parametrize("name", AGENTS)
def test_an_environment_can_be_interrupted_everywhere(name, use, error, tmp_path, monkeypatch):
    benchmark = rl_benchmark({"a": make(Counting), "stops": make(Stopping)}, steps=24)
    strategy, fresh = agent(name, Stops(), eval_every=1 if use == "nested" else -1), agent(name, Stops())
    uses = {
        "train": lambda: strategy.train(benchmark.train_stream[1]),
        "eval": lambda: strategy.eval(benchmark.test_stream),
        "nested": lambda: strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream[1:]]),
    }
    for where, at in (("make", 1), ("reset", 1), ("step", 1), ("step", 5), ("close", 1)):
        for attribute, value in (("left", at), ("error", error), ("where", where)):
            monkeypatch.setattr(Stopping, attribute, value)
        if where == "close" and error is OSError:
            uses[use]()  # what has been learnt does not suffer from it
        else:
            with pytest.raises(EnvironmentFailedError if error is OSError else KeyboardInterrupt):
                uses[use]()
        assert is_between_experiences(strategy), (where, at)
        save_checkpoint(strategy, tmp_path / "file")
        load_checkpoint(fresh, tmp_path / "file")
    fresh.plugins[-2].eval_every, fresh.plugins[-2].do_initial = strategy.plugins[-2].eval_every, use == "nested"
    check_goes_on(strategy, fresh)
