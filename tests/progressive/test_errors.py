"""What progressive networks refuse in a strategy, before anything is trained: data, sharing, states."""

import copy
import math

import pytest
import torch
from avalanche.benchmarks import dataset_benchmark
from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as tensor_dataset
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from progressive_runs import build, column
from torch import nn

from avl_plugins import (
    InMemoryLoaderPlugin,
    Progressive,
    ProgressiveNetwork,
    ProgressivePlugin,
    average_fisher_sensitivity,
    average_perturbation_sensitivity,
)


def data(label, *, bad=None, n=40):
    """Samples of a task, one of which may have a value that is not finite."""
    x = torch.rand(n, 64, generator=torch.Generator().manual_seed(label))
    if bad is not None:
        x[-1, 3] = bad
    return tensor_dataset(x, torch.arange(n) % 2, task_labels=[label] * n)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("task", [0, 1])
def test_data_that_are_not_finite(bad, task, cached):
    benchmark = dataset_benchmark([data(label, bad=bad if label == task else None) for label in (0, 1)], [data(0)])
    strategy = build(ProgressiveNetwork(plain()), plugins=[InMemoryLoaderPlugin()], cache_bytes=2**32 * cached)
    text = rf"inputs of experience {task}, step \d+ have NaN or infinite values: clean the data set, or its transforms"
    with pytest.raises(ValueError, match=text):
        strategy.train(benchmark.train_stream)
    assert all(p.isfinite().all() for p in strategy.model.parameters())


def plain():
    return nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU())


def test_a_loss_that_diverges(digits_split):
    class Spoil(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            if strategy.clock.train_exp_iterations == 3:
                strategy.loss = strategy.loss * math.inf

    strategy = build(plugins=[Spoil()])
    with pytest.raises(ValueError, match=r"the loss is inf in experience 0, step 3. Lower the learning rate"):
        strategy.train(digits_split.train_stream[0])
    assert all(p.isfinite().all() for p in strategy.model.parameters())


@pytest.mark.parametrize("task", [0, 1])
def test_empty_experiences(task):
    sets = [data(0), data(1)]
    sets[task] = sets[task].subset([])
    strategy = build()
    with pytest.raises(ValueError, match=f"experience {task} is empty: ProgressivePlugin has nothing to learn from"):
        strategy.train(dataset_benchmark(sets, [data(0)]).train_stream)
    assert strategy.model.labels == list(range(task))
    assert len(strategy.model.columns) == 1
    assert not any(column.frozen for column in strategy.model.columns)


def test_a_plugin_or_network_that_two_strategies_share(digits_split):
    def naive(model, plugin):
        return Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1), plugins=[plugin])

    net, plugin, other = ProgressiveNetwork(plain()), ProgressivePlugin(), ProgressiveNetwork(plain())
    first = naive(net, plugin)
    first.train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match="plugin: another strategy has trained it"):
        naive(other, plugin).train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match="model: another strategy has trained it"):
        naive(net, ProgressivePlugin()).train(digits_split.train_stream[1])
    assert (net.labels, other.labels) == ([0], [])
    first.train(digits_split.train_stream[1])
    naive(copy.deepcopy(net), ProgressivePlugin()).train(digits_split.train_stream[2])
    assert net.labels == [0, 1]


def test_several_processes(monkeypatch):
    strategy = build()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="ProgressivePlugin does not serve distributed training"):
        strategy.progressive.before_training(strategy)


def test_wrapped_networks(digits_split):
    for wrap in (nn.DataParallel, torch.compile):
        strategy = build()
        strategy.model = wrap(strategy.model)
        with pytest.raises(TypeError, match=r"the model is a \w+; .*not inside DataParallel or torch.compile"):
            strategy.train(digits_split.train_stream[0])
        with pytest.raises(TypeError, match="model must be a ProgressiveNetwork, got a"):
            Progressive(model=wrap(ProgressiveNetwork(plain())), optimizer=None)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (None, "the state of a ProgressivePlugin must be a dict, got NoneType"),
        ({"parts": -1}, "entry 'parts' must be an integer >= 0, got -1"),
        ({"parts": None}, "entry 'parts' must be an integer >= 0, got None"),
        ({"parts": 2, "columns": 3}, "entry 'columns' is unknown"),
    ],
)
def test_a_plugins_state_that_does_not_fit_changes_nothing(state, text):
    plugin = ProgressivePlugin()
    plugin.load_state_dict({"parts": 3})
    with pytest.raises(ValueError, match=text):
        plugin.load_state_dict(state)
    assert plugin.state_dict() == {"parts": 3}
    plugin.load_state_dict({})  # of an earlier version
    assert plugin.state_dict() == {"parts": 0}


def values(net):
    return {
        "tensors": {name: value.clone() for name, value in net.state_dict().items() if name != "_extra_state"},
        "shape": copy.deepcopy(net.get_extra_state()),
        "identity": [id(p) for p in net.parameters()],
        "trainable": [p.requires_grad for p in net.parameters()],
        "classes": (net.max_class_label, set(net.known_train_tasks_labels)),
    }


def same(one, other):
    plain = [{key: value for key, value in each.items() if key != "tensors"} for each in (one, other)]
    tensors, others = one["tensors"], other["tensors"]
    equal = tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)
    return equal and plain[0] == plain[1]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"columns": None}, "entry 'columns' must be a list of dicts of label, classes, frozen, got None"),
        ({"columns": [{"label": 0, "classes": [0, 1]}]}, "entry 'columns' must be a list of dicts"),
        ({"columns": [{"label": 0, "classes": 2, "frozen": True}]}, "entry 'columns' must be a list of dicts"),
        ({"columns": [{"label": "0", "classes": [0], "frozen": True}]}, "entry 'columns' must be a list of dicts"),
        ({"columns": [7]}, "entry 'columns' must be a list of dicts"),
        ({"training_on": [0]}, "entry 'training_on' must be a task label and the number of an experience, or None"),
        ({"more": 1}, "entry 'more' is unknown"),
    ],
)
def test_a_networks_state_that_does_not_fit_changes_nothing(change, text):
    net, fresh = ProgressiveNetwork(plain()), ProgressiveNetwork(plain())
    for label in range(3):
        net.add_task(label, 2)
    state, before = net.state_dict(), values(fresh)
    state["_extra_state"] = {**state["_extra_state"], **change}
    with pytest.raises(ValueError, match=f"this is not the state of a ProgressiveNetwork: {text}"):
        fresh.load_state_dict(state)
    assert same(values(fresh), before)
    del state["_extra_state"]["training_on"]
    with pytest.raises(ValueError, match="this is not the state of a ProgressiveNetwork: entry"):
        fresh.load_state_dict(state)
    assert same(values(fresh), before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_a_load_that_is_interrupted_leaves_the_network_as_it_was(error, monkeypatch):
    net, fresh = ProgressiveNetwork(column()), ProgressiveNetwork(column())
    for label in range(3):
        net.add_task(label, 2)
    fresh.add_task(0, 2)
    before, random = values(fresh), torch.get_rng_state()

    def fail(self, *args):
        raise error("in the middle")

    monkeypatch.setattr(nn.BatchNorm1d, "_load_from_state_dict", fail)
    with pytest.raises(error, match="in the middle"):
        fresh.load_state_dict(net.state_dict())
    monkeypatch.undo()
    assert same(values(fresh), before)
    assert torch.equal(torch.get_rng_state(), random)
    fresh.load_state_dict(net.state_dict())
    assert same({**values(fresh), "identity": 0}, {**values(net), "identity": 0})


class Autocast(ProgressiveNetwork):
    """Computes every pass in bfloat16, those of the analyses, too."""

    def forward_single_task(self, x, task_label, tap=None):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward_single_task(x, task_label, tap)


@pytest.mark.parametrize("cached", [True, False])
def test_autocast_in_forward(digits_split, cached):
    strategy = build(
        Autocast(plain()), "adamw", plugins=[InMemoryLoaderPlugin()], cache_bytes=2**32 * cached, train_epochs=15
    )
    strategy.train(digits_split.train_stream[:3])
    results = strategy.eval(digits_split.test_stream[:3])
    assert min(value for name, value in results.items() if "Acc_Exp" in name) > 0.9
    net = strategy.model.eval()
    x = torch.stack([x for x, *_ in digits_split.test_stream[2].dataset])
    single = net.to_single_task(2)
    with torch.no_grad():
        assert net(x, 2).dtype == torch.bfloat16
        torch.testing.assert_close(net(x, 2).float(), single(x), rtol=0.05, atol=0.1)
    y = single(x).argmax(1)
    full = ProgressiveNetwork(plain())
    full.load_state_dict(net.state_dict())
    for measure, batches in ((average_fisher_sensitivity, [x]), (average_perturbation_sensitivity, [(x, y)])):
        expected, found = measure(full, batches, 2).layers, measure(net, batches, 2).layers
        torch.testing.assert_close(found, expected, rtol=0.2, atol=0.05)
