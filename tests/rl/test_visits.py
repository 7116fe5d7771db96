"""Visits and evaluations without end or use, and where they cannot be."""

import logging

import gymnasium as gym
import pytest
import torch
from rl_cases import Counting, actor_critic, dqn, make, played, quiet, two_tasks
from torch import nn

from avl_plugins.metrics import return_metrics
from avl_plugins.rl import rl_benchmark
from avl_plugins.rl.environments import Environments


class Endless(Counting):
    """Its first environment's episodes never end."""

    def __init__(self, num_envs):
        super().__init__(num_envs)
        self.lengths[0] = 10**9


@pytest.mark.parametrize("limit", [4, 7])
def test_an_endless_episode_of_an_evaluation_is_cut_off_and_said(limit, caplog):
    benchmark = rl_benchmark({"a": make(Endless)}, steps=24)
    strategy = dqn(eval_episodes=5, eval_envs=2, eval_max_steps=limit, epsilon_end=0.0)
    with caplog.at_level(logging.WARNING):
        found = played(strategy, benchmark)
    assert sorted((e.env, e.length) for e in found) == [(0, limit), (1, 4), (1, 4)]
    (cut,) = (e for e in found if e.env == 0)
    assert cut.total in (0.0, float(limit))  # a constant action
    assert caplog.messages == [
        f"a: 1 episodes of the evaluation were cut off after eval_max_steps={limit} agent steps, and count with their "
        "returns until then; 3 of eval_episodes=5 were played"
    ]


def test_an_episode_that_ends_in_time_is_whole(caplog):
    benchmark = two_tasks()
    whole = played(actor_critic(eval_episodes=5, eval_envs=3, eval_max_steps=None), benchmark)
    with caplog.at_level(logging.WARNING):
        assert played(actor_critic(eval_episodes=5, eval_envs=3, eval_max_steps=6), benchmark) == whole
    assert max(e.length for e in whole) == 6
    assert not caplog.messages


def test_a_test_stream_is_not_trained_on():
    benchmark = two_tasks()
    for make_strategy in (actor_critic, dqn):
        with pytest.raises(ValueError, match="task 'b': the experience has no steps to train for, as it is of a test"):
            make_strategy().train(benchmark.test_stream[1])


def test_a_visit_in_which_nothing_is_learnt_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        strategy = dqn(learning_starts=40)
        strategy.train(two_tasks(steps=36).train_stream[0])
        assert strategy.updates == 0
        assert caplog.messages == [
            "a: nothing will be learnt in this visit: its 36 agent steps are too few for learning_starts=40 and "
            "train_every=4"
        ]
        strategy.train(two_tasks(steps=36).train_stream[0])
    assert strategy.updates > 0
    assert len(caplog.messages) == 1
    with pytest.raises(ValueError, match="epoch_steps must be at least train_every, 8, as updates are counted anew"):
        dqn(train_every=8, epoch_steps=6)
    with pytest.raises(ValueError, match=r"learning_starts must be from 6, two steps .* to 39, what a buffer with"):
        dqn(num_envs=3, train_every=3, buffer_size=40, learning_starts=40)  # it holds 13 steps of three


def test_a_buffer_that_is_just_large_enough_is_learnt_from():
    strategy = dqn(num_envs=3, train_every=3, buffer_size=41, learning_starts=39)
    strategy.train(two_tasks(steps=60).train_stream[0])
    assert strategy.updates == 60 // 3 - 39 // 3 + 1


def test_stacks_need_frames():
    benchmark = rl_benchmark({"lake": lambda n: gym.make_vec("FrozenLake-v1", n, vectorization_mode="sync")}, steps=24)

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Embedding(16, 4)

        def forward(self, x):
            return self.q(x.long())

    strategy = dqn(Table(), stacked=True)
    with pytest.raises(ValueError, match=r"stacked=True needs observations \(N, frames, ...\), got \(2,\)"):
        strategy.train(benchmark.train_stream[0])
    strategy = dqn(Table())
    strategy.train(benchmark.train_stream[0])
    assert strategy.updates == (24 - 8) // 4 + 1


def test_a_task_without_a_reference_is_said_early_and_refused_before_it_is_played(caplog):
    strategy = actor_critic(evaluator=quiet(*return_metrics(references={"a": (0, 1)})[3:]))
    benchmark = two_tasks()
    with caplog.at_level(logging.WARNING):
        strategy.train(benchmark.train_stream[0])
        assert not caplog.messages
        strategy.train(benchmark.train_stream[1])
    assert caplog.messages == [
        "references: there is none for 'b'; those given are ['a']: an evaluation of it will be refused"
    ]
    strategy.eval(benchmark.test_stream[:1])
    with pytest.raises(ValueError, match="references: there is none for 'b'"):
        strategy.eval(benchmark.test_stream)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for make_strategy, name in ((actor_critic, "ActorCritic"), (dqn, "DQN")):
        strategy = make_strategy()
        for use in (lambda s: s.train(two_tasks().train_stream[0]), lambda s: s.eval(two_tasks().test_stream)):
            with pytest.raises(ValueError, match=f"{name} does not serve distributed training, in which 2 processes"):
                use(strategy)


def test_environments_can_be_used_by_themselves():
    envs = Environments(two_tasks().train_stream[0], 2)
    envs.reset(0)
    envs.step(torch.tensor([1, 0]))
    assert (envs.so_far(0).total, envs.so_far(0).length) == (1.0, 1)
    assert envs.lengths.tolist() == [1, 1]
    envs.close()
