"""The Fisher's block of one layer as a Kronecker product of two small matrices."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
"""Shapes by parameter name; the first dimension of each is the layer's outputs."""


@dataclass(frozen=True, eq=False)
class KroneckerBlock:
    """F = G (x) A over all parameters of one layer.

    The layer's parameters side by side are one matrix W with an output a row: (out, in), where a weight has as many
    columns as an output has inputs and a bias has one. Over the rows of W one after another

        F[(o, i), (p, j)] = G[o, p] A[i, j],        F vec(D) = vec(G D A).

    A convolution with groups has such a block for each of them, whose rows follow each other in W.

    Attributes:
        shapes: the parameters' shapes by name, in the order of their columns in W.
        inputs: A, (groups, in, in), symmetric and positive semi-definite.
        outputs: G, (groups, out / groups, out / groups), likewise.
    """

    shapes: Shapes
    inputs: Tensor
    outputs: Tensor

    def matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """W of tensors at least as large as the parameters, (groups, out / groups, in); what is larger is left out."""
        rows = [tensors[n][region(shape)].reshape(shape[0], -1) for n, shape in self.shapes.items()]
        return torch.cat(rows, 1).unflatten(0, (len(self.outputs), -1))

    def tensors(self, matrix: Tensor) -> dict[str, Tensor]:
        """From W back to tensors of the parameters' shapes."""
        parts = matrix.flatten(0, 1).split(_widths(self.shapes), 1)
        return {n: part.reshape(shape) for (n, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def times(self, matrix: Tensor) -> Tensor:
        """G D A of a matrix D that is laid out as W."""
        return self.outputs @ matrix @ self.inputs

    def diagonal(self) -> dict[str, Tensor]:
        """The diagonal of F in the parameters' shapes."""
        rows, columns = (factor.diagonal(dim1=1, dim2=2) for factor in (self.outputs, self.inputs))
        return self.tensors(rows.unsqueeze(2) * columns.unsqueeze(1))

    def restricted(self, names: Collection[str]) -> KroneckerBlock:
        """The block of those of the parameters that are in `names`: the others stay where they are."""
        kept = {n: shape for n, shape in self.shapes.items() if n in names}
        columns = self.columns(kept)
        return KroneckerBlock(kept, self.inputs[:, columns][:, :, columns], self.outputs)

    def columns(self, names: Collection[str]) -> Tensor:
        """The columns of W that these parameters have."""
        parts = torch.arange(self.inputs.shape[1], device=self.inputs.device).split(_widths(self.shapes))
        return torch.cat([part for n, part in zip(self.shapes, parts, strict=True) if n in names])

    def scaled(self, scale: float) -> KroneckerBlock:
        """Scale F; each factor takes the root."""
        return KroneckerBlock(self.shapes, self.inputs * sqrt(scale), self.outputs * sqrt(scale))

    def damped(self, damping: float) -> KroneckerBlock:
        """Add to both factors, so that about `damping` is added to F's diagonal; see `kronecker_fisher`.

        A group that is zero stays zero.
        """
        a, g = (factor.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) for factor in (self.inputs, self.outputs))
        pi = (a / g).sqrt()
        live = (a > 0) & (g > 0)
        to_inputs, to_outputs = (torch.where(live, sqrt(damping) * by, 0) for by in (pi, 1 / pi))
        return KroneckerBlock(
            self.shapes,
            self.inputs + to_inputs.expand(-1, self.inputs.shape[1]).diag_embed(),
            self.outputs + to_outputs.expand(-1, self.outputs.shape[1]).diag_embed(),
        )

    def to(self, like: Tensor) -> KroneckerBlock:
        """The same on the device and in the dtype of `like`."""
        return KroneckerBlock(self.shapes, self.inputs.to(like), self.outputs.to(like))

    def grown(self, shapes: Shapes, groups: int) -> KroneckerBlock:
        """The block of parameters that have grown or come in addition: their new entries have no precision.

        Raises:
            ValueError: the old outputs are no longer in groups of their own.
        """
        if list(shapes.items()) == list(self.shapes.items()) and groups == len(self.outputs):  # in this order
            return self
        old_rows, rows = self.outputs.shape[1], next(iter(shapes.values()))[0] // groups
        if groups < len(self.outputs) or old_rows > rows or (old_rows < rows and len(self.outputs) > 1):
            raise ValueError(
                f"{next(iter(shapes))!r} has {groups} groups of {rows} outputs, the penalty protects "
                f"{len(self.outputs)} of {old_rows}: factors of grouped convolutions can be summed if groups are "
                "added, not if they grow; use mode='separate'"
            )
        widths = _widths(shapes)
        new = dict(zip(shapes, torch.arange(sum(widths), device=self.inputs.device).split(widths), strict=True))
        where = torch.cat([new[n].view(shapes[n][1:])[region(old[1:])].reshape(-1) for n, old in self.shapes.items()])
        inputs = self.inputs.new_zeros(groups, sum(widths), sum(widths))
        inputs[: len(self.inputs), where.unsqueeze(1), where] = self.inputs
        outputs = self.outputs.new_zeros(groups, rows, rows)
        outputs[: len(self.outputs), :old_rows, :old_rows] = self.outputs
        return KroneckerBlock(shapes, inputs, outputs)

    def check(self) -> None:
        """Raise ValueError, naming the parameters, unless the factors fit them and are what they must be."""
        names, groups = list(self.shapes), len(self.outputs)
        rows = {shape[0] for shape in self.shapes.values() if shape}
        if len(rows) != 1 or not all(self.shapes.values()) or groups == 0 or max(rows) % groups:
            raise ValueError(f"factors for {groups} groups do not fit parameters of shapes {self.shapes}")
        for factor, size in (("inputs", sum(_widths(self.shapes))), ("outputs", max(rows) // groups)):
            tensor, what = getattr(self, factor), f"the factor {factor!r} of {names} (Fisher)"
            if tensor.shape != (groups, size, size):
                raise ValueError(f"{what} must have shape {(groups, size, size)}, got {tuple(tensor.shape)}")
            if not tensor.isfinite().all():
                raise ValueError(f"{what} has NaN or infinite entries")
            if (tensor.diagonal(dim1=1, dim2=2) < 0).any():
                raise ValueError(f"{what} has negative entries on its diagonal")
            if (tensor - tensor.mT).abs().max() > 1e-3 * tensor.abs().max():
                raise ValueError(f"{what} is not symmetric")


def _widths(shapes: Shapes) -> list[int]:
    """How many columns of W each parameter has."""
    return [prod(shape[1:]) for shape in shapes.values()]


def region(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The low indices of a tensor that has grown from this shape."""
    return tuple(slice(0, size) for size in shape)
