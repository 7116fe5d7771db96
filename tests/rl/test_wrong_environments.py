"""Factories and environments that do not fit the task: refused by its name, before the work."""

import logging

import gymnasium as gym
import numpy as np
import pytest
import torch
from rl_cases import Counting, actor_critic, dqn, make

from avl_plugins.rl import EnvironmentFailedError, rl_benchmark


def space(low, high, shape, dtype):
    return gym.spaces.Box(low, high, shape, dtype)


class With(Counting):
    """`Counting` with some attributes changed."""

    def __init__(self, num_envs, **changes):
        super().__init__(num_envs)
        vars(self).update(changes)


class Returns(Counting):
    """Its n-th step, or its reset where that is 0, returns what `change` makes of it."""

    def __init__(self, num_envs, *, change, at=2):
        super().__init__(num_envs)
        self.change, self.left = change, at

    def reset(self, **kwargs):
        returned = super().reset(**kwargs)
        return self.change(*returned) if self.left == 0 else returned

    def step(self, actions):
        self.left -= 1
        returned = super().step(actions)
        return self.change(*returned) if self.left == 0 else returned


def fails(number):
    raise OSError("no display")


FACTORIES = [
    (lambda number: None, ValueError, "its factory has returned a NoneType; it has to take a number n"),
    (lambda number: 5, ValueError, "its factory has returned a int"),
    (lambda number: Counting, ValueError, "its factory has returned a type"),
    (lambda number: gym.make("CartPole-v1"), ValueError, "its factory has returned a TimeLimit"),
    (fails, EnvironmentFailedError, "its factory has failed to make 1 environments: OSError: no display"),
    (lambda: Counting(1), EnvironmentFailedError, "its factory has failed to make 1 environments: TypeError"),
    (lambda number: Counting(8), ValueError, "its factory has been asked for 1 environments and has returned 8"),
    (make(With, single_observation_space=None), ValueError, "observations must be arrays of numbers"),
    (make(With, single_observation_space=gym.spaces.Text(4)), ValueError, "observations must be arrays of numbers"),
    (
        make(With, single_observation_space=gym.spaces.Dict(a=space(0, 1, (2,), np.float32))),
        ValueError,
        "observations must be arrays of numbers, and the observation space is Dict",
    ),
    (
        make(With, single_action_space=gym.spaces.Discrete(2, start=1)),
        ValueError,
        "expected discrete actions",
    ),
    (make(With, single_action_space=space(0, 1, (2,), np.float32)), ValueError, "expected discrete actions"),
    (
        make(With, metadata={"autoreset_mode": "Never"}),
        ValueError,
        "its environments reset themselves in",
    ),
]


@pytest.mark.parametrize(("factory", "error", "said"), FACTORIES)
def test_a_factory_is_refused_with_the_tasks_name(factory, error, said):
    with pytest.raises(error, match=f"task 'bad': {said}"):
        rl_benchmark({"good": make(Counting), "bad": factory}, steps=8)


def by_calls(*factories):
    """A factory that is another one at each call, the last one from then on."""
    left = list(factories)
    return lambda number: (left.pop(0) if len(left) > 1 else left[0])(number)


@pytest.mark.parametrize("factory_error_said", [f for f in FACTORIES if "asked for 1" not in f[2]])
@pytest.mark.parametrize("make_strategy", [actor_critic, dqn])
def test_so_it_is_at_a_later_call_before_the_work(make_strategy, factory_error_said):
    factory, error, said = factory_error_said
    tasks = {"good": make(Counting), "bad": by_calls(make(Counting), factory)}
    benchmark = rl_benchmark(tasks, steps=24)
    strategy = make_strategy()
    with pytest.raises(error, match=f"task 'bad': {said.replace('make 1', f'make {strategy.num_envs}')}"):
        strategy.train(benchmark.train_stream[1])
    assert strategy.steps == strategy.updates == 0
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(error, match="task 'bad': "):
        strategy.eval(benchmark.test_stream)
    assert strategy.steps == 24


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda number: Counting(number + 1), "its factory has been asked for 4 environments and has returned 5"),
        (make(Counting, actions=3), r"observations \(3,\) float32 and 3 actions, and those that it made before are of"),
        (make(With, single_observation_space=space(0, 1, (4,), np.float32)), r"observations \(4,\) float32 and 2"),
        (make(With, single_observation_space=space(0, 9, (3,), np.uint8)), r"observations \(3,\) uint8 and 2 actions"),
    ],
)
def test_environments_stay_what_they_were(other, said):
    visit = rl_benchmark({"a": by_calls(make(Counting), other)}, steps=24).train_stream[0]
    with pytest.raises(ValueError, match=f"task 'a': .*{said}"):
        actor_critic().train(visit)


def test_environments_that_are_in_use_are_not_used_twice():
    kept = Counting(4)
    benchmark = rl_benchmark({"a": by_calls(make(Counting), lambda number: kept)}, steps=24)
    strategy = actor_critic(eval_every=1, eval_episodes=4)
    with pytest.raises(ValueError, match="task 'a': its factory has returned environments that are in use"):
        strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream])
    strategy = actor_critic(eval_episodes=4)  # one after the other is no harm
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)


def close_fails(env):
    def close(**kwargs):
        raise OSError("already gone")

    env.close = close
    return env


def test_an_error_in_closing_masks_nothing_and_ends_nothing(caplog):
    with pytest.raises(ValueError, match="has returned 3"), caplog.at_level(logging.WARNING):
        rl_benchmark({"a": lambda number: close_fails(Counting(3))}, steps=8)
    benchmark = rl_benchmark({"a": lambda number: close_fails(Counting(number))}, steps=24)
    strategy = actor_critic()
    strategy.train(benchmark.train_stream[0])
    assert strategy.updates == 2
    assert "task 'a': its environments could not be closed: OSError: already gone" in caplog.text


WRONG = [
    # What the environment returns (0: from reset), and what is said of it.
    (0, lambda seen, infos: seen, "a ndarray from reset, and not the 2 of gymnasium: observations, infos"),
    (0, lambda seen, infos: (seen, infos, 1), "3 values from reset"),
    (
        0,
        lambda seen, infos: (seen[:-1], infos),
        r"observations \(3, 3\) float32, and its .* says \(4, 3\)",
    ),
    (0, lambda seen, infos: (seen[:, :2], infos), r"observations \(4, 2\) float32"),
    (0, lambda seen, infos: (seen.astype(np.uint8), infos), r"observations \(4, 3\) uint8, and .* float32"),
    (0, lambda seen, infos: (seen.astype(str), infos), r"observations \(4, 3\) <U"),
    (0, lambda seen, infos: (None, infos), r"observations \(\) object"),
    (0, lambda seen, infos: ([[1, 2], [3]], infos), "observations that are no array"),
    (0, lambda seen, infos: (np.full_like(seen, np.inf), infos), "an observation that is not finite"),
    (2, lambda *step: step[:4], "4 values from step, and not the 5 of gymnasium: observations, rewards"),
    (2, lambda *step: None, "a NoneType from step"),
    (2, lambda seen, *others: (seen[0], *others), r"observations \(3,\) float32"),
    (2, lambda seen, *others: (seen * np.float64(1e300), *others), "an observation that is not finite"),
    (
        2,
        lambda seen, rewards, *others: (seen, rewards[:, None], *others),
        r"rewards \(4, 1\) float64, and not one",
    ),
    (2, lambda seen, rewards, *others: (seen, 1.0, *others), r"rewards \(\) float64"),
    (2, lambda seen, rewards, *others: (seen, rewards[:3], *others), r"rewards \(3,\) float64"),
    (2, lambda seen, rewards, *others: (seen, rewards.astype(str), *others), r"rewards \(4,\) <U"),
    (2, lambda seen, rewards, *others: (seen, [None] * 4, *others), r"rewards \(4,\) object"),
    (2, lambda seen, rewards, *others: (seen, rewards + 1e300, *others), "the rewards"),
    (2, lambda seen, rewards, *others: (seen, rewards - np.inf, *others), "the rewards"),
    (2, lambda s, r, ends, *others: (s, r, ends[:2], *others), r"terminations \(2,\) bool"),
    (2, lambda s, r, ends, *others: (s, r, ends * 1.0, *others), r"terminations \(4,\) float64"),
    (2, lambda s, r, ends, cut, infos: (s, r, ends, False, infos), r"truncations \(\) bool"),
    (2, lambda s, r, ends, cut, infos: (s, r, ends, ["no"] * 4, infos), r"truncations \(4,\) <U2"),
]


@pytest.mark.parametrize(("at", "change", "said"), WRONG)
@pytest.mark.parametrize("make_strategy", [actor_critic, dqn])
def test_what_an_environment_returns_is_checked_and_it_is_named(make_strategy, at, change, said):
    benchmark = rl_benchmark({"game": make(Returns, change=change, at=at), "good": make(Counting)}, steps=24)
    strategy = make_strategy(num_envs=4)
    with pytest.raises(EnvironmentFailedError, match=f"game: the environment has returned {said}.* at step {at}"):
        strategy.train(benchmark.train_stream[0])
    with pytest.raises(EnvironmentFailedError, match="game: the environment has"):
        make_strategy(eval_episodes=4).eval(benchmark.test_stream[:1])
    strategy.train(benchmark.train_stream[1])
    assert strategy.updates > 0


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_floats_of_another_width_are_taken(dtype):
    found = []
    for change in (lambda seen, *others: (seen, *others), lambda seen, *others: (seen.astype(dtype), *others)):
        visit = rl_benchmark({"a": make(Returns, change=change, at=2)}, steps=24).train_stream[0]
        torch.manual_seed(0)
        strategy = actor_critic()
        strategy.train(visit)
        found.append(strategy.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))


class Reusing(Counting):
    """Returns its observations in the same memory each time, which nobody else may write to."""

    def seen(self):
        if not hasattr(self, "memory"):
            self.memory = np.zeros((self.num_envs, 3), dtype=np.float32)
        self.memory.flags.writeable = True
        self.memory[:] = super().seen()
        self.memory.flags.writeable = False
        return self.memory


@pytest.mark.parametrize("make_strategy", [actor_critic, dqn])
def test_environments_may_use_their_memory_again(make_strategy):
    runs = []
    for kind in (Counting, Reusing):
        torch.manual_seed(0)
        strategy = make_strategy()
        strategy.train(rl_benchmark({"a": make(kind)}, steps=48).train_stream)
        runs.append(strategy)
    assert all(torch.equal(a, b) for a, b in zip(*(s.model.state_dict().values() for s in runs), strict=True))
    if make_strategy is dqn:
        drawn = runs[1].buffers[0].sample(500)
        steps = (drawn.following - drawn.states)[:, 1]
        assert set(steps.tolist()) == {1.0}, "each state is the one before"
