"""Lateral connections: what a layer of the newest column receives from the columns before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avl_plugins.tasks.arguments import check_choice, check_number

__all__ = ["Adapter", "Laterals", "LinearAdapter", "MLPAdapter", "concatenated", "feature_dim", "reduced_width"]

Adapter = Literal["mlp", "linear"]
CONVOLUTIONS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.Conv1d,
    nn.Conv2d: nn.Conv2d,
    nn.Conv3d: nn.Conv3d,
}


@dataclass(frozen=True)
class Source:
    """Features h_{i-1} of one column: `maps` of them (units, or channels of feature maps), `positions` values a map.

    `positions` counts only where the maps have been flattened for a linear layer, and is 1 elsewhere.
    """

    maps: int
    positions: int = 1


def reduced_width(maps: int, reduction: float) -> int:
    """Width of the projection V: maps / reduction, rounded up, and not below 8 where there are as many maps."""
    return max(ceil(maps / reduction), min(maps, 8))


@dataclass(frozen=True)
class Laterals:
    """How columns are connected.

    Args:
        adapter: "mlp", "linear" or None.
        reduction: V is maps / reduction wide (see `reduced_width`).
        alpha_init: first value of the scalars alpha.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If one is of another kind.
    """

    adapter: Adapter | None
    reduction: float
    alpha_init: float

    def __post_init__(self) -> None:
        check_choice("adapter", self.adapter, ("mlp", "linear", None))
        check_number("reduction", self.reduction, low=0, open_low=True)
        check_number("alpha_init", self.alpha_init)

    def make(self, layer: nn.Module, own: Source, sources: Sequence[Source]) -> nn.Module | None:
        """Make the connection from `sources` into `layer`, which reads `own`; None where there is none."""
        if self.adapter is None or not sources:
            return None
        if self.adapter == "linear":
            return LinearAdapter(layer, sources)
        reduced = reduced_width(own.maps, self.reduction)
        return MLPAdapter(layer, sources, reduced=reduced, alpha_init=self.alpha_init)


class LinearAdapter(nn.Module):
    """sum_j U^(j) h^(j): equation 1 of Rusu et al. 2016, sec. 2, as one operation on the concatenated features.

    U is of the layer's own kind: a linear map into a linear layer, a convolution with its kernel, stride and padding
    into a convolution. It has no bias; the layer has one.

    Args:
        layer: the `Linear` or `Conv1d/2d/3d` whose output it is added to.
        sources: the features of the earlier columns, oldest first.

    Shapes:
        input: one tensor per column, (B, maps, *space) into convolutions, (B, ..., maps * positions) into linear
        layers; or fewer tensors that are such features, concatenated. output: that of `layer`.
    """

    def __init__(self, layer: nn.Module, sources: Sequence[Source]) -> None:
        super().__init__()
        convolution = _is_convolution(layer)
        self.dim = feature_dim(layer)
        width = sum(source.maps if convolution else source.maps * source.positions for source in sources)
        self.U = _like(layer, width)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return what is added to the layer's output."""
        return self.U(concatenated(features, self.dim))


class MLPAdapter(nn.Module):
    """U sigma(V [alpha_1 h^(1), ..., alpha_m h^(m)]): equation 2 of Rusu et al. 2016, sec. 2.

    V projects the concatenated features to `reduced` ones: a 1 x 1 convolution on feature maps, also on those that
    have been flattened for a linear layer. sigma is the ReLU. U is as in `LinearAdapter`.

    The paper is not of one mind about the width of V (n_i in the text, n_{i-1} in the formula), has no biases in its
    equation and calls alpha a learned scalar, without saying whether there is one for each column. Here there is
    one per column, V has a bias and U has none. The scaling is applied to V's columns, which is the same and cheaper.

    Args:
        layer: the `Linear` or `Conv1d/2d/3d` whose output it is added to.
        sources: the features of the earlier columns, oldest first.
        reduced: width of V.
        alpha_init: first value of every alpha.
    """

    def __init__(self, layer: nn.Module, sources: Sequence[Source], *, reduced: int, alpha_init: float) -> None:
        super().__init__()
        maps = [source.maps for source in sources]
        self.positions = sources[0].positions
        if any(source.positions != self.positions for source in sources):
            raise ValueError(
                f"column: flattened maps have {[source.positions for source in sources]} values in the earlier "
                "columns; columns may differ in their widths only"
            )
        self.alpha = nn.Parameter(torch.full((len(maps),), float(alpha_init)))
        self.V: nn.Module
        if _is_convolution(layer):
            self.V = CONVOLUTIONS[type(layer)](sum(maps), reduced, 1)
            self.U = _like(layer, reduced)
        elif self.positions > 1:
            self.V = nn.Conv1d(sum(maps), reduced, 1)
            self.U = _like(layer, reduced * self.positions)
        else:
            self.V = nn.Linear(sum(maps), reduced)
            self.U = _like(layer, reduced)
        self.dim = feature_dim(layer)
        column_of_map = torch.arange(len(maps)).repeat_interleave(torch.tensor(maps))
        self.register_buffer("column_of_map", column_of_map, persistent=False)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return what is added to the layer's output."""
        h = concatenated(features, self.dim)
        weight: Tensor = self.V.weight  # type: ignore[assignment]
        bias: Tensor = self.V.bias  # type: ignore[assignment]
        column_of_map: Tensor = self.column_of_map  # type: ignore[assignment]
        scale = self.alpha[column_of_map]
        scaled = weight * scale.view(-1, *[1] * (weight.dim() - 2))
        if isinstance(self.V, nn.Linear):
            return self.U(torch.relu(nn.functional.linear(h, scaled, bias)))
        if self.positions > 1:
            maps = h.reshape(-1, weight.shape[1], self.positions)
            projected = torch.relu(nn.functional.conv1d(maps, scaled, bias)).flatten(1)
            return self.U(projected.reshape(*h.shape[:-1], -1))
        return self.U(torch.relu(self.V._conv_forward(h, scaled, bias)))  # type: ignore[operator]


def _is_convolution(layer: Any) -> bool:
    return type(layer) in CONVOLUTIONS


def _like(layer: Any, width: int) -> nn.Module:
    """Make a layer without bias that takes `width` maps to where `layer` goes."""
    if not _is_convolution(layer):
        return nn.Linear(width, layer.out_features, bias=False)
    return CONVOLUTIONS[type(layer)](
        width,
        layer.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        padding_mode=layer.padding_mode,
        bias=False,
    )


def feature_dim(layer: Any) -> int:
    """Return the dimension along which `layer` reads maps or units."""
    return 1 if _is_convolution(layer) else -1


def concatenated(features: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate the features of several columns; those of a single one are returned as they are."""
    return features[0] if len(features) == 1 else torch.cat(list(features), dim)
