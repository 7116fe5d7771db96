"""Arguments of progressive networks and of their plugin: what does not fit is refused, by name, and why a column is."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from avl_plugins import ProgressiveNetwork, ProgressivePlugin, prune_laterals, pruning_curve


def column():
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU())


@pytest.mark.parametrize(
    ("name", "value", "error", "text"),
    [
        ("adapter", "conv", ValueError, "'mlp', 'linear' or None, got 'conv'"),
        ("adapter", False, ValueError, "'mlp', 'linear' or None, got False"),
        ("unseen", "ignore", ValueError, "'constant' or 'raise', got 'ignore'"),
        ("unseen", None, ValueError, "'constant' or 'raise', got None"),
        ("reduction", 0, ValueError, "a number > 0, got 0"),
        ("reduction", -1.0, ValueError, "a number > 0, got -1.0"),
        ("reduction", math.nan, ValueError, "a number > 0, got nan"),
        ("reduction", math.inf, ValueError, "a number > 0, got inf"),
        ("reduction", None, TypeError, "a number > 0, got None"),
        ("reduction", True, TypeError, "a number > 0, got True"),
        ("alpha_init", math.inf, ValueError, "a number, got inf"),
        ("alpha_init", "0.1", TypeError, "a number, got '0.1'"),
        ("seed", -1, ValueError, "an integer >= 0 .*, or None for torch's global generator, got -1"),
        ("seed", 1.0, TypeError, "an integer >= 0 .*, or None for torch's global generator, got 1.0"),
        ("features", 0, ValueError, "an integer >= 1, or None for .*, got 0"),
        ("features", 8.0, TypeError, "an integer >= 1, or None for .*, got 8.0"),
        ("features", True, TypeError, "an integer >= 1, or None for .*, got True"),
        ("features", lambda index: 8.5, TypeError, "an integer >= 1, or None for .*, got 8.5"),
        ("retrain", 1, TypeError, "True or False, got 1"),
        ("retrain", None, TypeError, "True or False, got None"),
    ],
)
def test_the_network(name, value, error, text):
    with pytest.raises(error, match=f"{name} must be {text}"):
        ProgressiveNetwork(column(), **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "error", "text"),
    [
        ("cache_frozen", 1, TypeError, "True or False, got 1"),
        ("cache_frozen", None, TypeError, "True or False, got None"),
        ("cache_bytes", -1, ValueError, "an integer >= 0, got -1"),
        ("cache_bytes", 1e9, TypeError, "an integer >= 0, got 1000000000.0"),
        ("cache_bytes", True, TypeError, "an integer >= 0, got True"),
        ("cache_bytes", None, TypeError, "an integer >= 0, got None"),
    ],
)
def test_the_plugin(name, value, error, text):
    with pytest.raises(error, match=f"{name} must be {text}"):
        ProgressivePlugin(**{name: value})


def test_a_curves_shares_are_checked_before_any_is_evaluated():
    net = ProgressiveNetwork(column())
    net.add_task(0, 2), net.add_task(1, 2)
    values = {(depth, 0): torch.ones(width) for depth, width in enumerate((10, 8))}
    calls = []
    for bad, error in ((math.nan, ValueError), (1.5, ValueError), (True, TypeError)):
        with pytest.raises(error, match="keep must be a number >= 0 and <= 1, got"):
            pruning_curve(net, 1, values, lambda forward: calls.append(1) or 0.5, keep=(1.0, bad))
    assert calls == []


class Keep(nn.Module):
    """Keeps its latest activation, as a module for a figure does."""

    def forward(self, x):
        self.last = x
        return x


def test_columns_that_keep_an_activation_are_copied():
    layers, x = nn.Sequential(nn.Linear(6, 10), Keep(), nn.ReLU(), nn.Linear(10, 8)), torch.randn(5, 6)
    layers(x)
    net = ProgressiveNetwork(layers)
    net.add_task(0, 2), net.add_task(1, 3)
    expected = net(x, 1)
    assert torch.equal(net.to_single_task(1)(x), expected)
    pruned = prune_laterals(net, 1, {(depth, 0): torch.ones(width) for depth, width in enumerate((10, 8))}, keep=1.0)
    assert torch.equal(pruned.network(x, 1), expected)
    assert net.columns[1].stages[0].after[0].last.grad_fn is not None


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_columns_that_cannot_be_made_anew_or_cut():
    for layers, error, text in (
        (nn.DataParallel(column()), TypeError, "not inside DataParallel or torch.compile, .*got DataParallel"),
        (torch.compile(column()), TypeError, "got OptimizedModule"),
        (nn.Sequential(torch.compile(nn.Linear(6, 4))), TypeError, "OptimizedModule cannot be cut into layers"),
        (nn.Sequential(weight_norm(nn.Linear(6, 4))), ValueError, r"Linear \(0\) computes its weight .*reset_param"),
        (
            nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 4))),
            ValueError,
            r"ParametrizedLinear \(0\) computes",
        ),
    ):
        with pytest.raises(error, match=text):
            ProgressiveNetwork(layers)
    for lazy in (nn.LazyLinear(4), nn.LazyConv2d(4, 3), nn.LazyBatchNorm1d()):
        for layers in (nn.Sequential(nn.Linear(6, 4), lazy), lambda index, lazy=lazy: nn.Sequential(lazy)):
            with pytest.raises(TypeError, match=f"column: {type(lazy).__name__} has no shape yet"):
                ProgressiveNetwork(layers)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_function_may_make_columns_that_compute_their_weights():
    """Each has weights of its own; frozen ones stay, and one task's part is copied."""
    net = ProgressiveNetwork(lambda index: nn.Sequential(weight_norm(nn.Linear(6, 10)), nn.ReLU()))
    net.add_task(0, 2), net.add_task(1, 2)
    x = torch.randn(5, 6)
    first, second = (column.stages[0].layer for column in net.columns)
    assert not torch.equal(first.weight_v, second.weight_v)
    assert not first.weight_g.requires_grad
    expected = net(x, 1)
    assert torch.equal(net.to_single_task(1)(x), expected)
