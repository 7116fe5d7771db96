"""The part of perf on reinforcement learning, on few environments and steps."""

import importlib.util
import os

import pytest
import torch

from benchmarks.perf import rl as perf_rl
from benchmarks.perf.timing import compare_rates

pytest.importorskip("ale_py")
PRESENT = importlib.util.find_spec("stable_baselines3") is not None


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(perf_rl, "ENVS", 2)
    monkeypatch.setattr(perf_rl, "STEPS", 40)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def without(monkeypatch, *names):
    found = importlib.util.find_spec
    monkeypatch.setattr(perf_rl, "find_spec", lambda name: None if name in names else found(name))


def test_rates_are_compared_by_their_ratio():
    slow, fast = compare_rates("loop", 44, 100, "env", 0.45), compare_rates("loop", 46, 100, "env", 0.45)
    assert (slow.seconds, slow.ratio, slow.target, slow.met) == (44, 0.44, ">= 0.45", False)
    assert (fast.ratio, fast.met) == (0.46, True)


def test_the_column_is_the_papers():
    sizes = [tuple(p.shape) for p in perf_rl.column().parameters()]
    assert sizes[::2] == [(12, 4, 8, 8), (12, 12, 4, 4), (12, 12, 3, 4), (256, 504)]
    assert perf_rl.column()(torch.zeros(2, 4, 84, 84)).shape == (2, 256)


def test_turns_hold_whole_rollouts():
    assert [perf_rl.STEPS % (rollout * perf_rl.ENVS) for rollout in perf_rl.ROLLOUTS] == [0, 0]


@pytest.mark.parametrize("installed", [True, False])
def test_loops_are_compared_with_the_bare_environment_and_with_a2c(small, monkeypatch, installed):
    if not installed:
        without(monkeypatch, "stable_baselines3")
    lines = perf_rl.reinforcement(None, 1)
    against = ["", "environment alone", "stable-baselines3's A2C"][: 3 if installed and PRESENT else 2]
    assert [line.against for line in lines] == 2 * against
    assert [line.target for line in lines] == 2 * ["", ">= 0.45", ">= 1"][: len(against)]
    for bare, *ours in (lines[: len(against)], lines[len(against) :]):
        assert ours[0].ratio == pytest.approx(ours[0].seconds / bare.seconds)
        assert min(bare.seconds, ours[0].seconds) > 0
        assert [line.met for line in ours] == [ours[0].ratio >= 0.45, *(line.ratio >= 1 for line in ours[1:])]


@pytest.mark.skipif(not PRESENT, reason="stable-baselines3 is not installed")
def test_a2c_acts_with_one_thread_and_learns_with_all(small, monkeypatch):
    from avl_plugins.rl import AtariEnv

    found = {True: set(), False: set()}
    column = perf_rl.column

    def watched():
        layers = column()
        layers.register_forward_pre_hook(lambda *_: found[torch.is_grad_enabled()].add(torch.get_num_threads()))
        return layers

    monkeypatch.setattr(perf_rl, "column", watched)
    torch.set_num_threads(2)
    env = AtariEnv(game="pong", threads=1)(2)
    perf_rl.theirs(env, 5)()
    env.close()
    assert found == {True: {2}, False: {1}}
    assert torch.get_num_threads() == 2


def test_others_have_a_turn_after_each_of_ours(small):
    from avl_plugins.rl import AtariEnv

    env = AtariEnv(game="pong", threads=1)(2)
    seconds = iter([3.0, 1.0, 2.0])
    found = perf_rl.in_turn(env, 5, 3, {"other": lambda: next(seconds)})
    env.step([0, 0])  # still open
    env.close()
    assert found["other"] == 2.0
    assert next(seconds, None) is None
    assert found["ours"] > 0


def test_what_is_not_installed_is_named(monkeypatch):
    assert perf_rl.absent() == [] or not PRESENT
    without(monkeypatch, "stable_baselines3")
    assert perf_rl.absent() == [
        'stable-baselines3 is not installed (pip install "avl-plugins[compare]"): no comparison with its A2C'
    ]
    without(monkeypatch, "ale_py")
    assert perf_rl.absent()[0].startswith("gymnasium and ale-py are not installed")
    assert perf_rl.reinforcement(None, 1) == []


def test_cores_in_a_row_are_found_among_those_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5, 6}, raising=False)
    assert [perf_rl.first_core(threads) for threads in (1, 2, 3, 4)] == [1, 4, 4, None]
