"""States and files: the scholar is there after a load, a load that fails changes nothing, and plugins are pickled."""

import copy
import pickle

import pytest
import torch
from avalanche.models import MTSimpleMLP
from avalanche.training import Naive
from checkpoint_cases import differences
from dgr_cases import Recorder, build, gan, net, vae
from torch import nn

from avl_plugins import WGANGP, load_checkpoint, save_checkpoint
from avl_plugins.dgr.networks import mlp_critic, mlp_decoder
from avl_plugins.dgr.plugin import DGRPlugin
from avl_plugins.dgr.scholar import Solver


def averaged():
    return WGANGP(
        generator=mlp_decoder(8, (64,), units=(32,), output=nn.Tanh()),
        critic=mlp_critic((64,), units=(32,)),
        latent=8,
        samples=8,
        critic_steps=2,
        average=0.5,
    )


ARMS = {
    "vae": lambda: {"generator": vae()},
    "gan": lambda: {"generator": gan()},
    "averaged": lambda: {"generator": averaged()},
    "own": lambda: {"generator": Recorder()},
    "own, declared": lambda: {"generator": Recorder(data_range=(0, 1))},
    "exact": lambda: {"generator": None, "replay": "exact"},
    "noise": lambda: {"generator": None, "replay": "noise"},
}


def answers(plugin):
    found = plugin.scholar.sample(20, torch.Generator().manual_seed(2))
    return [found.x, *(logits for _, logits in found.heads)]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(params=ARMS)
def arm(request):
    return request.param


@pytest.fixture
def trained(digits_classes, arm):
    strategy = build(epochs=2, **ARMS[arm]())
    strategy.train(digits_classes.train_stream[:2])
    return strategy


def test_the_scholar_is_there_after_a_load(trained, arm, tmp_path):
    save_checkpoint(trained, tmp_path / "run.pt")
    fresh = build(**ARMS[arm]())
    load_checkpoint(fresh, tmp_path / "run.pt")
    assert equal(answers(fresh.dgr), answers(trained.dgr))


def test_a_state_alone_lacks_the_model(trained, arm):
    plugin = DGRPlugin(**ARMS[arm]())
    assert plugin.scholar is None
    plugin.load_state_dict(copy.deepcopy(trained.dgr.state_dict()))
    with pytest.raises(ValueError, match="scholar: the state that was loaded has the solver's weights without"):
        _ = plugin.scholar
    plugin.model = net()
    assert equal(answers(plugin), answers(trained.dgr))


def test_also_in_a_strategy_of_ones_own(digits_classes, arm, tmp_path):
    """No hook has been called yet that would have shown the plugin the model."""
    strategies = [build(strategy=Naive, plugins=[DGRPlugin(generator_iterations=3, **ARMS[arm]())]) for _ in range(2)]
    strategies[0].train(digits_classes.train_stream[:2])
    save_checkpoint(strategies[0], tmp_path / "run.pt")
    load_checkpoint(strategies[1], tmp_path / "run.pt")
    assert equal(*(answers(strategy.plugins[0]) for strategy in strategies))


def test_a_head_a_task_after_a_load(digits_split, tmp_path):
    strategy = build(MTSimpleMLP(input_size=64, hidden_size=20))
    strategy.train(digits_split.train_stream[:3])
    save_checkpoint(strategy, tmp_path / "run.pt")
    fresh = build(MTSimpleMLP(input_size=64, hidden_size=20))
    load_checkpoint(fresh, tmp_path / "run.pt")
    found = answers(fresh.dgr)
    assert len(found) == 4
    assert equal(found, answers(strategy.dgr))


def test_a_solver_of_another_model_is_refused(trained, arm):
    fresh = build(nn.Linear(64, 10), **ARMS[arm]())
    fresh.dgr.load_state_dict(copy.deepcopy(trained.dgr.state_dict()))
    with pytest.raises(ValueError, match=r"model: the old solver has 0.bias, 0.weight, 2.bias, and this one has not"):
        _ = fresh.dgr.scholar


DAMAGE = {
    # What is done to the state, and what the message names.
    "a missing entry": (lambda state: state.pop("tasks"), "entries missing or unknown: .'tasks'"),
    "an unknown entry": (lambda state: state.update(more=1), "entries missing or unknown: .'more'"),
    "a count that is none": (lambda state: state.update(tasks="two"), "its 'tasks' cannot be 'two'"),
    "a bool for a count": (lambda state: state.update(parts=True), "its 'parts' cannot be True"),
    "labels that are none": (lambda state: state.update(classes=[0, "one"]), "its 'classes' cannot be"),
    "a solver without weights": (lambda state: state["solver"].pop("tensors"), "its 'solver' cannot be"),
    "weights that are none": (lambda state: state["solver"]["tensors"].update(more=1), "its 'solver' cannot be"),
    "targets that are none": (
        lambda state: state["solver"].update(targets=["gaussian", "values", "nn"]),
        "its 'solver'",
    ),
    "a range of names": (lambda state: state.update(old_range=["0", "1"]), "its 'old_range' cannot be"),
    "a random state of another size": (
        lambda state: state.update(random=torch.zeros(3)),
        "state.'random'. does not fit",
    ),
    "a random state that is none": (lambda state: state.update(random=[1, 2]), "its 'random' cannot be"),
    "a chunk of another kind": (lambda state: state.update(chunk=[1, 2]), "its 'chunk' cannot be"),
    "a range of three": (lambda state: state.update(range_read=[0, 1, 2]), "its 'range_read' cannot be"),
    "losses in no list": (lambda state: state.update(losses={"kl": 1.0}), "its 'losses' cannot be"),
}
OF_SOURCES = {
    "another source": (lambda state: state.update(source={"mean": 1.0, "std": "x"}), r"state\['source'\] does not fit"),
    "no source": (lambda state: state.update(source=None), "replay: this plugin has|no 'old_generator' after 2 tasks"),
}
OF_GENERATORS = {
    "another generator": (lambda state: state["generator"].popitem(), r"state\['generator'\] does not fit"),
    "another old generator": (lambda state: state["old_generator"].popitem(), r"state\['old_generator'\] does not fit"),
    "no old generator": (lambda state: state.update(old_generator=None), "no 'old_generator' after 2 tasks"),
    "a source": (lambda state: state.update(source={}), "replay: this plugin has 'generated'"),
}


def test_a_load_that_fails_changes_nothing(digits_classes, trained, arm):
    """Not a bit of the next training, with each entry of the state damaged in turn; the error is a ValueError."""
    rest = OF_SOURCES if arm in ("exact", "noise") else OF_GENERATORS
    scholar, source = trained.dgr.scholar, trained.dgr.source
    generator = trained.dgr.generator
    before = copy.deepcopy(trained.dgr.state_dict())
    other = build(epochs=1, **ARMS[arm]())
    torch.manual_seed(77)
    other.train(digits_classes.train_stream[:2])
    for name, (damage, message) in {**DAMAGE, **rest}.items():
        state = copy.deepcopy(other.dgr.state_dict())
        damage(state)
        with pytest.raises(ValueError, match=message):
            trained.dgr.load_state_dict(state)
        assert trained.dgr.scholar is scholar, name
        assert trained.dgr.source is source
        assert trained.dgr.generator is generator
        assert differences(trained.dgr.state_dict(), before) == [], name


@pytest.mark.parametrize("arm", ["vae", "averaged"], indirect=True)
@pytest.mark.parametrize("when", [1, 2])
def test_an_interruption_in_a_generator_changes_nothing(trained, arm, when, monkeypatch):
    """In the one that learns, of which some weights have been filled, and in the copy for the old one."""
    before = copy.deepcopy(trained.dgr.state_dict())
    kind, calls = type(trained.dgr.generator), []
    load = kind.load_state_dict

    def interrupted(self, *args, **options):
        calls.append(self)
        if len(calls) == when:
            next(self.parameters()).data.fill_(7.0)
            raise KeyboardInterrupt
        return load(self, *args, **options)

    monkeypatch.setattr(kind, "load_state_dict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.dgr.load_state_dict(build(**ARMS[arm]()).dgr.state_dict() | {"old_generator": before["generator"]})
    assert differences(trained.dgr.state_dict(), before) == []


def test_an_interruption_in_the_random_state_changes_nothing(trained, arm):
    before, scholar = copy.deepcopy(trained.dgr.state_dict()), trained.dgr.scholar
    trained.dgr._random = Interrupting(trained.dgr._random)
    other = build(**ARMS[arm]()).dgr.state_dict()
    with pytest.raises(KeyboardInterrupt):
        trained.dgr.load_state_dict(other if arm[:3] != "own" else other | {"generator": {"seen": torch.zeros(1, 64)}})
    assert differences(trained.dgr.state_dict(), before) == []
    assert trained.dgr.scholar is scholar


class Interrupting:
    """A random generator whose state is set by halves, once."""

    def __init__(self, generator):
        self.generator, self.interrupts = generator, True

    def get_state(self):
        return self.generator.get_state()

    def set_state(self, state):
        self.generator.set_state(state)
        if self.interrupts:
            self.interrupts = False
            raise KeyboardInterrupt


def test_a_failed_load_of_a_file_keeps_the_scholar(digits_classes, trained, arm, tmp_path):
    """The model fits and is filled; the plugin, later in the file, does not."""
    other = build(epochs=1, **(ARMS["noise"]() if arm == "exact" else ARMS["exact"]()))
    other.train(digits_classes.train_stream[:1])
    save_checkpoint(other, tmp_path / "other.pt")
    before = answers(trained.dgr)
    with pytest.raises(ValueError, match="the saved state does not fit this strategy, which is left as it was"):
        load_checkpoint(trained, tmp_path / "other.pt")
    assert equal(answers(trained.dgr), before)
    fresh = build(**ARMS[arm]())
    with pytest.raises(ValueError, match="does not fit this strategy"):
        load_checkpoint(fresh, tmp_path / "other.pt")
    assert fresh.dgr.scholar is None
    fresh.train(digits_classes.train_stream[:1])


def test_a_plugin_is_pickled_with_what_it_has_learnt(trained, arm):
    for twin in (pickle.loads(pickle.dumps(trained.dgr)), copy.deepcopy(trained.dgr)):
        assert equal(answers(twin), answers(trained.dgr))
        assert differences(twin.state_dict(), trained.dgr.state_dict()) == []


def test_a_pickled_plugin_goes_on_as_the_one_it_was(digits_classes, trained, arm):
    plugin = pickle.loads(pickle.dumps(trained.dgr))
    model = net()
    model.load_state_dict(trained.model.state_dict())
    strategy = build(model, strategy=Naive, epochs=2, plugins=[plugin])
    for one in (trained, strategy):
        torch.manual_seed(5)
        one.train(digits_classes.train_stream[2])
    assert equal(trained.model.parameters(), model.parameters())
    assert differences(plugin.state_dict(), trained.dgr.state_dict()) == []


def test_states_from_before_are_taken(trained, arm):
    """Without parts, ranges of old generators, shapes, and what outputs mean."""
    state = copy.deepcopy(trained.dgr.state_dict())
    for name in ("parts", "old_range", "shape"):
        del state[name]
    del state["solver"]["targets"]
    if arm == "noise":
        del state["source"]["dtype"]
    fresh = build(**ARMS[arm]())
    fresh.dgr.load_state_dict(state)
    assert equal(answers(fresh.dgr), answers(trained.dgr))


def test_a_solver_moves():
    solver = Solver(net(), classes=None).to("meta")
    assert {value.device.type for value in (*solver.tensors.values(), *solver.skeleton.parameters())} == {"meta"}
