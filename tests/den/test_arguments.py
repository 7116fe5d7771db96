"""Arguments of DEN's constructors and functions: what is no number, flag or choice is refused, by name."""

import math

import pytest
import torch
from den_cases import copies, grown, mlp
from torch import nn
from torch.nn.utils import weight_norm

from avl_plugins.den.drift import pull_back_
from avl_plugins.den.duplication import drifted_units, split_units
from avl_plugins.den.expansion import add_units, remove_units
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.den.plugin import DENPlugin

NUMBERS = ["l1", "l2", "group_lasso", "drift_lambda", "retraining_drift"]
NUMBERS += ["loss_threshold", "drift_threshold", "head_tolerance", "zero_tolerance"]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name):
    for value in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"{name} must be a number >= 0, got {value}"):
            DENPlugin(**{name: value})
    for value in (None, "1", True, [1.0]):
        with pytest.raises(TypeError, match=f"{name} must be a number >= 0, got"):
            DENPlugin(**{name: value})
    assert getattr(DENPlugin(**{name: 0}), name) == 0


@pytest.mark.parametrize(
    ("name", "value", "error", "text"),
    [
        ("expand_by", None, TypeError, "an integer >= 1, got None"),
        ("expand_by", 0, ValueError, "an integer >= 1, got 0"),
        ("expand_by", 2.5, TypeError, "an integer >= 1, got 2.5"),
        ("expand_by", True, TypeError, "an integer >= 1, got True"),
        ("expand_by", (3, None), TypeError, "an integer >= 1, got None"),
        ("expand_by", [], ValueError, "an integer or one for each layer"),
        ("max_splits", 1.5, TypeError, "an integer >= 1, or None for no bound, got 1.5"),
        ("max_splits", 0, ValueError, "an integer >= 1, or None for no bound, got 0"),
        ("max_splits", (2, 0), ValueError, "an integer >= 1, or None for no bound, got 0"),
        ("max_splits", math.nan, TypeError, "an integer >= 1, or None for no bound, got nan"),
        ("phase_epochs", 0, ValueError, "an integer >= 1, or None for train_epochs, got 0"),
        ("phase_epochs", 1.0, TypeError, "an integer >= 1, or None for train_epochs, got 1.0"),
        ("phase_epochs", True, TypeError, "an integer >= 1, or None for train_epochs, got True"),
        ("cache_bytes", -1, ValueError, "an integer >= 0, got -1"),
        ("cache_bytes", None, TypeError, "an integer >= 0, got None"),
        ("selective", 1, TypeError, "True or False, got 1"),
        ("split", None, TypeError, "True or False, got None"),
        ("expand", "always", ValueError, "'dynamic', 'constant' or None, got 'always'"),
        ("expand", False, ValueError, "'dynamic', 'constant' or None, got False"),
        ("penalty_step", "both", ValueError, "'gradient' or 'proximal', got 'both'"),
        ("seed", -1, ValueError, "an integer >= 0 .*, or None for torch's global generator, got -1"),
        ("seed", True, TypeError, "an integer >= 0 .*, or None for torch's global generator, got True"),
        ("validation_stream", 3, TypeError, "a sequence of experiences, or None, got 3"),
    ],
)
def test_the_plugins_other_arguments(name, value, error, text):
    with pytest.raises(error, match=f"{name} must be {text}"):
        DENPlugin(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "error", "text"),
    [
        ("head", "sigmoid", ValueError, "head must be 'multiclass', 'one-vs-rest' or 'binary', got 'sigmoid'"),
        ("head", None, ValueError, "head must be"),
        ("unseen", "guess", ValueError, "unseen must be 'constant' or 'raise', got 'guess'"),
        ("stamps", 1, TypeError, "stamps must be True or False, got 1"),
        ("features", 0, ValueError, "features must be an integer >= 1"),
        ("features", 9.0, TypeError, "features must be an integer >= 1"),
        ("features", True, TypeError, "features must be an integer >= 1"),
        ("seed", 1.5, TypeError, "seed must be an integer >= 0 .*, or None for torch's global generator, got 1.5"),
        ("features", 10, ValueError, "features must be a multiple of the last layer's 9 units, got 10"),
    ],
)
def test_the_networks_arguments(name, value, error, text):
    with pytest.raises(error, match=text):
        mlp(**{name: value})


class Keep(nn.Module):
    def forward(self, x):
        self.last = x
        return x


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_bodies_that_cannot_grow_say_why():
    shared = nn.Linear(4, 4)
    for body, text in (
        (nn.DataParallel(nn.Sequential(nn.Linear(3, 2))), "not inside DataParallel or torch.compile, got DataParallel"),
        (torch.compile(nn.Sequential(nn.Linear(3, 2))), "or torch.compile, got OptimizedModule"),
        (nn.Sequential(torch.compile(nn.Linear(3, 2))), "OptimizedModule has parameters or buffers and cannot grow"),
        (nn.Sequential(nn.LazyLinear(3)), "LazyLinear has no shape yet; give it its number of inputs"),
        (nn.Sequential(nn.Linear(3, 3), nn.LazyConv2d(3, 3)), "LazyConv2d has no shape yet"),
        (nn.Sequential(nn.Linear(3, 3), nn.LazyBatchNorm1d(affine=False)), "LazyBatchNorm1d has no shape yet"),
        (nn.Sequential(weight_norm(nn.Linear(3, 2))), "a Linear computes its weight"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))), "ParametrizedLinear has parameters"),
        (None, "body must be an nn.Sequential, .* got NoneType"),
    ):
        with pytest.raises(TypeError, match=text):
            DynamicallyExpandableNetwork(body)
    with pytest.raises(ValueError, match="two layers share the weight of a Linear"):
        DynamicallyExpandableNetwork(nn.Sequential(shared, nn.ReLU(), shared))


def test_a_body_that_has_been_used_and_keeps_an_activation():
    body, x = nn.Sequential(nn.Linear(3, 4), Keep(), nn.ReLU()), torch.randn(5, 3)
    expected = body(x)
    net = DynamicallyExpandableNetwork(body)
    net.add_task(0, 2)
    assert torch.equal(net.features(x, 0), expected)
    assert torch.equal(net.to_single_task(0)(x), net(x, 0))
    body.compile()  # its modules are the same
    assert torch.equal(DynamicallyExpandableNetwork(body).hidden[0].layer.weight, body[0].weight)


def test_functions():
    net, _ = grown("mlp", (2, 2))
    before = copies(net)
    for counts, error, text in (
        ((1,), ValueError, r"counts must be 2 numbers, one for each layer, got \[1\]"),
        ((1, -1), ValueError, "counts must be an integer >= 0, got -1"),
        ((1, 1.5), TypeError, "counts must be an integer >= 0, got 1.5"),
        ((1, True), TypeError, "counts must be an integer >= 0, got True"),
    ):
        with pytest.raises(error, match=text):
            add_units(net, counts)
    for layer, error in ((2, ValueError), (-1, ValueError), (0.0, TypeError)):
        with pytest.raises(error, match="layer_index must be an integer >= 0 and <= 1, got"):
            remove_units(net, layer, torch.tensor([12]))
    assert [layer.units for layer in net.hidden] == [14, 11]
    for threshold, error in ((-1.0, ValueError), (math.nan, ValueError), (None, TypeError)):
        with pytest.raises(error, match="threshold must be a number >= 0, got"):
            drifted_units(torch.ones(3), threshold)
    with pytest.raises(TypeError, match=r"most must be an integer >= 1, or None for all of them, got 1.5"):
        drifted_units(torch.ones(3), 0.5, 1.5)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for strength in (-1.0, math.inf):
        with pytest.raises(ValueError, match="drift_lambda must be a number >= 0, got"):
            pull_back_([], optimizer, strength)
    empty = mlp()
    for act in (lambda: add_units(empty, (1, 1)), lambda: split_units(empty, [torch.tensor([0])] * 2, copies(empty))):
        with pytest.raises(ValueError, match="the network has no task yet"):
            act()
    assert [layer.units for layer in empty.hidden] == [12, 9]
    assert all(torch.equal(weight, past) for (weight, _), (past, _) in zip(copies(net), before, strict=True))
