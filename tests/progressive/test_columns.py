"""Columns of less usual layers, columns from a function, and labels of any integer type."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from avl_plugins import ProgressiveNetwork

KINDS = ["mlp", "linear", None]


def mlp():
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU())


def network(column, kind="mlp", tasks=3, **options):
    net = ProgressiveNetwork(column, adapter=kind, **options)
    for label in range(tasks):
        net.add_task(label, 2)
    return net


UNUSUAL = {
    "halved by GLU": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.GLU(1), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10), nn.GLU()
        ),
        {"features": 5},
        (4, 3, 8, 8),
    ),
    "units to maps": (
        lambda: nn.Sequential(
            nn.Linear(6, 36), nn.ReLU(), nn.Unflatten(1, (4, 3, 3)), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 5)
        ),
        {},
        (4, 6),
    ),
    "linear over positions, a multiple of the maps": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Linear(16, 6), nn.Flatten(), nn.Linear(48, 7)),
        {},
        (4, 3, 18),
    ),
    "linear over positions": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Linear(15, 6), nn.Flatten(), nn.Linear(48, 7)),
        {},
        (4, 3, 17),
    ),
    "groups and circular padding": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular"),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=2, padding="same", padding_mode="circular"),
            nn.Flatten(),
            nn.Linear(144, 5),
        ),
        {},
        (4, 2, 6, 6),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", UNUSUAL)
def test_less_usual_layers(name, kind):
    """Every earlier column is read, and their features computed beforehand give the same."""
    make, options, size = UNUSUAL[name]
    net = network(make(), kind, **options).double()
    x = torch.randn(size, dtype=torch.float64)
    expected = net(x, 2)
    assert expected.shape == (4, 2)
    if kind is not None:
        with net.given_features(net.frozen_features(x)):
            torch.testing.assert_close(net(x, 2), expected, rtol=1e-10, atol=1e-10)
    for earlier in (0, 1):
        changed = copy.deepcopy(net)
        with torch.no_grad():
            changed.columns[earlier].stages[0].layer.weight += 0.1
        assert torch.equal(changed(x, 2), expected) == (kind is None)


@pytest.mark.parametrize(
    "norm",
    [
        nn.InstanceNorm1d,
        lambda width: nn.LayerNorm((width, 6), elementwise_affine=False),
        lambda width: nn.BatchNorm1d(width, affine=False, track_running_stats=False),
        lambda width: nn.GroupNorm(2, width, affine=False),
    ],
)
def test_normalisation_without_parameters_may_have_another_width(norm):
    def make(index):
        width = 4 + 2 * index
        return nn.Sequential(nn.Conv1d(1, width, 3), norm(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 6, 5))

    assert network(make)(torch.randn(3, 1, 8), 2).shape == (3, 2)


def test_convolutions_to_the_end_with_a_width_for_each_column():
    def make(index):
        return nn.Sequential(nn.Conv2d(1, 4 + index, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    net = network(make, features=lambda index: 4 + index)
    assert [column.head.layer.in_features for column in net.columns] == [4, 5, 6]
    assert net(torch.randn(3, 1, 8, 8), 2).shape == (3, 2)


def test_a_function_that_returns_the_same_layers_is_refused():
    """The new column would be frozen with the old one, or its batch statistics would move the old one's."""
    layers, norm = mlp(), nn.BatchNorm1d(8, affine=False)
    for function in (lambda index: layers, lambda index: nn.Sequential(nn.Linear(6, 8), norm)):
        net = network(function, tasks=1)
        with pytest.raises(ValueError, match="column: the function has returned layers of an earlier column"):
            net.add_task(1, 2)
        assert net.labels == [0]
        assert all(p.requires_grad for p in net.parameters())


def test_labels_of_any_integer_type_become_ints():
    net = ProgressiveNetwork(mlp())
    net.add_task(np.int64(3), np.int64(2))
    net.add_task(torch.tensor(1), torch.tensor([0, 1, 1]))
    assert net.labels == [3, 1]
    assert [type(label) for label in net.labels] == [int, int]
    assert [column.classes for column in net.columns] == [(0, 1), (0, 1)]
    x = torch.randn(4, 6)
    assert torch.equal(net.eval()(x, np.int64(3)), net(x, torch.full((4,), 3)))
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["_extra_state"]["columns"][0]["label"] == 3


@pytest.mark.parametrize(
    ("label", "classes", "message"),
    [
        ("a", 2, "label must be an integer, as Avalanche's task labels are, got 'a'"),
        (1.5, 2, "label must be an integer"),
        (0, 2.0, "classes must be a number of classes or their integer labels, got 2.0"),
        (0, ["cat"], "classes must be"),
    ],
)
def test_labels_that_are_no_integers(label, classes, message):
    net = ProgressiveNetwork(mlp())
    with pytest.raises(TypeError, match=message):
        net.add_task(label, classes)
    assert net.labels == []


def test_one_column_has_no_frozen_features():
    with pytest.raises(ValueError, match="no frozen features yet: the network has one column"):
        network(mlp(), tasks=1).frozen_features(torch.randn(4, 6))


def test_a_network_can_be_pickled():
    net = network(mlp())
    again = pickle.loads(pickle.dumps(net)).eval()
    again.add_task(9, 2)
    x = torch.randn(4, 6)
    assert torch.equal(again(x, 1), net.eval()(x, 1))
