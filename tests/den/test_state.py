"""Phases as objects, stand-ins as a network's own parts, and states of earlier versions."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from avalanche.core import SupervisedPlugin
from den_cases import NETWORKS, build, grown

from avl_plugins import DENPlugin, InMemoryLoaderPlugin
from avl_plugins.checkpoint.strategy_state import capture, restore
from avl_plugins.den.phases import DRIFT, EXPANSION, FIRST, FULL, HEAD, PHASES, RETRAINING, SPLIT, phases_of
from avl_plugins.den.stand_in import NewUnits, Selected


@pytest.mark.parametrize(
    ("options", "phases"),
    [
        ({}, [HEAD, RETRAINING, EXPANSION, DRIFT, SPLIT]),
        ({"expand": "constant"}, [HEAD, RETRAINING, EXPANSION, DRIFT, SPLIT]),
        ({"split": False}, [HEAD, RETRAINING, EXPANSION]),
        ({"expand": None}, [HEAD, RETRAINING, DRIFT, SPLIT]),
        ({"selective": False}, [FULL, EXPANSION, DRIFT, SPLIT]),
        ({"selective": False, "expand": None, "split": False}, [FULL]),
    ],
)
def test_phases_of_a_task(options, phases):
    plugin = DENPlugin(**options)
    assert phases_of(plugin, 1) == [FIRST]
    assert phases_of(plugin, 2) == phases_of(plugin, 7) == phases
    assert [phase.name for phase in PHASES] == ["first", "full", "head", "retraining", "expansion", "drift", "split"]
    assert repr(SPLIT) == "<phase 'split'>"


def test_coefficients_of_each_phase():
    """Eq. 2 and 3: L1. Eq. 4: squares, and what its code adds. Eq. 5: L1 and group lasso. Eq. 6: drift, L1 kept."""
    plugin = DENPlugin(l1=1, l2=2, group_lasso=3, drift_lambda=4, retraining_drift=5)
    found = {p.name: (p.l1(plugin), p.l2(plugin), p.group_lasso(plugin), p.drift(plugin)) for p in PHASES}
    assert found == {
        "first": (1, 0, 0, 0),
        "full": (1, 0, 0, 5),
        "head": (1, 0, 0, 0),
        "retraining": (0, 2, 0, 5),
        "expansion": (1, 0, 3, 0),
        "drift": (1, 0, 0, 4),
        "split": (1, 0, 0, 4),
    }
    constant = DENPlugin(l1=1, group_lasso=3, expand="constant")
    assert (EXPANSION.l1(constant), EXPANSION.group_lasso(constant)) == (0, 0)


def test_the_current_phase(digits_split):
    class Note(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.seen = []

        def before_training_iteration(self, strategy, **kwargs):
            if not self.seen or self.seen[-1] is not strategy.den.phase:
                self.seen.append(strategy.den.phase)
                with pytest.warns(DeprecationWarning, match="DENPlugin.step is DENPlugin.phase now"):
                    assert strategy.den.step == strategy.den.phase.name

    note = Note()
    strategy = build(plugins=[note], drift_threshold=1e-6)
    assert strategy.den.phase is None
    strategy.train(digits_split.train_stream[:2])
    assert note.seen == [FIRST, HEAD, RETRAINING, EXPANSION, DRIFT, SPLIT]
    assert strategy.den.phase is None
    assert strategy.den.weights_before == []
    with pytest.warns(DeprecationWarning, match="is DENPlugin.phase now"):
        assert strategy.den.step == "done"


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_with_a_stand_in_is_freed_and_copied_as_any_module(kind):
    """It is no part of a cycle, and a copy computes the same with parameters of its own."""
    counts = {"mlp": (2, 2), "conv": (2, 2, 2), "all_conv": (2,)}[kind]
    gc.disable()
    try:
        for make in (
            lambda net: NewUnits(net, counts),
            lambda net: Selected(net, [range(net.hidden[0].layer.weight.shape[1]), *net.units_of(1)]),
        ):
            net, x = grown(kind, counts)
            part = net.put_in_place(make(net))
            with torch.no_grad():
                for parameter in part.parameters():
                    parameter += 0.1
            expected = net(x, 1)
            for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
                assert torch.equal(other(x, 1), expected)
                assert not {id(p) for p in other.parameters()} & {id(p) for p in net.parameters()}
            old = net(x, 0)
            net.write_back(keep=True)
            assert net.stand_in is part
            net.write_back()
            assert net.stand_in is None
            torch.testing.assert_close(net(x, 1), expected, rtol=1e-4, atol=1e-4)
            net.put_in_place(part)
            net.drop_stand_in()
            assert net.stand_in is None
            assert torch.equal(net(x, 0), old) == isinstance(part, NewUnits), "old weights move in the selected part"
            freed = weakref.ref(net)
            del net, part, other
            assert freed() is None
    finally:
        gc.enable()


class Keep(SupervisedPlugin):
    """Copies of the strategy's state at the safe points of the second task, by phase and place."""

    def __init__(self):
        super().__init__()
        self.states = {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        assert state == {}

    def safe_point(self, strategy):
        progress = strategy.progress
        if progress.experience == 1:
            key = (progress.phase, progress.epoch, progress.iteration)
            self.states[key] = copy.deepcopy(capture(strategy))


def as_before(state):
    """The state as an earlier version wrote it."""
    state = copy.deepcopy(state)
    del state["model"]["state"]["_extra_state"]["splits"]
    plugin = next(own for name, own in state["plugins"] if name == "DENPlugin")
    step = plugin.pop("phase")
    plugin |= {"step": step, "expanding": step == "expansion", "splitting": False}
    return state


def test_states_of_earlier_versions_are_gone_on_with(digits_split):
    """In the middle of an epoch and at its end, in each phase: the end is that of a run never interrupted."""

    def make(keep):
        return build(plugins=[InMemoryLoaderPlugin(), keep], loss_threshold=0.0, drift_threshold=1e-3, max_splits=2)

    keep = Keep()
    whole = make(keep)
    whole.train(digits_split.train_stream[:2])
    others = [f"den: {phase.name}" for phase in (RETRAINING, EXPANSION, DRIFT, SPLIT)]
    assert {phase for phase, *_ in keep.states} == {"train", *others}
    for (phase, epoch, iteration), state in keep.states.items():
        if phase == "den: split" or iteration not in (0, 3):  # an earlier version's split reads old and new
            continue
        resumed = make(Keep())
        restore(resumed, as_before(state))
        resumed.train(digits_split.train_stream[1])
        ends = [list(strategy.model.parameters()) for strategy in (whole, resumed)]
        assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True)), (phase, epoch, iteration)
        assert resumed.den.history == whole.den.history
    split = next(state for (phase, *_), state in keep.states.items() if phase == "den: split")
    resumed = make(Keep())
    restore(resumed, split)
    assert isinstance(resumed.model.stand_in, Selected)
    resumed.train(digits_split.train_stream[1])
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


def test_a_state_of_other_phases_is_refused():
    plugin = DENPlugin(selective=False)
    state = DENPlugin().state_dict() | {"phase": "head"}
    with pytest.raises(ValueError, match="entry 'phase' must be None or one of first, full, expansion, drift, split,"):
        plugin.load_state_dict(state)
    assert plugin.phase is None
    plugin.load_state_dict(state | {"phase": "drift"})
    assert plugin.phase is DRIFT
    older = {key: value for key, value in state.items() if key != "phase"}
    plugin.load_state_dict(older | {"step": "done", "expanding": True, "splitting": False})
    assert plugin.phase is None


def test_known_features_are_given_for_a_while():
    """They are taken for their batch and the newest task only, and forgotten, also where something fails."""

    class Given:
        def of(self, x):
            return (torch.ones(5, 11),) if x is batch else None

    net, batch = grown("mlp", (2, 2))
    plain, old = net(batch, 1), net(batch, 0)
    with net.given_features(Given()):
        assert torch.equal(net(batch, 1), net.head_of(1)(torch.ones(5, 11)))
        assert torch.equal(net(batch, 0), old)
        assert torch.equal(net(batch.clone(), 1), plain)
    assert torch.equal(net(batch, 1), plain)
    with pytest.raises(KeyError), net.given_features(Given()):
        raise KeyError
    assert torch.equal(net(batch, 1), plain)
