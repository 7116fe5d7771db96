"""Networks for generators: convolutional ones for images, fully connected ones where pixels have no order."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

from torch import Tensor, nn

from avl_plugins.dgr.generator import check_module
from avl_plugins.tasks.arguments import check_count, check_flag

__all__ = [
    "conv_critic",
    "conv_decoder",
    "conv_encoder",
    "mlp_critic",
    "mlp_decoder",
    "mlp_encoder",
]


class Reshape(nn.Module):
    """(N, ...) -> (N, *shape)."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return x in the other shape."""
        return x.reshape(len(x), *self.shape)


def conv_decoder(
    latent: int, shape: Sequence[int], *, maps: int = 32, output: nn.Module | None = None, normalise: bool = True
) -> nn.Sequential:
    """From z (N, latent) to images (N, C, H, W), H and W divisible by 4: linear, then twice a convolution upwards.

    Maps: 2 maps at a quarter of the size, `maps` at a half, C at the full size.

    Args:
        latent: size of z.
        shape: (C, H, W).
        maps: feature maps at half the size.
        output: last module, for example `nn.Tanh()` for `WGANGP`; None, logits for `VAE`.
        normalise: BatchNorm between the layers.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If one is out of range, or `shape` is another one.

    Example:
        >>> import torch
        >>> conv_decoder(16, (1, 8, 8), output=nn.Tanh())(torch.randn(5, 16)).shape
        torch.Size([5, 1, 8, 8])
    """
    channels, height, width = _image_shape(shape)
    check_count("latent", latent)
    check_count("maps", maps)
    check_module("output", output, none="no module after the last layer")
    check_flag("normalise", normalise)
    bottom = (2 * maps, height // 4, width // 4)

    def norm(features: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(features)] if normalise else []

    layers: list[nn.Module] = [
        nn.Linear(latent, prod(bottom)),
        Reshape(bottom),
        *norm(2 * maps),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * maps, maps, 4, stride=2, padding=1),
        *norm(maps),
        nn.ReLU(),
        nn.ConvTranspose2d(maps, channels, 4, stride=2, padding=1),
    ]
    return nn.Sequential(*layers, *([] if output is None else [output]))


def conv_critic(shape: Sequence[int], *, maps: int = 32, outputs: int = 1) -> nn.Sequential:
    """From images (N, C, H, W), H and W divisible by 4, to (N, outputs): two convolutions with stride 2, then linear.

    Without BatchNorm, as the gradient penalty wants it.

    Example:
        >>> import torch
        >>> conv_critic((1, 8, 8))(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 1])
    """
    channels, height, width = _image_shape(shape)
    check_count("maps", maps)
    check_count("outputs", outputs)
    return nn.Sequential(
        nn.Conv2d(channels, maps, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(maps, 2 * maps, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * maps * (height // 4) * (width // 4), outputs),
    )


def conv_encoder(shape: Sequence[int], latent: int, *, maps: int = 32) -> nn.Sequential:
    """From images to means and log variances (N, 2 latent).

    Example:
        >>> import torch
        >>> conv_encoder((1, 8, 8), 16)(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 32])
    """
    check_count("latent", latent)
    return conv_critic(shape, maps=maps, outputs=2 * latent)


def mlp_decoder(
    latent: int, shape: Sequence[int], *, units: Sequence[int] = (512, 512), output: nn.Module | None = None
) -> nn.Sequential:
    """From z (N, latent) to (N, *shape) through ReLU layers.

    Example:
        >>> import torch
        >>> mlp_decoder(16, (8, 8), units=(100,))(torch.randn(5, 16)).shape
        torch.Size([5, 8, 8])
    """
    _check_mlp(shape, units)
    check_count("latent", latent)
    check_module("output", output, none="no module after the last layer")
    layers = _mlp((latent, *units, prod(shape)))
    return nn.Sequential(*layers, Reshape(shape), *([] if output is None else [output]))


def mlp_critic(shape: Sequence[int], *, units: Sequence[int] = (512, 512), outputs: int = 1) -> nn.Sequential:
    """From (N, *shape) to (N, outputs) through ReLU layers.

    Example:
        >>> import torch
        >>> mlp_critic((8, 8), units=(100,))(torch.rand(5, 8, 8)).shape
        torch.Size([5, 1])
    """
    _check_mlp(shape, units)
    check_count("outputs", outputs)
    return nn.Sequential(nn.Flatten(), *_mlp((prod(shape), *units, outputs)))


def mlp_encoder(shape: Sequence[int], latent: int, *, units: Sequence[int] = (400, 400)) -> nn.Sequential:
    """From (N, *shape) to means and log variances (N, 2 latent).

    Example:
        >>> import torch
        >>> mlp_encoder((8, 8), 16, units=(100,))(torch.rand(5, 8, 8)).shape
        torch.Size([5, 32])
    """
    check_count("latent", latent)
    return mlp_critic(shape, units=units, outputs=2 * latent)


def _mlp(sizes: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]


def _check_mlp(shape: Any, units: Any) -> None:
    _check_sizes("shape", shape)
    _check_sizes("units", units)


def _check_sizes(name: str, sizes: Any) -> None:
    """Refuse what is no sequence of positive integers; an empty one is fine."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise TypeError(f"{name} must be a sequence of integers, got {sizes!r}")
    for size in sizes:
        check_count(name, size)


def _image_shape(shape: Any) -> tuple[int, int, int]:
    _check_sizes("shape", shape)
    if len(shape) != 3 or shape[1] % 4 or shape[2] % 4:
        raise ValueError(f"shape must be (channels, height, width), both sides divisible by 4, got {tuple(shape)}")
    channels, height, width = shape
    return channels, height, width
