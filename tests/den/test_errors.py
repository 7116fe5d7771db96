"""What DEN refuses in a strategy, before anything is trained: data, streams, criteria, sharing, states."""

import copy
import functools
import math

import pytest
import torch
from avalanche.benchmarks import dataset_benchmark, split_online_stream, with_task_labels
from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as tensor_dataset
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from den_cases import NETWORKS, build, grown, mlp
from torch import nn

from avl_plugins import DEN, DENPlugin, DynamicallyExpandableNetwork, InMemoryLoaderPlugin
from avl_plugins.den.stand_in import NewUnits
from benchmarks.data.arrays import permuted


def data(label, *, bad=None, n=40, classes=2, at=-1):
    """Samples of a task, one of which may have a value that is not finite."""
    generator = torch.Generator().manual_seed(label)
    x = torch.rand(n, 64, generator=generator)
    if bad is not None:
        x[at, 3] = bad
    return tensor_dataset(x, torch.arange(n) % classes, task_labels=[label] * n)


def everything(strategy):
    """All that a refusal may not change, as values."""
    net, den = strategy.model, strategy.den
    return {
        "tensors": {name: p.detach().clone() for name, p in net.named_parameters()},
        "shape": copy.deepcopy(net.get_extra_state()),
        "plugin": copy.deepcopy({k: v for k, v in den.state_dict().items() if k != "weights_before"}),
        "trainable": {name: p.requires_grad for name, p in net.named_parameters()},
        "labels": net.labels,
        "groups": [[id(p) for p in group["params"]] for group in strategy.optimizer.param_groups],
    }


def same(one, other):
    tensors, others = one["tensors"], other["tensors"]
    plain = [{key: value for key, value in each.items() if key != "tensors"} for each in (one, other)]
    equal = tensors.keys() == others.keys() and all(torch.equal(tensors[k], others[k]) for k in tensors)
    return equal and plain[0] == plain[1]


@pytest.mark.parametrize("loader", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("task", [0, 1])
def test_data_that_are_not_finite(bad, task, loader):
    """Parameters stay finite, and the message says where to look: neither l1 nor the learning rate is to blame."""
    benchmark = dataset_benchmark([data(label, bad=bad if label == task else None) for label in (0, 1)], [data(0)])
    strategy = build(plugins=[InMemoryLoaderPlugin()] * loader)
    text = rf"inputs of experience {task}, step \d+ have NaN or infinite values: clean the data set, or its transforms"
    with pytest.raises(ValueError, match=text):
        strategy.train(benchmark.train_stream)
    assert all(p.isfinite().all() for p in strategy.model.parameters())


def test_a_loss_that_diverges_names_the_phase():
    """In each phase, from the one that a plugin of the user's spoils on."""

    class Spoil(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            if strategy.den.phase.name == self.phase:
                strategy.loss = strategy.loss * math.inf

    benchmark = dataset_benchmark([data(0), data(1)], [data(0)])
    for phase in ("first", "head", "retraining", "expansion", "drift", "split"):
        spoil = Spoil()
        spoil.phase = phase
        strategy = build(plugins=[spoil], drift_threshold=1e-6)
        text = rf"the loss is inf in experience {int(phase != 'first')}, step \d+. Lower .*\(phase: {phase}\)"
        with pytest.raises(ValueError, match=text):
            strategy.train(benchmark.train_stream)


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(reduction="none"),
        functools.partial(nn.functional.cross_entropy, reduction="sum"),
    ],
)
def test_a_criterion_that_is_a_sum(criterion, digits_split):
    strategy = build(criterion=criterion)
    before = everything(strategy)
    with pytest.raises(ValueError, match="criterion must be a mean over the mini-batch, as DENPlugin compares"):
        strategy.train(digits_split.train_stream[0])
    assert same(everything(strategy), before)


@pytest.mark.parametrize("task", [0, 1])
def test_empty_experiences(task):
    sets = [data(0), data(1)]
    sets[task] = sets[task].subset([])
    benchmark = dataset_benchmark(sets, [data(0)])
    strategy = build()
    for number in range(task):
        strategy.train(benchmark.train_stream[number])
    before = everything(strategy)
    with pytest.raises(ValueError, match=f"experience {task} is empty: DENPlugin has nothing to learn from; leave it"):
        strategy.train(benchmark.train_stream[task])
    assert same(everything(strategy), before)


@pytest.mark.filterwarnings("ignore:stream generators will be converted to a list")
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("labelled", [True, False])
def test_online_streams(digits_split, known, labelled):
    """A part is no data set to select, expand and split on."""
    stream = split_online_stream(digits_split.train_stream, 20, access_task_boundaries=known)
    strategy = build()
    with pytest.raises(
        ValueError, match=r"again and again .*, which an online stream does not allow: train on the exp"
    ):
        strategy.train(with_task_labels(stream) if labelled else stream)
    assert strategy.model.labels == []


def test_a_label_that_comes_back(digits_arrays):
    """Its head is not trained again; what there is stays as it is."""
    stream = permuted(digits_arrays, 2, seed=0, task_labels=True).train_stream
    strategy = build()
    strategy.train(stream)
    for experience in stream:
        before = everything(strategy)
        with pytest.raises(ValueError, match=r"there is a head for task . already, and it is not trained again"):
            strategy.train(experience)
        assert same(everything(strategy), before)


def test_a_plugin_or_network_that_two_strategies_share(digits_split):
    plugin, net = DENPlugin(), mlp()

    def naive(model, den):
        return Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1), plugins=[den])

    first = naive(net, plugin)
    first.train(digits_split.train_stream[0])
    other = mlp()
    with pytest.raises(ValueError, match="plugin: another strategy has trained it"):
        naive(other, plugin).train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match="model: another strategy has trained it"):
        naive(net, DENPlugin()).train(digits_split.train_stream[1])
    assert (net.labels, other.labels) == ([0], [])
    first.train(digits_split.train_stream[1])
    del first
    naive(net, DENPlugin()).train(digits_split.train_stream[2])
    assert net.labels == [0, 1, 2]


def test_several_processes(digits_split, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    strategy = build()
    with pytest.raises(ValueError, match="DENPlugin does not serve distributed training"):
        DENPlugin.before_training(strategy.den, strategy)
    assert strategy.model.labels == []


def test_wrapped_networks(digits_split):
    for wrap in (nn.DataParallel, torch.compile):
        strategy = build()
        strategy.model = wrap(strategy.model)
        with pytest.raises(TypeError, match=r"the model is a \w+; .*not inside DataParallel or torch.compile"):
            strategy.train(digits_split.train_stream[0])
        with pytest.raises(TypeError, match="model must be a DynamicallyExpandableNetwork, got a"):
            DEN(model=wrap(mlp()), optimizer=None)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (
            [data(0)],
            "validation_stream must have an experience for each that is trained on, got 1, and this is exp.* 1",
        ),
        ([data(0), data(1, n=0)], "validation_stream: its experience 1 is empty"),
        ([data(0), data(2)], r"its experience 1 has the task labels \[2\], the one that is trained on \[1\]"),
        ([data(0), data(1, classes=3)], "its experience 1 has classes that the one trained on has not"),
        ([data(0), data(1, bad=math.nan)], "validation_stream: the loss of task 1 on it is nan; clean it"),
    ],
)
def test_validation_data_are_looked_at_before_the_task(other, text):
    benchmark = dataset_benchmark([data(0), data(1)], other)
    watch = Watch()
    strategy = build(plugins=[watch], validation_stream=benchmark.test_stream)
    with pytest.raises(ValueError, match=text):
        strategy.train(benchmark.train_stream)
    assert watch.steps == 2 * math.ceil(40 / 16), "the first task's"


class Watch(SupervisedPlugin):
    steps = 0

    def after_training_iteration(self, strategy, **kwargs):
        self.steps += 1


CHANGES = [
    ("phase", "twice", "entry 'phase' must be None or one of first, head, retraining, .*got 'twice'"),
    ("phase", ["head"], "entry 'phase' must be None or one of"),
    ("phase", "full", "entry 'phase' must be None or one of first, head, retraining, expansion, drift, split, got"),
    ("step", "twice", "entry 'phase' must be None or one of"),
    ("history", {}, "entry 'history' must be a list of dicts"),
    ("history", [{"selected": []}], "entry 'history' must be a list of dicts"),
    ("weights_before", [torch.zeros(2)], "entry 'weights_before' must be a weight, and a bias or None, for each layer"),
    ("weights_before", [[torch.zeros(2), 1]], "entry 'weights_before' must be a weight"),
    ("expanding", True, "entry 'expanding' is unknown"),
    ("losses", [True], "entry 'losses' must be a list of numbers"),
    ("running", [1.0], "entry 'running' must be two numbers"),
    ("groups", {"a": -1}, "entry 'groups' must be a dict of numbers of parameter groups"),
    ("more", 1, "entry 'more' is unknown"),
    *((name, ..., f"entry '{name}' is missing") for name in DENPlugin().state_dict()),
]


@pytest.mark.parametrize(("name", "value", "text"), CHANGES)
def test_a_plugins_state_that_does_not_fit_changes_nothing(name, value, text):
    state = {**DENPlugin().state_dict(), "losses": [0.5], "phase": "drift", "history": [{"label": 3}], name: value}
    if value is ...:
        del state[name]
    plugin = DENPlugin()
    before = plugin.state_dict()
    with pytest.raises(ValueError, match=f"this is not the state of a DENPlugin: {text}"):
        plugin.load_state_dict(state)
    assert plugin.state_dict() == before
    with pytest.raises(ValueError, match="the state of a DENPlugin must be a dict, got NoneType"):
        plugin.load_state_dict(None)


def values(net):
    return {
        "tensors": {name: value.clone() for name, value in net.state_dict().items() if name != "_extra_state"},
        "shape": copy.deepcopy(net.get_extra_state()),
        "identity": [id(p) for p in net.parameters()],
        "classes": (net.max_class_label, set(net.known_train_tasks_labels)),
    }


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"stamps": None}, "entry 'stamps' must be a list of integers for each layer"),
        ({"stamps": [[1] * 14]}, "the network has 2 hidden layers, the state 1"),
        ({"stamps": [[1] * 12 + [2, 1], [1] * 9 + [2] * 2]}, "units whose stamps are not in order"),
        ({"splits": [[0] * 3, [0] * 11]}, "stamps and splits of different numbers of units"),
        ({"splits": [["a"] * 14, [0] * 11]}, "entry 'splits' must be a list of integers for each layer"),
        ({"heads": {"0": [9]}}, "entry 'heads' must be a dict of inputs and outputs"),
        ({"heads": [9, 3]}, "entry 'heads' must be"),
        ({"training_on": 3}, "entry 'training_on' must be a task label and the number of an experience, or None"),
        ({"stand_in": {"kind": "other"}}, "stand_in: no phase trains a part of the shape"),
        ({"stand_in": {"kind": "new", "added": [-1, 2]}}, "stand_in: no phase trains"),
        ({"stand_in": {"kind": "selected"}}, "stand_in: no phase trains"),
        ({"stand_in": 3}, "entry 'stand_in' must be a dict, or None"),
        ({"other": 3}, "entry 'other' is unknown"),
    ],
)
def test_a_networks_state_that_does_not_fit_changes_nothing(change, text):
    net, _ = grown("mlp", (2, 2))
    state = net.state_dict()
    state["_extra_state"] = {**state["_extra_state"], **change}
    fresh = mlp()
    before = values(fresh)
    with pytest.raises(ValueError, match=text):
        fresh.load_state_dict(state)
    assert same(values(fresh), before)
    del state["_extra_state"]["heads"]
    with pytest.raises(ValueError, match="not the state of a DynamicallyExpandableNetwork"):
        fresh.load_state_dict(state)
    assert same(values(fresh), before)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_a_load_that_is_interrupted_leaves_the_network_as_it_was(kind, error, monkeypatch):
    counts = {"mlp": (2, 2), "conv": (2, 2, 2), "all_conv": (2,)}[kind]
    net, x = grown(kind, counts)
    net.put_in_place(NewUnits(net, counts))
    fresh = NETWORKS[kind]().eval()
    fresh.add_task(0, 3)
    before, logits = values(fresh), fresh(x, 0)

    def fail(self, *args):
        raise error("in the middle")

    monkeypatch.setattr(nn.Linear, "_load_from_state_dict", fail)
    with pytest.raises(error, match="in the middle"):
        fresh.load_state_dict(net.state_dict())
    monkeypatch.undo()
    assert same(values(fresh), before)
    assert torch.equal(fresh(x, 0), logits)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x, 1), net(x, 1))


@pytest.mark.parametrize("phase", ["first", "head", "retraining", "expansion", "drift", "split"])
def test_an_interrupted_task_can_be_trained_again(digits_split, phase):
    """And saved and evaluated in between; then every parameter is trained, once, and units are in order."""

    class Interrupt(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            if self.armed and strategy.den.phase.name == phase and strategy.clock.train_epoch_iterations == 2:
                self.armed = False
                raise KeyboardInterrupt

    interrupt = Interrupt()
    interrupt.armed = phase == "first"
    strategy = build(plugins=[InMemoryLoaderPlugin(), interrupt], drift_threshold=1e-3, max_splits=2)
    for number in range(2):
        if number == 1:
            interrupt.armed = phase != "first"
        try:
            strategy.train(digits_split.train_stream[number])
        except KeyboardInterrupt:
            assert all(p.isfinite().all() for p in strategy.model.parameters())
            strategy.eval(digits_split.test_stream[: number + 1])
            strategy.train(digits_split.train_stream[number])
    assert not interrupt.armed
    assert strategy.model.labels == [0, 1]
    assert strategy.model.stand_in is None
    assert strategy.den.phase is None
    assert [entry["label"] for entry in strategy.den.history] == [0, 1]
    held = [p for group in strategy.optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in strategy.model.parameters()}
    assert all(layer.stamps == sorted(layer.stamps) for layer in strategy.model.hidden)


class Autocast(DynamicallyExpandableNetwork):
    def forward(self, x, task_labels):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x, task_labels)


def test_autocast_in_forward(digits_split):
    """All phases run in bfloat16; outputs agree with those in float32 to its precision."""
    net = Autocast(nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU()))
    strategy = build(net, plugins=[InMemoryLoaderPlugin()], drift_threshold=0.02, epochs=10)
    strategy.train(digits_split.train_stream[:3])
    results = strategy.eval(digits_split.test_stream[:3])
    assert all(sum(entry["split"]) for entry in strategy.den.history[1:])
    assert min(value for name, value in results.items() if "Acc_Exp" in name) > 0.9
    x = torch.rand(20, 64)
    with torch.no_grad():
        for label in range(3):
            expected = net.forward_single_task(x, label)
            assert (net(x, label).dtype, expected.dtype) == (torch.bfloat16, torch.float32)
            torch.testing.assert_close(net(x, label).float(), expected, rtol=0.05, atol=0.05)
    assert all(p.dtype == torch.float32 for p in net.parameters())
