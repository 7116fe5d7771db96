"""Hidden layers that grow, each unit with the stamp of the task that made it."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GrowingLayer", "affine", "cut", "entries", "take"]


class GrowingLayer(nn.Module):
    """h_l = after(layer(h_{l-1})), computed from those of its units that a task uses.

    Task t uses the units that the tasks up to t made and none of them has split: a split leaves the old unit to the
    tasks before, and its copy takes its place. Units are stamped in order, so that as long as none is split those of a
    task are the first ones of each layer.

    Attributes:
        layer: `Linear` or `Conv2d`; its units are rows or filters.
        after: what follows it up to the next one: activation, pooling, dropout, flatten.
        positions: inputs of the layer for each unit below: 1, or height x width where feature maps were flattened.
        stamps: number of the task, from 1, that made each unit.
        splits: number of the task that split each unit; 0 where none has.
    """

    def __init__(self, layer: nn.Module, after: Sequence[nn.Module] = (), positions: int = 1) -> None:
        super().__init__()
        self.layer: Any = layer
        self.after = nn.Sequential(*after)
        self.positions = positions
        self.stamps = [1] * layer.weight.shape[0]  # type: ignore[index]
        self.splits = [0] * len(self.stamps)

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.stamps)

    def units_of(self, task: int, *, stamps: bool = True) -> list[int]:
        """Return the numbers of the units that a task uses, in order.

        Args:
            task: its number, from 1.
            stamps: leave out units that later tasks made.
        """
        made = range(self.units if not stamps else bisect_right(self.stamps, task))
        return [unit for unit in made if not 0 < self.splits[unit] <= task] if any(self.splits) else [*made]

    def split_units(self) -> Tensor:
        """Return the numbers of the units that have been split: the old ones, not their copies."""
        return torch.tensor(self.splits, device=self.layer.weight.device).nonzero().flatten()

    def block(self, units: Sequence[int], below: Sequence[int] | None) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of some units that read some of those below; contiguous, so that products are equal.

        Args:
            units: their numbers, in order.
            below: numbers of units of the layer below; None for all inputs.
        """
        weight, bias = take(self.layer.weight, 0, units), self.layer.bias
        if below is not None:
            weight = take(weight, 1, below, self.positions)
        return weight.contiguous(), None if bias is None else take(bias, 0, units).contiguous()

    @torch.no_grad()
    def put(self, units: Sequence[int], below: Sequence[int] | None, weight: Tensor, bias: Tensor | None) -> None:
        """Write what `block` gave, with other values, to where it came from."""
        device = self.layer.weight.device
        rows = torch.tensor(units, dtype=torch.long, device=device)
        if below is None:
            self.layer.weight[rows] = weight
        else:
            columns = entries(torch.tensor(below, dtype=torch.long, device=device), self.positions)
            self.layer.weight[rows[:, None], columns[None]] = weight
        if bias is not None:
            self.layer.bias[rows] = bias

    def copies(self) -> tuple[Tensor, Tensor | None]:
        """Return copies of weight and bias."""
        bias = self.layer.bias
        return self.layer.weight.detach().clone(), None if bias is None else bias.detach().clone()

    def forward(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return h_l with these in the place of the layer's own."""
        return self.after(affine(self.layer, h, weight, bias))

    def set_tensors(
        self, weight: Tensor, bias: Tensor | None, stamps: Sequence[int], splits: Sequence[int] = ()
    ) -> None:
        """Take other weights, of any number of units; without `splits`, none has been split."""
        self.layer.weight = nn.Parameter(weight.detach(), requires_grad=self.layer.weight.requires_grad)
        if bias is not None:
            self.layer.bias = nn.Parameter(bias.detach(), requires_grad=self.layer.bias.requires_grad)
        self.stamps, self.splits = list(stamps), list(splits) or [0] * len(stamps)
        self.describe()

    def describe(self) -> None:
        """Set what the layer says of its own size."""
        outputs, inputs = self.layer.weight.shape[:2]
        if isinstance(self.layer, nn.Conv2d):
            self.layer.out_channels, self.layer.in_channels = outputs, inputs
        else:
            self.layer.out_features, self.layer.in_features = outputs, inputs


def take(tensor: Tensor, dim: int, units: Sequence[int], positions: int = 1) -> Tensor:
    """Return what belongs to units along a dimension, `positions` entries to each; a view where they are the first."""
    if not len(units) or units[-1] == len(units) - 1:
        return tensor.narrow(dim, 0, len(units) * positions)
    return tensor.index_select(dim, entries(torch.tensor(units, device=tensor.device), positions))


def affine(layer: Any, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what a linear or convolutional layer gives with other weights."""
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(h, weight, bias)
    return nn.functional.linear(h, weight, bias)


def cut(body: Any) -> tuple[list[nn.Module], list[GrowingLayer]]:
    """Return the modules before the first layer, and the layers.

    Raises:
        TypeError: If it is no `nn.Sequential`, or holds a module with parameters or buffers that cannot grow.
        ValueError: If it has no layer, one has groups or shares its weight, or the units of a layer are not in order
            in the next one's inputs.
    """
    if not isinstance(body, nn.Sequential):
        raise TypeError(
            f"body must be an nn.Sequential, itself and not inside DataParallel or torch.compile, got "
            f"{type(body).__name__}"
        )
    before: list[nn.Module] = []
    parts: list[tuple[Any, list[nn.Module]]] = []
    for module in _flat(body):
        if type(module) in (nn.Linear, nn.Conv2d):
            if not isinstance(module.weight, nn.Parameter):
                raise TypeError(f"body: a {type(module).__name__} computes its weight (weight_norm?) and cannot grow")
            if any(module.weight is layer.weight for layer, _ in parts):
                raise ValueError(f"body: two layers share the weight of a {type(module).__name__}, which cannot grow")
            parts.append((module, []))
        elif [*module.parameters(), *module.buffers()]:
            raise TypeError(
                f"body: {type(module).__name__} has parameters or buffers and cannot grow; a body is made of Linear "
                "and Conv2d layers with activations, pooling, dropout and flatten between them"
            )
        else:
            (parts[-1][1] if parts else before).append(module)
    if not parts:
        raise ValueError("body: it needs at least one Linear or Conv2d layer")
    layers: list[GrowingLayer] = []
    for layer, after in parts:
        if getattr(layer, "groups", 1) != 1:
            raise ValueError(f"body: a convolution with {layer.groups} groups cannot grow; use groups=1")
        positions = 1
        if layers:
            positions, rest = divmod(layer.weight.shape[1], layers[-1].units)
            if rest:
                raise ValueError(
                    f"body: a {type(layer).__name__} reads {layer.weight.shape[1]} inputs from {layers[-1].units} "
                    "units, which is no whole number for each"
                )
        layers.append(GrowingLayer(layer, after, positions))
    return before, layers


def _flat(body: nn.Sequential) -> Iterator[nn.Module]:
    for module in body:
        if isinstance(module, nn.Sequential):
            yield from _flat(module)
        else:
            yield module


def entries(units: Tensor, positions: int) -> Tensor:
    """Return the numbers of the inputs that belong to units: `positions` in a row for each."""
    if positions == 1:
        return units
    return (units[:, None] * positions + torch.arange(positions, device=units.device)).flatten()
