"""Network split (Alg. 4): units that a new task has moved too far are kept as they were, and copied."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avl_plugins.den.drift import Before
from avl_plugins.den.layers import entries
from avl_plugins.den.network import DynamicallyExpandableNetwork

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
    order = drift.argsort(descending=True, stable=True)
    found = order[drift[order] > threshold]
    return found if most is None else found[:most]


@torch.no_grad()
def split_units(network: DynamicallyExpandableNetwork, units: Sequence[Tensor], before: Before) -> None:
    """Split units of each layer: the old one gets its weights of before back, a copy with the current ones is appended.

    The copy is stamped with the newest task, so that earlier ones do not see it. In the layer above it takes over
    the current weights, and the old unit gets those of before back; in the newest head it takes over the old unit's
    weights, which become zero.

    Args:
        network: Grown in place; parameters are replaced by larger ones.
        units: Numbers of units in each layer, all from before the newest task.
        before: Weights and biases before the newest task.

    Raises:
        ValueError: If a unit was made by the newest task.
    """
    for k, (own, (weight, _)) in enumerate(zip(units, before, strict=True)):
        if len(own) and int(own.max()) >= len(weight):
            raise ValueError(f"units: of hidden layer {k + 1}, {int(own.max())} was made by the newest task")
    old_below: Tensor | None = None
    for k, (layer, own) in enumerate(zip(network.hidden, units, strict=True)):
        weight, bias = layer.layer.weight.clone(), layer.layer.bias
        past, past_bias = before[k]
        if old_below is not None and len(old_below):
            columns = entries(old_below, layer.positions)
            copied = weight[:, columns].clone()
            weight[: len(past), columns] = past[:, columns]
            weight = torch.cat([weight, copied], dim=1)
        copies = weight[own].clone()
        weight[own, : past.shape[1]] = past[own]
        weight = torch.cat([weight, copies])
        if bias is not None:
            both = torch.cat([bias, bias[own]])
            both[own] = past_bias[own]  # type: ignore[index]
            bias = both
        layer.set_tensors(weight, bias, [*layer.stamps, *[network.stamp] * len(own)])
        old_below = own
    head = network.head_of(network.labels[-1])
    columns = entries(units[-1], network.head_positions)
    taken = head.weight[:, columns].clone()
    joined = torch.cat([head.weight, taken], dim=1)
    joined[:, columns] = 0
    head.weight = nn.Parameter(joined, requires_grad=head.weight.requires_grad)
    head.in_features = joined.shape[1]
