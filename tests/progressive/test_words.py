"""Words of progressive networks: old ones for one release, repr, signatures, and what a seed draws."""

import inspect

import pytest
import torch
from avalanche.training.templates import SupervisedTemplate
from progressive_runs import build
from torch import nn

from avl_plugins import Progressive, ProgressiveNetwork, ProgressivePlugin


def test_the_old_word_for_adding_a_task():
    net = ProgressiveNetwork(column())
    with pytest.warns(DeprecationWarning, match="ProgressiveNetwork.add_column is called add_task now") as found:
        added = net.add_column(3, classes=2)
    assert found[0].filename == __file__
    assert added is net.columns[0]
    assert net.labels == [3]


def test_repr_and_signatures():
    assert repr(ProgressivePlugin()) == "ProgressivePlugin()"
    assert repr(build(cache_bytes=1000).progressive) == "ProgressivePlugin(cache_bytes=1000)"
    shown = inspect.signature(Progressive).parameters
    for kind in (ProgressivePlugin, SupervisedTemplate):
        assert inspect.signature(kind).parameters.keys() <= shown.keys()


def column(index=0):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())


def weights(layers, *, seed, state):
    """Parameters of three columns, and whether drawing them has moved the global random state."""
    torch.manual_seed(state)
    net = ProgressiveNetwork(layers, seed=seed)
    for label in range(3):
        net.add_task(label, 3)
    moved = not torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(state)))
    return [p.detach().clone() for p in net.parameters()], moved


@pytest.mark.parametrize("layers", [column(), column], ids=["template", "function"])
def test_a_seed_determines_columns_adapters_and_heads(layers):
    one, moved = weights(layers, seed=1, state=5)
    same, _ = weights(layers, seed=1, state=6)
    other, _ = weights(layers, seed=2, state=5)
    unseeded, moved_unseeded = weights(layers, seed=None, state=5)
    unseeded_again, _ = weights(layers, seed=None, state=6)
    assert (moved, moved_unseeded) == (False, True)
    drawn = [not torch.equal(a, b) for a, b in zip(unseeded, unseeded_again, strict=True)]
    for a, b, c, is_drawn in zip(one, same, other, drawn, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c) != is_drawn
    square = [p for p in one if p.shape == (8, 8)]
    assert len(square) > 4
    assert all(not torch.equal(a, b) for k, a in enumerate(square) for b in square[:k]), "each has its own"


def test_without_a_seed_weights_come_from_the_global_stream():
    """The first head, then the second column by `reset_parameters`, layer by layer."""
    net = ProgressiveNetwork(column())
    torch.manual_seed(7)
    net.add_task(0, 3)
    net.add_task(1, 3)
    torch.manual_seed(7)
    head, first, second = nn.Linear(8, 3), nn.Linear(4, 8), nn.Linear(8, 8)
    assert torch.equal(net.columns[0].head.layer.weight, head.weight)
    assert torch.equal(net.columns[1].stages[0].layer.weight, first.weight)
    assert torch.equal(net.columns[1].stages[1].layer.weight, second.weight)
