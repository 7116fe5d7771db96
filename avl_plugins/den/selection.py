"""Selective retraining (Alg. 2): which units a new task uses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avl_plugins.tasks.arguments import check_number

__all__ = ["select_units", "units_with_a_path"]


def select_units(
    head: Tensor, weights: Sequence[Tensor], *, positions: Sequence[int], tolerance: float = 0.0
) -> list[Tensor]:
    """Return the units with a path to the new task's outputs, by breadth-first search from all of these.

    A unit of the top hidden layer is selected if a weight to any output is not zero, and one below if a weight to any
    selected unit of the layer above is not.

    Args:
        head: weights of the outputs (C, units of the last layer x positions[-1]).
        weights: w_1, ..., W_{L-1}, (units, inputs, ...) each.
        positions: inputs for each unit below of W_2, ..., W_{L-1} and of the head.
        tolerance: weights of at most this size count as zero. Proximal steps give exact zeros.

    Returns:
        Numbers of the selected inputs and of the selected units of each layer, in order: L tensors.

    Raises:
        ValueError: If `tolerance` is negative.
    """
    check_number("tolerance", tolerance, low=0)
    used = _read_by(head, torch.arange(len(head), device=head.device), positions[-1], tolerance)
    found = [used]
    for weight, per_unit in zip(reversed(weights), [*reversed(positions[:-1]), 1], strict=True):
        used = _read_by(weight, used, per_unit, tolerance)
        found.append(used)
    return found[::-1]


def units_with_a_path(network: Any, *, tolerance: float = 0.0) -> list[list[int]]:
    """Return the inputs, and the units of each layer of a `DynamicallyExpandableNetwork`, that its newest task uses.

    See `select_units`. Units that have been split are not looked at: they are the earlier tasks'.
    """
    label = network.newest
    units = network.units_of(label)
    layers = zip(network.hidden, units, [None, *units[:-1]], strict=True)
    weights = [layer.block(own, below)[0] for layer, own, below in layers]
    positions = [*(layer.positions for layer in network.hidden[1:]), network.head_positions]
    inputs, *found = select_units(network.head_weight(label), weights, positions=positions, tolerance=tolerance)
    return [inputs.tolist(), *([own[i] for i in chosen.tolist()] for own, chosen in zip(units, found, strict=True))]


def _read_by(weight: Tensor, rows: Tensor, positions: int, tolerance: float) -> Tensor:
    """Return the units whose weight to any of the rows is not zero."""
    linked = (
        (weight[rows].detach().abs() > tolerance).flatten(2).any(2)
        if weight.dim() > 2
        else (weight[rows].detach().abs() > tolerance)
    )
    return linked.any(0).view(-1, positions).any(1).nonzero().flatten()
