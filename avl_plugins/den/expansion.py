"""Network expansion (Alg. 3): adding units, and taking those away again that group lasso has emptied."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avl_plugins.den.layers import GrowingLayer, entries
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.growth.parameters import grow_parameter
from avl_plugins.tasks.arguments import check_count

__all__ = ["add_units", "empty_units", "remove_units"]


def add_units(
    network: DynamicallyExpandableNetwork,
    counts: Sequence[int],
    *,
    owner: Any = None,
    generator: torch.Generator | None = None,
) -> None:
    """Add units at the end of each hidden layer, stamped with the newest task, which is the first one to use them.

    New weights into a layer are drawn as PyTorch draws them, U(-1/sqrt(n), 1/sqrt(n)) for n inputs, as are those from
    new units to old ones and to the newest head. New biases are zero. Earlier heads do not read new units, and units
    that have been split are not connected with them.

    Args:
        network: grown in place.
        counts: how many in each layer.
        owner: who trains the parameters; see `grow_parameter`.
        generator: where random numbers come from.

    Raises:
        ValueError: If there is not one count for each layer, one is negative, or the network has no task.
        TypeError: If one is no integer.
    """
    if len(counts) != len(network.layers):
        raise ValueError(f"counts must be {len(network.layers)} numbers, one for each layer, got {list(counts)}")
    for count in counts:
        check_count("counts", count, low=0)
    label = network.newest
    below: GrowingLayer | None = None
    for k, (layer, new) in enumerate(zip(network.hidden, counts, strict=True)):
        old, inputs, *kernel = layer.layer.weight.shape
        old_inputs = inputs
        if below is not None:
            inputs = below.units * layer.positions
        bound = (inputs * layer.layer.weight[0, 0].numel()) ** -0.5

        def draw(values: Tensor, bound: float = bound) -> Tensor:
            drawn = torch.empty(values.shape).uniform_(-bound, bound, generator=generator)
            return values.copy_(drawn)

        grow_parameter(network, f"layers.{k}.layer.weight", (old + new, inputs, *kernel), init=draw, owner=owner)
        if layer.layer.bias is not None:
            grow_parameter(network, f"layers.{k}.layer.bias", (old + new,), init=nn.init.zeros_, owner=owner)
        with torch.no_grad():
            layer.layer.weight[layer.split_units(), old_inputs:] = 0
            if below is not None:
                layer.layer.weight[old:, entries(below.split_units(), layer.positions)] = 0
        layer.stamps += [network.stamp] * new
        layer.splits += [0] * new
        layer.describe()
        below = layer
    head = network.head_of(label)
    inputs = network.hidden[-1].units * network.head_positions
    bound = inputs**-0.5
    grow_parameter(
        network,
        f"heads.{label}.weight",
        (head.out_features, inputs),
        init=lambda values: values.copy_(torch.empty(values.shape).uniform_(-bound, bound, generator=generator)),
        owner=owner,
    )
    head.in_features = inputs


def empty_units(weight: Tensor) -> Tensor:
    """Return the numbers of the units whose incoming weights are all zero; biases do not count."""
    return (weight.detach().flatten(1) == 0).all(1).nonzero().flatten()


@torch.no_grad()
def remove_units(network: DynamicallyExpandableNetwork, layer_index: int, units: Tensor) -> None:
    """Take units out of a layer, with what the layer above, or the newest head, reads of them.

    Of an empty unit that is what its bias alone makes of it, the same for every input.

    Args:
        network: changed in place; parameters are replaced by smaller ones.
        layer_index: which hidden layer.
        units: numbers of units that the newest task made.

    Raises:
        ValueError: If one was made by an earlier task, whose outputs would change.
    """
    check_count("layer_index", layer_index, low=0, high=len(network.layers) - 1)
    layer, above = network.hidden[layer_index], layer_index + 1
    old = [unit for unit in units.tolist() if layer.stamps[unit] != network.stamp or network.stamp == 1]
    if old:
        raise ValueError(f"units: {old} of hidden layer {layer_index + 1} were made by earlier tasks, which use them")
    keep = torch.ones(layer.units, dtype=torch.bool)
    keep[units.cpu()] = False
    kept = keep.nonzero().flatten()
    bias = layer.layer.bias
    layer.set_tensors(
        layer.layer.weight[kept].clone(),
        None if bias is None else bias[kept].clone(),
        [layer.stamps[unit] for unit in kept.tolist()],
        [layer.splits[unit] for unit in kept.tolist()],
    )
    if above < len(network.layers):
        upper = network.hidden[above]
        columns = entries(kept, upper.positions)
        upper.set_tensors(upper.layer.weight[:, columns].clone(), upper.layer.bias, upper.stamps, upper.splits)
        return
    head = network.head_of(network.newest)
    head.weight = nn.Parameter(
        head.weight[:, entries(kept, network.head_positions)].clone(), requires_grad=head.weight.requires_grad
    )
    head.in_features = head.weight.shape[1]
