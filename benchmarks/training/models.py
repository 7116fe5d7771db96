"""Networks of the experiments."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from benchmarks.data.arrays import Arrays


def mlp(sizes: Sequence[int], *, dropout_input: float = 0.0, dropout_hidden: float = 0.0) -> nn.Sequential:
    """Fully connected ReLU net with `sizes` = (inputs, hidden..., outputs) and PyTorch's default initialisation.

    Dropout is left out where its probability is 0.
    """
    layers: list[nn.Module] = [nn.Dropout(dropout_input)] if dropout_input else []
    for k, (inputs, outputs) in enumerate(pairwise(sizes)):
        if k:
            layers.append(nn.ReLU())
            if dropout_hidden:
                layers.append(nn.Dropout(dropout_hidden))
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)


def image_mlp(arrays: Arrays, width: int) -> nn.Sequential:
    """ReLU net with two hidden layers of `width` units for images of any shape."""
    return nn.Sequential(nn.Flatten(), *mlp((arrays.x_train[0].size, width, width, arrays.n_classes)))


def image_trunk(kind: str, arrays: Arrays, width: int) -> nn.Sequential:
    """Net without output layer for images: "mlp", two hidden layers, or "conv", 32, 64 and 64 maps and a hidden layer.

    Raises:
        ValueError: If `kind` is another.
    """
    if kind == "mlp":
        return nn.Sequential(*list(image_mlp(arrays, width))[:-1])
    if kind != "conv":
        raise ValueError(f"solver must be 'mlp' or 'conv', got {kind!r}")
    side, channels = arrays.x_train.shape[1], arrays.x_train.shape[3] if arrays.x_train.ndim == 4 else 1
    return conv_trunk(channels, side, (32, 64, 64), width)


def conv_trunk(channels: int, side: int, maps: Sequence[int], width: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Net without output layer for (channels, side, side) images.

    3 x 3 convolutions, each with ReLU and 2 x 2 max pooling, then one fully connected layer of `width` ReLU units and
    dropout, if any.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((channels, *maps)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        side //= 2
    layers += [nn.Flatten(), nn.Linear(maps[-1] * side * side, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(dropout)) if dropout else nn.Sequential(*layers)


def conv_body(
    shape: Sequence[int], maps: Sequence[int], kernel: int, pools: int, widths: Sequence[int]
) -> nn.Sequential:
    """Net without output layer for images: convolutions with ReLU, the first `pools` pooled 2 x 2, and ReLU layers.

    Args:
        shape: (C, H, W) of an image.
        maps: Of each convolution.
        kernel: Side of the filters, odd; borders are padded.
        pools: How many convolutions are followed by max pooling.
        widths: Units in each fully connected layer.
    """
    channels, height, width = shape
    layers: list[nn.Module] = []
    for k, (inputs, outputs) in enumerate(pairwise((channels, *maps))):
        layers += [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU()]
        if k < pools:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    layers.append(nn.Flatten())
    for inputs, outputs in pairwise((maps[-1] * height * width, *widths)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class Standardise(nn.Module):
    """(x - mean) / std with two given numbers, in one pass over x.

    Args:
        mean: Of what it is given.
        std: Its standard deviation.
    """

    shift: torch.Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.register_buffer("shift", torch.tensor(-mean / std), persistent=False)

    def extra_repr(self) -> str:
        """The numbers."""
        return f"{self.mean:g}, {self.std:g}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Do it."""
        return torch.add(self.shift, x, alpha=1 / self.std)


def strided_body(
    shape: Sequence[int], convolutions: Sequence[tuple[int, tuple[int, int], int]], units: int
) -> nn.Sequential:
    """Net without output layer of Atari's agents: convolutions with stride and one fully connected layer, all ReLU.

    Args:
        shape: (C, H, W) of an observation.
        convolutions: Maps, height and width of the filters, and stride of each; borders are not padded.
        units: Of the fully connected layer.
    """
    channels, *sides = shape
    layers: list[nn.Module] = []
    for maps, kernel, stride in convolutions:
        layers += [nn.Conv2d(channels, maps, kernel, stride), nn.ReLU()]
        channels, sides = maps, [(side - k) // stride + 1 for side, k in zip(sides, kernel, strict=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * sides[0] * sides[1], units), nn.ReLU())


def optimizer(
    name: str, model: nn.Module, *, lr: float, momentum: float = 0.0, adam_eps: float = 1e-8
) -> torch.optim.Optimizer:
    """Return "sgd", "adam" or "rmsprop", A3C's, over all parameters; a ValueError names any other.

    Fused Adam computes the same and halves the time of a step of a wide net on a CPU.
    """
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    if name == "adam":
        return torch.optim.Adam(model.parameters(), lr=lr, eps=adam_eps, fused=True)
    if name == "rmsprop":
        return torch.optim.RMSprop(model.parameters(), lr=lr, alpha=0.99, eps=1e-5)
    raise ValueError(f"optimizer must be 'sgd', 'adam' or 'rmsprop', got {name!r}")


def dqn_rmsprop(model: nn.Module, *, lr: float, max_lr: float = 2.5e-3, batch_size: int = 32) -> torch.optim.Optimizer:
    """Return RMSProp with the numbers of Kirkpatrick et al. 2017 (table 2): decay 0.95, no momentum, a largest rate.

    A step is lr g / (sqrt(v) + eps), and eps = lr / max_lr: for small gradients it is max_lr g, and never more. The
    paper gives a "max learning rate" of 2.5e-3 for lr 2.5e-4, no eps, and not how the two go together; eps is 0.1 then,
    as is the square root of the 0.01 that DQN adds to v within the root (Mnih et al. 2015). DQN's g is the sum over a
    mini-batch. For the mean, `batch_size` times smaller, the same step has eps / batch_size: without that, agents on
    MinAtar learn nothing. Not centred, as the paper does not say that it is.
    """
    return torch.optim.RMSprop(model.parameters(), lr=lr, alpha=0.95, eps=lr / max_lr / batch_size)
