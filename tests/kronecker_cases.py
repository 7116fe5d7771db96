"""Random Kronecker-factored Fishers, and the explicit dense matrix that they stand for."""

from itertools import product
from typing import Any

import torch
from torch import Tensor

from avl_plugins.ewc.kronecker import KroneckerFisher
from avl_plugins.ewc.kronecker_block import KroneckerBlock

F64 = torch.float64
Shapes = dict[str, tuple[int, ...]]
LAYERS = {"fc": ("fc.weight", "fc.bias"), "conv": ("conv.weight",)}
GROUPS = {"fc": 1, "conv": 2}
SHAPES: Shapes = {"fc.weight": (2, 3), "fc.bias": (2,), "conv.weight": (4, 3, 1, 2), "norm": (3,)}


def tensors(generator: torch.Generator, shapes: Shapes) -> dict[str, Tensor]:
    return {n: torch.randn(s, generator=generator, dtype=F64) for n, s in shapes.items()}


def factor(generator: torch.Generator, groups: int, size: int) -> Tensor:
    root = torch.randn(groups, size, max(1, size - 1), generator=generator, dtype=F64)  # singular, as factors are
    return root @ root.mT / size


def block(generator: torch.Generator, shapes: Shapes, groups: int = 1) -> KroneckerBlock:
    first = next(iter(shapes.values()))
    columns = sum(torch.Size(s[1:]).numel() for s in shapes.values())
    return KroneckerBlock(shapes, factor(generator, groups, columns), factor(generator, groups, first[0] // groups))


def fisher(generator: torch.Generator, shapes: Shapes, without: str = "") -> KroneckerFisher:
    """Of both layers but one; of the parameters outside layers a diagonal, half of it zero."""
    blocks = {
        layer: block(generator, {n: shapes[n] for n in names}, GROUPS[layer])
        for layer, names in LAYERS.items()
        if layer != without
    }
    rest = {n: s for n, s in shapes.items() if n not in {p for names in LAYERS.values() for p in names}}
    squares = {n: t**2 * (torch.rand(t.shape, generator=generator) < 0.5) for n, t in tensors(generator, rest).items()}
    return KroneckerFisher(blocks, squares)


Entry = tuple[str, tuple[int, ...]]
"""A parameter's name and an index into it."""


class DenseReference:
    """lambda/2 (theta - c)^T F (theta - c) with all entries of all blocks written out, and any number of terms.

    Factors are kept entry by entry: G by pairs of outputs, A by pairs of columns, each named by where it is in the
    parameters, so that growth needs no thought. `summed` adds factors as the online approximation does.
    """

    def __init__(self, summed: bool = False) -> None:
        self.summed = summed
        self.terms: list[tuple[dict[str, Any], dict[str, Any], dict[str, Tensor], dict[str, Tensor]]] = []

    def add(self, fisher: KroneckerFisher, anchor: dict[str, Tensor], scale: float, decay: float = 1.0) -> None:
        root = scale**0.5
        inputs: dict[str, Any] = {layer: _columns(b, root) for layer, b in fisher.blocks.items() if scale > 0}
        outputs: dict[str, Any] = {layer: _rows(b, root) for layer, b in fisher.blocks.items() if scale > 0}
        rest = {n: scale * f for n, f in fisher.rest.items()}
        if self.summed and self.terms:
            old_inputs, old_outputs, _, old_rest = self.terms.pop()
            inputs, outputs = _merged(inputs, old_inputs), _merged(outputs, old_outputs)
            rest = _sum_regions(rest, old_rest, anchor)
        if decay != 1:
            inputs = {layer: {k: v * decay**0.5 for k, v in f.items()} for layer, f in inputs.items()}
            outputs = {layer: {k: v * decay**0.5 for k, v in f.items()} for layer, f in outputs.items()}
            rest = {n: f * decay for n, f in rest.items()}
        self.terms.append((inputs, outputs, {n: t.detach().clone() for n, t in anchor.items()}, rest))

    def matrix(self, layer: str, term: int = -1) -> tuple[list[Entry], Tensor]:
        """F of a layer over these entries of its parameters."""
        inputs, outputs = self.terms[term][0][layer], self.terms[term][1][layer]
        rows = sorted({row for row, _ in outputs})
        columns = sorted({column for column, _ in inputs})
        entries = [(row, column) for row in rows for column in columns if row[1] == column[0]]  # of the same group
        dense = torch.zeros(len(entries), len(entries), dtype=F64)
        for (i, (row, column)), (j, (other_row, other_column)) in product(enumerate(entries), repeat=2):
            dense[i, j] = outputs.get((row, other_row), 0.0) * inputs.get((column, other_column), 0.0)
        return [(column[1], (row[0], *column[2])) for row, column in entries], dense

    def value(self, theta: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=F64)
        for t, (inputs, _, centre, rest) in enumerate(self.terms):
            for layer in inputs:
                entries, dense = self.matrix(layer, t)
                difference = torch.stack([theta[n][index] - centre[n][index] for n, index in entries])
                total = total + 0.5 * difference @ dense @ difference
            for name, f in rest.items():
                region = tuple(slice(0, n) for n in f.shape)
                total = total + 0.5 * (f * (theta[name][region] - centre[name][region]) ** 2).sum()
        return total


def _columns(b: KroneckerBlock, root: float) -> dict[Any, float]:
    """A's entries by pairs of (group, parameter, index without the output)."""
    places = [(n, index) for n, s in b.shapes.items() for index in product(*map(range, s[1:]))]
    pairs = product(range(len(b.inputs)), enumerate(places), enumerate(places))
    return {((k, *p), (k, *q)): root * b.inputs[k, i, j].item() for k, (i, p), (j, q) in pairs}


def _rows(b: KroneckerBlock, root: float) -> dict[Any, float]:
    """G's entries by pairs of (output, group)."""
    size = b.outputs.shape[1]
    pairs = product(range(len(b.outputs)), range(size), range(size))
    return {((k * size + i, k), (k * size + j, k)): root * b.outputs[k, i, j].item() for k, i, j in pairs}


def _merged(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    layers = {**old, **new}
    return {
        layer: {
            pair: old.get(layer, {}).get(pair, 0.0) + new.get(layer, {}).get(pair, 0.0)
            for pair in {**old.get(layer, {}), **new.get(layer, {})}
        }
        for layer in layers
    }


def _sum_regions(new: dict[str, Tensor], old: dict[str, Tensor], anchor: dict[str, Tensor]) -> dict[str, Tensor]:
    total = {n: torch.zeros_like(anchor[n]) for n in {**old, **new}}
    for part in (old, new):
        for n, f in part.items():
            total[n][tuple(slice(0, size) for size in f.shape)] += f
    return total
