"""Network split (Alg. 4): units that a new task has moved too far are kept as they were, and copied."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avl_plugins.den.drift import Before
from avl_plugins.den.layers import GrowingLayer, entries
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.tasks.arguments import check_count, check_number

__all__ = ["drifted_units", "drifts", "split_units"]


@torch.no_grad()
def drifts(network: DynamicallyExpandableNetwork, before: Before) -> list[Tensor]:
    """Return rho_i = ||w_i - w_i,before||_2 over the incoming weights of each unit that there was before, by layer."""
    return [
        (layer.layer.weight[: len(weight), : weight.shape[1]] - weight).flatten(1).norm(dim=1)
        for layer, (weight, _) in zip(network.hidden, before, strict=True)
    ]


def drifted_units(drift: Tensor, threshold: float, most: int | None = None) -> Tensor:
    """Return the units that moved more than `threshold`, at most so many, those that moved furthest first."""
    check_number("threshold", threshold, low=0)
    check_count("most", most, none="all of them")
    order = drift.argsort(descending=True, stable=True)
    found = order[drift[order] > threshold]
    return found if most is None else found[:most]


@torch.no_grad()
def split_units(network: DynamicallyExpandableNetwork, units: Sequence[Tensor], before: Before) -> None:
    """Split units of each layer: the old one gets its weights of before back, a copy with the current ones is appended.

    From now on the old unit is used by the tasks before the newest one only, and the copy, stamped with the newest
    task, by that and later ones. What reads the unit reads the copy with its current weights and the old one with those
    of before; the copies of split units and the units of the newest task, which earlier ones do not use, read copies
    only. So the newest task's outputs stay as they are, and those of earlier tasks are as before it, as far as the
    split units go, bit for bit.

    Args:
        network: grown in place; parameters are replaced by larger ones.
        units: numbers of units in each layer, all from before the newest task.
        before: weights and biases before the newest task.

    Raises:
        ValueError: If a unit was made by the newest task, has been split before, is there twice, or is no unit; if
            the network has no task. Nothing has changed then.
    """
    head = network.head_of(network.newest)
    chosen = [torch.as_tensor(own, dtype=torch.long).flatten() for own in units]
    for k, (layer, own, (weight, _)) in enumerate(zip(network.hidden, chosen, before, strict=True)):
        _check_units(own.tolist(), layer.splits[: len(weight)], f"hidden layer {k + 1}")
    below: GrowingLayer | None = None
    columns = torch.empty(0, dtype=torch.long)
    for layer, own, (past, past_bias) in zip(network.hidden, chosen, before, strict=True):
        old, known = past.shape[:2]
        weight, bias = layer.layer.weight.clone(), layer.layer.bias
        own = own.to(weight.device)
        if below is not None:  # which has been split
            columns = entries(columns, layer.positions)
            copied = weight[:, columns]
            copied[layer.split_units()] = 0
            weight = torch.cat([weight, copied], dim=1)
            weight[:old, columns] = past[:, columns]
            weight[old:, columns] = 0
        copies = weight[own]
        if below is not None:
            copies[:, entries(below.split_units(), layer.positions)] = 0
        weight[own, :known] = past[own]
        weight[own, known:] = 0
        weight = torch.cat([weight, copies])
        if bias is not None:
            bias = torch.cat([bias, bias[own]])
            bias[own] = past_bias[own]  # type: ignore[index]
        stamps = [*layer.stamps, *[network.stamp] * len(own)]
        splits = [*layer.splits, *[0] * len(own)]
        for unit in own.tolist():
            splits[unit] = network.stamp
        layer.set_tensors(weight, bias, stamps, splits)
        below, columns = layer, own
    columns = entries(columns, network.head_positions)
    joined = torch.cat([head.weight, head.weight[:, columns]], dim=1)
    joined[:, columns] = 0
    head.weight = nn.Parameter(joined, requires_grad=head.weight.requires_grad)
    head.in_features = joined.shape[1]


def _check_units(units: list[int], splits: list[int], where: str) -> None:
    """Raise a ValueError for units that cannot be split; `splits` is that of the units from before the newest task."""
    for unit in units:
        if not 0 <= unit < len(splits):
            raise ValueError(f"units: of {where}, {unit} was made by the newest task, or is none of its units")
        if splits[unit] or units.count(unit) > 1:
            raise ValueError(f"units: {unit} of {where} would be split twice")
