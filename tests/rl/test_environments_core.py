"""Streams of environments, stepping with checks, and the buffers that keep what was seen."""

import gymnasium as gym
import pytest
import torch
from rl_cases import Bandit, Counting, Failing, make, two_tasks

from avl_plugins.rl import EnvironmentFailedError, rl_benchmark
from avl_plugins.rl.environments import Environments, Step
from avl_plugins.rl.replay_buffer import ReplayBuffer
from avl_plugins.rl.states import RecentStates


def environments(kind=Counting, number=2, **kwargs):
    benchmark = rl_benchmark({"game": make(kind, **kwargs)}, steps=10)
    return Environments(benchmark.train_stream[0], number)


def test_a_benchmark_has_a_visit_for_each_name_and_a_test_for_each_task():
    benchmark = two_tasks(steps={"a": 10, "b": 20}, schedule=["b", "a", "b"])
    visits = [(e.name, e.task_label, e.task_labels, e.steps, e.current_experience) for e in benchmark.train_stream]
    assert visits == [("b", 1, [1], 20, 0), ("a", 0, [0], 10, 1), ("b", 1, [1], 20, 2)]
    assert [(e.name, e.task_label, e.steps) for e in benchmark.test_stream] == [("a", 0, 0), ("b", 1, 0)]
    assert benchmark.train_stream[0].actions == 2
    assert benchmark.train_stream.name == "train"
    other = benchmark.train_stream[0].relabelled(7)
    assert (other.task_label, other.task_labels, other.name) == (7, [7], "b")
    assert benchmark.train_stream[0].task_labels == [1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tasks": {}, "steps": 1}, "tasks: expected at least one"),
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"steps": {"b": 1}}, r"steps: it has no value for \['a'\]"),
        ({"steps": 1, "schedule": []}, "schedule: expected at least one visit"),
        ({"steps": 1, "schedule": ["c"]}, r"schedule: no such tasks \['c'\]; the tasks are \['a'\]"),
        ({"steps": 1, "tasks": {"a": lambda n: gym.make("CartPole-v1")}}, "task 'a': its factory has returned a"),
        ({"steps": 1, "tasks": {"a": lambda n: gym.make_vec("Pendulum-v1", n)}}, "task 'a': expected discrete actions"),
        (
            {
                "steps": 1,
                "tasks": {
                    "a": lambda n: gym.make_vec(
                        "CartPole-v1",
                        n,
                        vectorization_mode="sync",
                        vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP},
                    )
                },
            },
            "task 'a': its environments reset themselves in the mode",
        ),
    ],
)
def test_a_benchmark_that_cannot_be_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        rl_benchmark(**({"tasks": {"a": make(Counting)}} | arguments))


@pytest.mark.parametrize("truncates", [False, True])
def test_episodes_are_counted_and_steps_that_begin_one_are_not_valid(truncates):
    envs = environments(length=2, truncates=truncates)  # episodes of 2 and 3 steps
    first = envs.reset(0)
    assert first.tolist() == [[0, 0, 0], [1, 0, 0]]
    steps = [envs.step(torch.tensor([1, 1])) for _ in range(7)]
    ended = [(s.truncated if truncates else s.terminated).tolist() for s in steps]
    assert ended == [[k in (1, 4), k in (2, 6)] for k in range(7)]
    assert not any((s.terminated if truncates else s.truncated).any() for s in steps)
    assert [s.valid.tolist() for s in steps] == [[k not in (2, 5), k != 3] for k in range(7)]
    assert [s.rewards.tolist() for s in steps] == [[float(v) for v in s.valid] for s in steps]
    assert steps[1].observations[0].tolist() == [0, 2, 1]  # the last of its episode
    assert steps[2].observations[0].tolist() == [0, 0, 0]
    assert [(e.total, e.length, e.env) for e in envs.finished] == [(2, 2, 0), (3, 3, 1), (2, 2, 0), (3, 3, 1)]


def test_gymnasiums_own_environments_agree_with_their_episode_statistics():
    benchmark = rl_benchmark({"cartpole": lambda n: gym.make_vec("CartPole-v1", n)}, steps=1)
    envs = Environments(benchmark.train_stream[0], 3)
    envs.reset(5)
    reference = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec("CartPole-v1", 3))
    reference.reset(seed=5)
    found = []
    for step in range(200):
        actions = torch.tensor([step % 2, 1, step % 3 % 2])
        envs.step(actions)
        _, _, _, _, info = reference.step(actions.numpy())
        if "episode" in info:
            found += [
                (float(info["episode"]["r"][i]), int(info["episode"]["l"][i])) for i in info["_episode"].nonzero()[0]
            ]
    assert len(found) > 10
    assert [(e.total, e.length) for e in envs.finished] == found


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "game: the environment has failed in step after 3 steps: OSError: the emulator is gone"),
        ("reward", r"game: the environment has returned the rewards \[nan, 0.0\] at step 4"),
        ("observation", "game: the environment has returned an observation that is not finite at step 4"),
    ],
)
def test_an_environment_that_fails_is_named(how, said):
    envs = environments(Failing, how=how)
    envs.reset(0)
    for _ in range(3):
        envs.step(torch.tensor([0, 0]))
    with pytest.raises(EnvironmentFailedError, match=said):
        envs.step(torch.tensor([0, 0]))


def filled(rows, steps, number=2, length=2):
    """A buffer filled by acting, and every valid transition as plain numbers."""
    envs = environments(number=number, length=length)
    buffer, seen = ReplayBuffer(rows * number, number), []
    before = envs.reset(0)
    for k in range(steps):
        actions = torch.tensor([k % 2, (k // 2) % 2])[:number]
        step = envs.step(actions)
        buffer.add(before, actions, step, step.rewards)
        seen.append((before.clone(), actions, step))
        before = step.observations
    return buffer, seen


def plain(transitions):
    columns = zip(*(column.tolist() for column in transitions), strict=True)
    return {(tuple(s), a, r, tuple(f), t) for s, a, r, f, t in columns}


@pytest.mark.parametrize("steps", [5, 9, 23])
def test_a_buffer_gives_exactly_the_latest_transitions(steps):
    buffer, seen = filled(9, steps)
    torch.manual_seed(3)
    found = plain(buffer.sample(3000))
    expected = set()
    for before, actions, step in seen[-9:-1]:  # the newest cannot be drawn yet
        for env in range(2):
            if step.valid[env]:
                expected.add(
                    (
                        tuple(before[env].tolist()),
                        int(actions[env]),
                        float(step.rewards[env]),
                        tuple(step.observations[env].tolist()),
                        bool(step.terminated[env]),
                    )
                )
    assert found == expected
    assert len(buffer) == 2 * min(steps, 9)


def test_no_transition_leads_from_one_segment_into_another():
    buffer, seen = filled(20, 4)
    buffer.end()
    last = seen[-1]
    buffer.add(torch.full((2, 3), 50.0), torch.zeros(2, dtype=torch.long), last[2], last[2].rewards)
    buffer.add(torch.full((2, 3), 60.0), torch.zeros(2, dtype=torch.long), last[2], last[2].rewards)
    found = buffer.sample(2000)
    crossing = (found.following[:, 0] >= 50) & (found.states[:, 0] < 50)
    assert not crossing.any()
    assert (found.states[:, 0] == 50).any()


def test_a_buffer_comes_back_as_it_was():
    buffer, _ = filled(9, 23)
    other = ReplayBuffer(18, 2)
    other.load_state_dict(buffer.state_dict())
    torch.manual_seed(1)
    one = buffer.sample(50)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(one, other.sample(50), strict=True))
    step = Step(torch.zeros(2, 3), *(torch.zeros(2, dtype=d) for d in (torch.float32, *[torch.bool] * 3)))
    for each in (buffer, other):
        each.add(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), step, step.rewards)
    assert all(torch.equal(buffer.state_dict()["columns"][k], v) for k, v in other.state_dict()["columns"].items())


def stacks(steps, generator, depth):
    """Observations (2, depth, 3) of one step after another: stacks that go on, and ever so often others."""
    seen = torch.randint(256, (2, depth, 3), dtype=torch.uint8, generator=generator)
    for _ in range(steps):
        yield seen.clone()
        fresh = torch.randint(256, (2, depth, 3), dtype=torch.uint8, generator=generator)
        begins = torch.rand(2, generator=generator) < 0.15
        empty = torch.rand(2, generator=generator) < 0.5
        begun = torch.where(empty[:, None, None], torch.zeros_like(fresh), fresh)
        begun[:, -1] = fresh[:, -1]
        seen = torch.where(begins[:, None, None], begun, torch.cat([seen[:, 1:], fresh[:, -1:]], 1))


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("rows", [2, 3, 9])
@pytest.mark.parametrize("steps", [2, 10, 60])
def test_a_buffer_of_stacked_frames_gives_what_one_of_whole_states_does(depth, rows, steps):
    generator = torch.Generator().manual_seed(steps)
    whole, stacked = ReplayBuffer(2 * rows, 2), ReplayBuffer(2 * rows, 2, stacked=True)
    for k, seen in enumerate(stacks(steps, generator, depth)):
        truth = torch.rand(3, 2, generator=generator) < 0.8
        step = Step(seen, torch.rand(2, generator=generator), truth[0], truth[1], truth[2])
        if k % 7 == 6:
            for each in (whole, stacked):
                each.end()
        if k % 11 == 10:  # a resumed run
            state, stacked = stacked.state_dict(), ReplayBuffer(2 * rows, 2, stacked=True)
            stacked.load_state_dict(state)
        for each in (whole, stacked):
            each.add(seen, torch.tensor([k, -k]), step, step.rewards)
        assert whole.drawable == stacked.drawable
        if not whole.drawable:
            continue
        drawn = []
        for each in (whole, stacked):
            torch.manual_seed(k)
            drawn.append([*each.sample(40), each.sample_states(20)])
        assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))
    with pytest.raises(ValueError, match="stacked: the state is of a buffer with the other choice"):
        whole.load_state_dict(stacked.state_dict())


def test_stacked_frames_take_a_quarter_of_the_memory():
    def size(held):
        if isinstance(held, torch.Tensor):
            return held.nbytes
        return sum(size(each) for each in held.values()) if isinstance(held, dict) else 0

    whole, stacked = ReplayBuffer(400, 2), ReplayBuffer(400, 2, stacked=True)
    frames = torch.randint(256, (403, 2, 20, 20), dtype=torch.uint8)
    step = Step(frames[0], torch.zeros(2), *[torch.ones(2, dtype=torch.bool)] * 3)
    for k in range(400):
        seen = frames[k : k + 4].movedim(0, 1)
        for each in (whole, stacked):
            each.add(seen, torch.zeros(2, dtype=torch.long), step, step.rewards)
    assert size(stacked.state_dict()) / size(whole.state_dict()) == pytest.approx(0.26, abs=0.01)


def test_a_buffer_without_transitions_says_so():
    with pytest.raises(ValueError, match="capacity must be an integer >= 8, got 7"):
        ReplayBuffer(7, 4)
    with pytest.raises(ValueError, match="no transitions"):
        ReplayBuffer(8, 4).sample(1)
    buffer, _ = filled(9, 1)
    with pytest.raises(ValueError, match="no transitions"):
        buffer.sample(1)


def test_recent_states_are_the_latest_of_each_of_the_latest_tasks():
    kept = RecentStates(5, tasks=2)
    with pytest.raises(ValueError, match="no states of task 0"):
        kept.of(0)
    for k in range(4):
        kept.add(torch.full((2, 1), float(k)), 0)
    assert sorted(kept.of(0).flatten().tolist()) == [1, 2, 2, 3, 3]
    other = RecentStates(5, tasks=2)
    other.load_state_dict(kept.state_dict())
    for each in (kept, other):
        each.add(torch.full((1, 1), 9.0), 0)
    assert torch.equal(kept.of(0), other.of(0))
    before = kept.of(0).clone()
    kept.add(torch.ones(1, 1), 1)
    assert kept.of(1).tolist() == [[1]]
    assert torch.equal(kept.of(0), before), "a moment under another label takes nothing away"
    kept.add(torch.full((1, 1), 7.0), 0)
    assert sorted(kept.of(0).flatten().tolist()) == [2, 3, 3, 7, 9]
    other.load_state_dict(kept.state_dict())
    for each in (kept, other):
        assert (0 in each, 1 in each, 2 in each) == (True, True, False)
        each.add(torch.zeros(1, 1), 2)
        assert (0 in each, 1 in each, 2 in each) == (True, False, True)
    with pytest.raises(ValueError, match="task 1"):
        kept.of(1)


def test_the_bandit_rewards_its_best_arm():
    envs = environments(Bandit, best=1)
    envs.reset(0)
    assert envs.step(torch.tensor([1, 0])).rewards.tolist() == [1, 0]
