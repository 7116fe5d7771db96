"""The state of a progressive network: filling networks that have grown partly, and leaving alone what does not fit."""

import copy

import pytest
import torch
from torch import nn

from avl_plugins import ProgressiveNetwork


def column(width=10):
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 8), nn.ReLU())


def network(tasks, width=10, **options):
    net = ProgressiveNetwork(column(width), **options)
    for label in range(tasks):
        net.add_task(label, 2)
    return net


def everything(net):
    """All that a load may change, as values."""
    return {
        "tensors": {name: value.clone() for name, value in net.state_dict().items() if name != "_extra_state"},
        "shape": copy.deepcopy(net.get_extra_state()),
        "modes": {name: module.training for name, module in net.named_modules()},
        "trainable": {name: p.requires_grad for name, p in net.named_parameters()},
        "identity": [id(p) for p in net.parameters()],
        "classes": (net.max_class_label, set(net.known_train_tasks_labels)),
    }


def same(one, other):
    tensors, others = one.pop("tensors"), other.pop("tensors")
    return one == other and tensors.keys() == others.keys() and all(map(torch.equal, tensors.values(), others.values()))


@pytest.mark.parametrize("grown", [0, 1, 2, 3])
def test_a_partly_grown_network_grows_the_rest(grown):
    net, other = network(3), network(grown)
    kept = [id(p) for p in other.parameters()]
    other.load_state_dict(net.state_dict())
    assert {id(p) for p in other.parameters()} >= set(kept)  # those that an optimizer already has
    assert other.labels == [0, 1, 2]
    assert [c.frozen for c in other.columns] == [True, True, False]
    assert [c.training for c in other.columns] == [False, False, True]
    x = torch.randn(5, 6)
    assert all(torch.equal(net.eval()(x, label), other.eval()(x, label)) for label in range(3))
    assert other.max_class_label == 2


@pytest.mark.parametrize(
    ("grown", "saved", "error"),
    [
        *((grown, {"tasks": 3, "width": 12}, "size mismatch") for grown in (0, 2)),
        *((grown, {"tasks": 3, "adapter": kind}, "Missing key") for grown in (0, 2) for kind in ("linear", None)),
        (2, {"tasks": 1}, r"the network has columns for the tasks \[0, 1\], the state for \[0\]"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(grown, saved, error):
    net = network(grown)
    before = everything(net)
    with pytest.raises((RuntimeError, ValueError), match=error):
        net.load_state_dict(network(**saved).state_dict())
    assert same(everything(net), before)
    net.add_task(7, 2)
    assert net(torch.randn(5, 6), 7).shape == (5, 2)


def test_heads_for_other_classes_are_refused():
    """As many outputs, and others of them masked."""
    net, other = ProgressiveNetwork(column()), ProgressiveNetwork(column())
    net.add_task(0, [0, 1, 4])
    other.add_task(0, 5)
    with pytest.raises(ValueError, match=r"for the classes \{0: \[0, 1, 2, 3, 4\]\}, those of the state .*\[0, 1, 4\]"):
        other.load_state_dict(net.state_dict())
    assert other.columns[0].classes == (0, 1, 2, 3, 4)


def test_a_column_that_is_trained_again_is_in_training_mode_after_loading():
    """Its batch statistics would stand still otherwise."""
    net = network(2, retrain=True)
    fresh = copy.deepcopy(net)
    with pytest.warns(UserWarning, match="read the features of task 0"):
        net._train_again(0, [0, 1])
    fresh.load_state_dict(net.state_dict())
    assert [c.frozen for c in fresh.columns] == [False, True]
    assert fresh.columns[0].stages[0].after[0].training
    assert not fresh.columns[1].stages[0].after[0].training


def test_what_is_frozen_by_hand_in_the_newest_column_stays_so():
    net, other = network(2), network(1)
    other.columns[0].stages[0].layer.weight.requires_grad_(False)
    other.load_state_dict(network(1).state_dict())
    assert not other.columns[0].stages[0].layer.weight.requires_grad
    other.load_state_dict(net.state_dict())
    assert not any(p.requires_grad for p in other.columns[0].parameters())
    assert all(p.requires_grad for p in other.columns[1].parameters())
