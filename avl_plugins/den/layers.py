"""Hidden layers that grow, each unit with the stamp of the task that made it."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GrowingLayer", "affine", "cut"]


class GrowingLayer(nn.Module):
    """h_l = after(layer(h_{l-1})), of which the first units alone can be used.

    Units are stamped in order, so that those of the tasks up to t are the first ones of each layer, and their weights
    a block of the layer's.

    Attributes:
        layer: `Linear` or `Conv2d`; its units are rows or filters.
        after: What follows it up to the next one: activation, pooling, dropout, flatten.
        positions: Inputs of the layer for each unit below: 1, or height x width where feature maps were flattened.
        stamps: Number of the task, from 1, that made each unit.
    """

    def __init__(self, layer: nn.Module, after: Sequence[nn.Module] = (), positions: int = 1) -> None:
        super().__init__()
        self.layer: Any = layer
        self.after = nn.Sequential(*after)
        self.positions = positions
        self.stamps = [1] * layer.weight.shape[0]  # type: ignore[index]

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.stamps)

    def units_until(self, stamp: float) -> int:
        """Return how many units the tasks up to `stamp` made."""
        return sum(own <= stamp for own in self.stamps)

    def block(self, units: int, below: int | None) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the first units from the first ones below; contiguous, so that products are equal.

        Args:
            units: How many.
            below: How many of the layer below; None for all inputs.
        """
        weight, bias = self.layer.weight, self.layer.bias
        inputs = weight.shape[1] if below is None else below * self.positions
        if (units, inputs) == tuple(weight.shape[:2]):
            return weight, bias
        return weight[:units, :inputs].contiguous(), None if bias is None else bias[:units].contiguous()

    def copies(self) -> tuple[Tensor, Tensor | None]:
        """Return copies of weight and bias."""
        bias = self.layer.bias
        return self.layer.weight.detach().clone(), None if bias is None else bias.detach().clone()

    def forward(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return h_l with these in the place of the layer's own."""
        return self.after(affine(self.layer, h, weight, bias))

    def set_tensors(self, weight: Tensor, bias: Tensor | None, stamps: Sequence[int]) -> None:
        """Take other weights, of any number of units."""
        self.layer.weight = nn.Parameter(weight.detach(), requires_grad=self.layer.weight.requires_grad)
        if bias is not None:
            self.layer.bias = nn.Parameter(bias.detach(), requires_grad=self.layer.bias.requires_grad)
        self.stamps = list(stamps)
        self.describe()

    def describe(self) -> None:
        """Set what the layer says of its own size."""
        outputs, inputs = self.layer.weight.shape[:2]
        if isinstance(self.layer, nn.Conv2d):
            self.layer.out_channels, self.layer.in_channels = outputs, inputs
        else:
            self.layer.out_features, self.layer.in_features = outputs, inputs


def affine(layer: Any, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what a linear or convolutional layer gives with other weights."""
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(h, weight, bias)
    return nn.functional.linear(h, weight, bias)


def cut(body: Any) -> tuple[list[nn.Module], list[GrowingLayer]]:
    """Return the modules before the first layer, and the layers.

    Raises:
        TypeError: If it is no `nn.Sequential`, or holds a module with parameters or buffers that cannot grow.
        ValueError: If it has no layer, one has groups, or the units of a layer are not in order in the next one's
            inputs.
    """
    if not isinstance(body, nn.Sequential):
        raise TypeError(f"body: expected an nn.Sequential, got {type(body).__name__}")
    before: list[nn.Module] = []
    parts: list[tuple[Any, list[nn.Module]]] = []
    for module in _flat(body):
        if type(module) in (nn.Linear, nn.Conv2d):
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
