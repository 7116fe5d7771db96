"""The likelihood that a criterion stands for, where that is certain."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avl_plugins import one_vs_rest_loss
from avl_plugins.tasks.likelihood import likelihood_of


class Focal(nn.CrossEntropyLoss):
    def forward(self, z, y):
        return super().forward(z, y) ** 2


class Named(nn.CrossEntropyLoss):
    """A subclass that computes the same."""


class Declared(nn.Module):
    likelihood = "gaussian"


def unknown(z, y):
    return z.sum()


@pytest.mark.parametrize(
    ("criterion", "likelihood"),
    [
        (nn.CrossEntropyLoss(), "categorical"),
        (nn.CrossEntropyLoss(weight=torch.ones(3), label_smoothing=0.1), "categorical"),
        (Named(), "categorical"),
        (nn.NLLLoss(), "categorical"),
        (F.cross_entropy, "categorical"),
        (partial(partial(F.cross_entropy, label_smoothing=0.1), ignore_index=3), "categorical"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(1)), "bernoulli"),
        (F.binary_cross_entropy_with_logits, "bernoulli"),
        (one_vs_rest_loss, "bernoulli"),
        (nn.MSELoss(), "gaussian"),
        (F.mse_loss, "gaussian"),
        (Declared(), "gaussian"),
        (Focal(), None),
        (nn.BCELoss(), None),
        (nn.L1Loss(), None),
        (nn.MultiMarginLoss(), None),
        (unknown, None),
        (lambda z, y: F.cross_entropy(z, y), None),
        (None, None),
    ],
)
def test_likelihood_of(criterion, likelihood):
    assert likelihood_of(criterion) == likelihood
