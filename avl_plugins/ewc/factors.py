"""The sums that a layer's Kronecker factors are made of, gathered in the passes of `SquaredGradients`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from avl_plugins.ewc.kronecker_block import KroneckerBlock, Shapes
from avl_plugins.ewc.per_sample import SquaredGradients, _Plan
from avl_plugins.ewc.rules import MAX_ELEMENTS, unfolded
from avl_plugins.ewc.sums import Sums

Layer = nn.Linear | nn.Conv1d | nn.Conv2d

FACTORED = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Layers of exactly these types have Kronecker factors."""

WIDTH = 64
"""Columns of a symmetric product that are computed at a time, from the diagonal down."""


class LayerSums:
    """Sums of a a^T over samples and positions, and of g g^T over scores, too, for one layer.

    Args:
        shapes: the shapes of the layer's trainable parameters, by their names in the model.
    """

    def __init__(self, shapes: Shapes):
        self.shapes = shapes
        self.inputs: Any = 0.0  # tensors once something has been added
        self.outputs: Any = 0.0
        self.positions = 0

    def __call__(self, layer: Layer, x: Tensor, g: Tensor) -> Sums:
        """Add inputs (N, ...) and gradients (C, N, ...), as a Fisher rule is called; it leaves no squares to add."""
        positions = g[0, 0].numel() // len(layer.weight)
        patches = positions * layer.weight[0].numel() * getattr(layer, "groups", 1)
        part = max(1, MAX_ELEMENTS // max(1, patches))
        for n in range(0, len(x), part):
            self.inputs += _gram(self._columns(_input_rows(layer, x[n : n + part])))
            self.outputs += _gram(_output_rows(layer, g[:, n : n + part]))
        self.positions += len(x) * positions
        return {}

    def _columns(self, rows: Tensor) -> Tensor:
        """The columns that belong to trainable parameters: the weight's inputs, a 1 for the bias."""
        ends = {name.rpartition(".")[2] for name in self.shapes}
        ones = rows.new_ones(*rows.shape[:2], 1)
        return torch.cat([part for end, part in (("weight", rows), ("bias", ones)) if end in ends], 2)

    def block(self, samples: int) -> KroneckerBlock:
        """A, the mean over what went through the layer, and G, the mean over all samples."""
        a, g = self.inputs / self.positions, self.outputs / samples
        return KroneckerBlock(self.shapes, (a + a.mT) / 2, (g + g.mT) / 2)


class FactorSums(SquaredGradients):
    """Squared gradients as in `SquaredGradients`, but sums for the factors of layers that can have them.

    Args:
        model: see `SquaredGradients`.
        scores: likewise.
        layers: takes in the sums by layer name.
        apart: names of layers that get squared gradients nevertheless. Takes in those that turn out to be used more
            than once or outside the layer, after samples for which they were not: the sums are then not whole.
    """

    def __init__(
        self,
        model: nn.Module,
        scores: Callable[[Tensor, Tensor | None], list[Tensor]],
        *,
        layers: dict[str, LayerSums],
        apart: set[str],
    ):
        # A score at least: samples without any have inputs, too.
        super().__init__(model, lambda z, y: scores(z, y) or [torch.zeros_like(z)])
        self.layers, self.apart = layers, apart

    def make_plan(self, x: Tensor, task: int | None) -> _Plan:
        """Put the sums for the factors in place of the rules, now that these have been checked."""
        plan = super().make_plan(x, task)
        for name, (layer, _) in plan.rules.items():
            shapes = {n: tuple(self.params[n].shape) for n in plan.own(name, layer)}
            if type(layer) in FACTORED and shapes and name not in self.apart:
                plan.rules[name] = layer, self.layers.setdefault(name, LayerSums(shapes))
        return plan

    def __call__(self, x: Tensor, y: Tensor | None, task: int | None) -> Sums:
        """Return the squared gradients of the other parameters; see `SquaredGradients`."""
        squares = super().__call__(x, y, task)
        without = set().union(*(plan.rest for plan in self.plans.values()))
        self.apart.update(name for name, sums in self.layers.items() if sums.shapes.keys() & without)
        return squares


def _input_rows(layer: Layer, x: Tensor) -> Tensor:
    """What an output is computed from, (groups, samples * positions, inputs)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    return unfolded(layer, x).permute(1, 0, 3, 2).flatten(1, 2)


def _output_rows(layer: Layer, g: Tensor) -> Tensor:
    """The gradients at the outputs, (groups, scores * samples * positions, outputs)."""
    if isinstance(layer, nn.Linear):
        return g.reshape(1, -1, g.shape[-1])
    return g.flatten(3).unflatten(2, (layer.groups, -1)).permute(2, 0, 1, 4, 3).flatten(1, 3)


def _gram(rows: Tensor) -> Tensor:
    """Sum over rows of their outer products, in single precision at least; one half of it is a copy of the other."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    size = rows.shape[2]
    gram = rows.new_empty(len(rows), size, size)
    for start in range(0, size, WIDTH):
        end = start + WIDTH
        below = rows[:, :, start:].mT @ rows[:, :, start:end]
        gram[:, start:, start:end] = below
        gram[:, start:end, end:] = below[:, WIDTH:].mT
    return gram
