"""Fisher overlap: how much two tasks rely on the same weights (Kirkpatrick et al. 2017, fig. 2C and appendix 4.3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def fisher_overlap(f1: Mapping[str, Tensor], f2: Mapping[str, Tensor]) -> dict[str, float]:
    """Overlap 1 - d^2 of two diagonal Fishers within each layer, in [0, 1].

    Both are normalised to unit trace within the layer. d^2 = 1/2 tr(F1 + F2 - 2 (F1 F2)^(1/2)) is then the squared
    Frechet distance, and for diagonal F the overlap is sum_i sqrt(f1_i f2_i): 0 for disjoint sets of weights, 1 for
    proportional Fishers. The paper's second form, 1/2 ||F1^(1/2) - F2^(1/2)||_F, lacks a square; the first is meant.

    Args:
        f1: importances by parameter name, as `diagonal_fisher` returns them.
        f2: likewise, with the same names and shapes.

    Returns:
        The overlap by layer: a layer's parameters ("net.0.weight", "net.0.bias") are taken together under the
        module's name ("net.0"), in the order of f1. A layer that either Fisher is zero on is left out.

    Raises:
        ValueError: other names or shapes, or negative values (named).

    Example:
        >>> first = {"layer.weight": torch.tensor([1.0, 1.0, 0.0])}
        >>> second = {"layer.weight": torch.tensor([0.0, 1.0, 1.0])}
        >>> fisher_overlap(first, second)
        {'layer': 0.5}
    """
    if f1.keys() != f2.keys():
        raise ValueError(f"f1 and f2 must have the same parameters; only one has {sorted(f1.keys() ^ f2.keys())}")
    layers: dict[str, list[str]] = {}
    for name in f1:
        if f1[name].shape != f2[name].shape:
            raise ValueError(f"{name!r} has shape {tuple(f1[name].shape)} in f1 and {tuple(f2[name].shape)} in f2")
        if bool((f1[name] < 0).any()) or bool((f2[name] < 0).any()):
            raise ValueError(f"{name!r} has negative values, so it is no Fisher")
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    overlaps = {}
    for layer, names in layers.items():
        a = torch.cat([f1[n].flatten() for n in names]).double()
        b = torch.cat([f2[n].flatten() for n in names]).double()
        if a.sum() > 0 and b.sum() > 0:
            overlaps[layer] = float((a / a.sum() * (b / b.sum())).sqrt().sum())
    return overlaps
