"""Models whose layers not all samples use alike."""

import copy

import torch
from avalanche.models import MTSimpleMLP
from torch import nn


class Experts(nn.Module):
    """Each row goes through one of two layers, so that a class-sorted stream shows the second one late."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        first = x[:, 0] > 0
        return (
            torch.zeros(len(x), 3, dtype=x.dtype)
            .index_put((first,), self.a(x[first]))
            .index_put((~first,), self.b(x[~first]))
        )


class Cell(nn.Module):
    """A recurrent net made of a linear layer, called once for sequences of length 1 and more often for longer ones."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.Linear(4 + 5, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.zeros(len(x), 5, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = self.cell(torch.cat([x[:, t], h], 1)).tanh()
        return self.out(h)


def two_heads():
    """A multi-task model with three heads, and samples of two of the tasks."""
    torch.manual_seed(0)
    model = MTSimpleMLP(input_size=5, hidden_size=6)
    for task in (1, 2):
        head = copy.deepcopy(model.classifier.classifiers["0"])
        nn.init.normal_(head.classifier.weight)
        model.classifier.classifiers[str(task)] = head
    for task in range(3):
        model.classifier.register_buffer(f"active_units_T{task}", torch.ones(2, dtype=torch.int8))
    x, y, t = torch.randn(6, 5, dtype=torch.float64), torch.randint(0, 2, (6,)), torch.tensor([0, 1, 0, 1, 1, 0])
    return model.double(), x, y, t
