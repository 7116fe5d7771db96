"""Copies of modules that keep something of a forward pass, and labels that are no integers."""

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm

from avl_plugins.tasks.copies import copy_module
from avl_plugins.tasks.labels import class_labels, task_label


class Keep(nn.Module):
    """Keeps its activations, as a module with hooks for a figure does."""

    def forward(self, x):
        self.last, self.all, self.named = x, [x, (2 * x,)], {"x": 3 * x}
        return x


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_kept_activations_and_computed_weights():
    """The copy gives the same, shares nothing, and the original keeps what it has."""
    module = nn.Sequential(nn.Linear(3, 4), Keep(), weight_norm(nn.Linear(4, 2)))
    module[0].weight.requires_grad_(False)
    x = torch.randn(5, 3)
    expected = module(x)
    copied = copy_module(module)
    assert torch.equal(copied(x), expected)
    assert [p.requires_grad for p in copied.parameters()] == [False, True, True, True, True]
    shared = {p.data_ptr() for p in module.parameters()} & {p.data_ptr() for p in copied.parameters()}
    assert not shared
    assert module[1].last.grad_fn is not None
    again = copy_module(module)
    assert torch.equal(again[1].last, module[1].last)
    assert again[1].last.grad_fn is None
    assert torch.equal(again[1].all[1][0], 2 * again[1].last)
    assert torch.equal(again[1].named["x"], 3 * again[1].last)
    (4 * copied(x)).sum().backward()
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("label", ["a", 1.5, True, None, torch.tensor(1.0), torch.zeros(2, dtype=torch.long)])
def test_labels_that_are_no_integers(label):
    with pytest.raises(TypeError, match="label must be an integer, as Avalanche's task labels are, got"):
        task_label(label)


@pytest.mark.parametrize(
    ("classes", "error", "text"),
    [
        (0, ValueError, "classes must be a number >= 1, or labels >= 0, got 0"),
        ([], ValueError, "classes must be a number >= 1, or labels >= 0"),
        ([-1, 2], ValueError, "classes must be a number >= 1, or labels >= 0"),
        (True, TypeError, "classes must be a number of classes or their integer labels, got True"),
        ([2, False], TypeError, "classes must be a number of classes"),
        (2.0, TypeError, "classes must be a number of classes"),
        (None, TypeError, "classes must be a number of classes"),
        (["cat"], TypeError, "classes must be a number of classes"),
    ],
)
def test_classes_that_are_none(classes, error, text):
    with pytest.raises(error, match=text):
        class_labels(classes)
