"""States that do not fit are refused with the entry named, and nothing is changed."""

import copy

import pytest
import torch
from rl_cases import actor_critic, dqn, mlp, recognition, two_tasks
from torch import Tensor

from avl_plugins.rl import TaskGains
from avl_plugins.rl.environments import Step
from avl_plugins.rl.frame_stacks import FrameStacks
from avl_plugins.rl.replay_buffer import ReplayBuffer
from avl_plugins.rl.states import RecentStates


def same(one, other):
    """Whether two states are equal to the last bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def trained(make_strategy, **kwargs):
    strategy = make_strategy(**kwargs)
    strategy.train(two_tasks(steps=48).train_stream)
    return strategy


def stacked_dqn(**kwargs):
    return dqn(stacked=True, **kwargs)


def filled(rows, steps, *, stacked):
    buffer = ReplayBuffer(2 * rows, 2, stacked=stacked)
    torch.manual_seed(0)
    for _ in range(steps):
        seen = torch.randint(9, (2, 3, 4))
        step = Step(seen, torch.rand(2), *torch.rand(3, 2) < 0.5)
        buffer.add(seen, torch.tensor([0, 1]), step, step.rewards)
    return buffer


def recent(steps):
    kept = RecentStates(5, tasks=2)
    for k in range(steps):
        kept.add(torch.full((1, 2), float(k)), k % 2)
    return kept


def visited():
    plugin = recognition()
    dqn(plugins=[plugin]).train(two_tasks(steps=48).train_stream)
    return plugin


NOT_COUNTS = (-1, 1.5, "2", None, True)
STRATEGY = [
    *((name, value) for name in ("steps", "updates", "label", "held", "seed") for value in NOT_COUNTS),
    *(("steps_of", value) for value in (None, [1], {0: -1}, {"a": 1}, {0: 1.5})),
    *(("episodes", value) for value in (None, 5, [1], [(1.0, 2)], [("a", 1, 2)], [(1.0, 1.5, 0)], [(1.0, 2, -1)])),
    *(("requested", value) for value in (-1, 1.5, "2")),
]
OWNERS = {
    # What makes it, and entries with values that do not fit, and what is named if not the entry.
    "actor-critic": (
        lambda: trained(actor_critic),
        [
            *STRATEGY,
            *(("states", value) for value in (None, [1], {0: 5}, {0: {"kept": torch.ones(2, 3)}})),
            ("states", {0: {"kept": torch.ones(2, 3), "next": 1}}),
            ("states", {0: {"kept": torch.ones(4000, 3), "next": 0}}),
            ("states", {0: {"kept": torch.ones(()), "next": 0}}),
            ("states", {k: {"kept": torch.ones(1, 3), "next": 1} for k in range(5)}),
        ],
    ),
    "dqn": (
        lambda: trained(dqn),
        [
            *STRATEGY,
            *(("buffers", value) for value in (None, 5, {0: 5}, {0: {}})),
            ("buffers", {0: ReplayBuffer(8, 4).state_dict() | {"count": 1}}),
            ("buffers", {0: filled(30, 25, stacked=False).state_dict()}),
            ("buffers", {0: filled(20, 5, stacked=True).state_dict()}),
            *(("target", value) for value in (5, {}, {"0.weight": torch.ones(2)}, dict(mlp(5).state_dict()))),
        ],
    ),
    "stacked dqn": (
        lambda: trained(stacked_dqn),
        [("buffers", {0: filled(20, 5, stacked=False).state_dict()})],
    ),
    "buffer": (
        lambda: filled(6, 4, stacked=False),
        [
            *((name, value) for name in ("count", "next") for value in (*NOT_COUNTS, 7)),
            ("count", 3, "next"),
            ("next", 3),
            *(("columns", value) for value in (None, {}, {"actions": torch.zeros(4, 2)}, torch.ones(4, 2))),
            *(("observations", value) for value in (None, 5, torch.ones(4, 3, 3, 4), torch.ones(3, 2, 3, 4))),
            ("stacks", filled(6, 4, stacked=True).state_dict()["stacks"], "stacked"),
        ],
    ),
    "full buffer": (lambda: filled(6, 9, stacked=False), [("next", 6), ("count", 5, "next")]),
    "stacked buffer": (
        lambda: filled(6, 20, stacked=True),
        [("stacks", None, "stacked"), ("stacks", {}), ("stacks", filled(6, 4, stacked=True).state_dict()["stacks"])],
    ),
    "stacks": (
        lambda: filled(6, 20, stacked=True)._stacks,  # full: 8 steps of 2 environments
        [
            *((name, value) for name in ("depth", "next") for value in NOT_COUNTS),
            *(("depth", value, "frames") for value in (0, 1, 2)),
            *(("depth", value, "next") for value in (4, 99)),
            *(("next", value) for value in (8, 99)),
            *(("frames", value) for value in (None, torch.ones(()), torch.ones(8), torch.ones(9, 2, 4))),
            *(("places", value) for value in (None, 5, [1], [[0, 1, 2]], [[0, -1]])),
            ("places", [], "older"),
            ("places", [[99, 0]] * 16),
            *(("older", value) for value in (None, 5, torch.ones(1, 2, 4, dtype=torch.long))),
        ],
    ),
    "recent states": (
        lambda: recent(6),
        [(0, None), (0, {}), (0, {"kept": torch.ones(6, 2), "next": 0}), (0, {"kept": torch.ones(3, 2), "next": 0})],
    ),
    "plugin": (
        visited,
        [
            *((name, value) for name in ("steps", "label") for value in NOT_COUNTS),
            *(("windows", value) for value in (None, 5, [1], [[0, 1]], [[0, 1, -1]])),
            *(("latest", value) for value in (None, 5, [0], [0, -1])),
            *(("recognition", value) for value in (None, 5)),
            *(("recognition", value, "TaskRecognition lacks entries") for value in ({}, {"windows": 3})),
        ],
    ),
    "recognition": (
        lambda: visited().recognition,
        [
            *((name, value) for name in ("windows",) for value in NOT_COUNTS),
            *(("context", value) for value in (-1, 1.5, "2", 9)),
            *((name, value) for name in ("counts", "learnt", "posterior", "recent") for value in (None, [1], 5)),
            ("settings", None),
        ],
    ),
}


def changed(state):
    """What is no state of its kind, with what has to be named."""
    yield [state], None
    yield None, None
    yield state | {"other": 1}, "other"
    for name in state:
        yield {key: value for key, value in state.items() if key != name}, str(name)


@pytest.mark.parametrize("kind", OWNERS)
def test_a_state_that_does_not_fit_changes_nothing(kind):
    make, wrong = OWNERS[kind]
    owner = make()
    good = copy.deepcopy(owner.state_dict())
    before = copy.deepcopy(good)
    cases = [(good | {name: value}, str([name, *said][-1])) for name, value, *said in wrong]
    if kind != "recent states":  # its entries are tasks
        cases += changed(good)
    for state, name in cases:
        if kind == "stacks" and state is None:
            continue  # nothing has been added
        with pytest.raises(ValueError, match=name or "state") as found:
            owner.load_state_dict(state)
        assert same(owner.state_dict(), before), (name, found.value)
    owner.load_state_dict(good)
    assert same(owner.state_dict(), before)
    fresh = make()
    fresh.load_state_dict(good)
    assert same(fresh.state_dict(), before)


def test_a_network_that_cannot_take_the_target_is_named():
    strategy = trained(dqn)
    state = strategy.state_dict() | {"target": dict(mlp(5).state_dict())}
    with pytest.raises(ValueError, match=r"target in the state of DQN does not fit the model: (?s:.)*size mismatch"):
        strategy.load_state_dict(state)


def test_a_buffer_takes_the_state_of_a_smaller_one_that_is_not_full_only():
    for steps, fits in ((4, True), (5, False), (7, False)):
        small, large = filled(5, steps, stacked=False), ReplayBuffer(20, 2)
        if fits:
            large.load_state_dict(small.state_dict())
            assert len(large) == 8
            continue
        with pytest.raises(ValueError, match="next in the state of a ReplayBuffer must be where the next row"):
            large.load_state_dict(small.state_dict())


def test_gains_need_their_labels():
    network = TaskGains(mlp(3))
    network.add_task(4)
    state = network.state_dict()
    for extra in ({}, None, {"labels": 4}):
        with pytest.raises(ValueError, match="the extra state of TaskGains must have labels, a list of task labels"):
            TaskGains(mlp(3)).load_state_dict(state | {"_extra_state": extra})


def test_loaded_memory_is_the_owners_own():
    buffer = filled(6, 4, stacked=False)
    state = copy.deepcopy(buffer.state_dict())
    buffer.load_state_dict(state)
    state["columns"]["rewards"].fill_(99)
    state["observations"].fill_(99)
    assert not (buffer.state_dict()["columns"]["rewards"] == 99).any()
    assert not (buffer.state_dict()["observations"] == 99).any()


def test_an_interrupted_step_leaves_a_buffer_as_it_was(monkeypatch):
    buffer, whole = filled(6, 9, stacked=True), filled(6, 9, stacked=True)
    step = Step(torch.ones(2, 3, 4, dtype=torch.long), torch.rand(2), *torch.rand(3, 2) < 0.5)

    def interrupted(self, observations):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FrameStacks, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            buffer.add(step.observations, torch.tensor([0, 1]), step, step.rewards)
    for each in (buffer, whole):
        each.add(step.observations, torch.tensor([0, 1]), step, step.rewards)
    assert same(buffer.state_dict(), whole.state_dict())
