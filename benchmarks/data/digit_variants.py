"""Pong Soup on images: eight variants of the same digits, as Rusu et al. 2016 (sec. 5.2) made them of Pong.

A variant is a function of whole uint8 arrays (N, H, W), light strokes on black as MNIST has them. The paper's Pong has
a background of its own, which Black and White replace while what moves on it stays; so here:

| variant | background | strokes | then |
| --- | --- | --- | --- |
| base | 85 | 170 | |
| noisy | 85 | 170 | one frozen Gaussian noise image is added, the same to all images |
| black | 0 | 170 | |
| white | 255 | 170 | |
| zoom | 85 | 170 | scaled to 75 % and moved into the lower right corner |
| hflip, vflip, hvflip | 85 | 170 | mirrored left-right, upside down, both |

Strokes keep their grey level, 170: contrast is +85 for base, +170 for black, and -85 for white, where dark strokes are
on light ground. The paper gives neither grey levels, nor the noise's standard deviation, nor the zoom's offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from benchmarks.data.arrays import Arrays, Images, make_benchmark

VARIANTS = ("base", "noisy", "black", "white", "zoom", "hflip", "vflip", "hvflip")
STROKE = 170
BACKGROUND = {"black": 0, "white": 255}
"""Grey level behind the strokes; 85 in the other variants."""
GREY = 85
FLIPPED_AXES = {"hflip": (2,), "vflip": (1,), "hvflip": (1, 2)}
ZOOM = 0.75


def vary(images: NDArray[np.uint8], variant: str, *, seed: int = 0, noise: float = 0.15) -> NDArray[np.uint8]:
    """Return a variant of light-on-black images.

    Args:
        images: (N, H, W) uint8.
        variant: One of ``VARIANTS``.
        seed: Of the frozen noise image.
        noise: Its standard deviation, as a fraction of white.

    Returns:
        New images (N, H, W) uint8.

    Raises:
        ValueError: There is no such variant, the images are not (N, H, W) uint8, or ``noise`` is negative.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    if images.ndim != 3 or images.dtype != np.uint8:
        raise ValueError(f"images must be (N, H, W) uint8, got {images.shape} {images.dtype}")
    painted = paint(images, BACKGROUND.get(variant, GREY))
    if variant == "noisy":
        return (painted + noise_image(*images.shape[1:], seed=seed, std=noise)).astype(np.uint8)
    if variant == "zoom":
        return zoom(painted)
    return np.ascontiguousarray(np.flip(painted, FLIPPED_AXES.get(variant, ())))


def paint(images: NDArray[np.uint8], background: int) -> NDArray[np.uint8]:
    """Put light-on-black images on another background: 0 becomes ``background``, 255 becomes ``STROKE``."""
    greys = background + (STROKE - background) * np.arange(256) / 255
    return np.round(greys).astype(np.uint8)[images]


def noise_image(height: int, width: int, *, seed: int, std: float) -> NDArray[np.int16]:
    """Draw Gaussian noise of standard deviation 255 ``std``, cut off at +-85.

    Within that, an image between 85 and 170 stays between 0 and 255, so that the noise is the same on each image.

    Raises:
        ValueError: ``std`` is negative.
    """
    if std < 0:
        raise ValueError(f"noise must not be negative, got {std}")
    drawn = torch.randn(height, width, generator=torch.Generator().manual_seed(seed))
    return (drawn * 255 * std).round().clamp(-GREY, 255 - STROKE).numpy().astype(np.int16)


def zoom(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Scale images on grey to 75 %, with antialiasing, and move them into the lower right corner."""
    height, width = (round(ZOOM * side) for side in images.shape[1:])
    small = interpolate(
        torch.from_numpy(images)[:, None].float(),
        size=(height, width),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )
    out = np.full_like(images, GREY)
    out[:, -height:, -width:] = small[:, 0].round().clamp(0, 255).byte().numpy()
    return out


def soup(
    arrays: Arrays,
    stages: Sequence[tuple[str, int]],
    *,
    seed: int,
    noise: float = 0.15,
    validation: int = 0,
    test: int | None = None,
) -> Any:
    """Make a benchmark that shows variants one after the other, each with its own images.

    No two stages share a training image. Images are handed out from the last stage backwards, so that under one seed
    the last stage has the same ones whatever comes before it.

    Args:
        arrays: The images, (N, H, W).
        stages: Variant and number of training images of each experience: many for a source, few for a target.
        seed: Of the choice of images and of the noise image.
        noise: Standard deviation of the noise image, as a fraction of white.
        validation: Number of training images to hold out, the same ones for each stage, as stream "valid".
        test: Number of test images, the same random ones for each stage and seed; by default all.

    Returns:
        An Avalanche benchmark with ``train_stream``, ``test_stream`` and, with ``validation``, ``streams["valid"]``.
        Images are (1, H, W), experience k has task label k, and each stage's variant is that of its test images, too.

    Raises:
        ValueError: There are no stages, a variant is unknown, or a number of images is out of range.
    """
    if not stages:
        raise ValueError("stages must name at least one variant")
    n_train, n_test = len(arrays.y_train), len(arrays.y_test)
    if any(count < 1 for _, count in stages) or validation < 0 or sum(n for _, n in stages) + validation > n_train:
        raise ValueError(
            f"stages must have at least one image each and, with validation, at most the {n_train} training images "
            f"together, got {[count for _, count in stages]} and {validation}"
        )
    test = n_test if test is None else test
    if not 1 <= test <= n_test:
        raise ValueError(f"test must be between 1 and {n_test} test images, got {test}")

    order = torch.randperm(n_train, generator=torch.Generator().manual_seed(seed))
    test_rows = torch.randperm(n_test, generator=torch.Generator().manual_seed(0))[:test]
    datasets: dict[str, list[Images]] = {"train": [], "test": [], "valid": []}
    end = validation + sum(count for _, count in stages)
    for task, (variant, count) in enumerate(stages):
        rows = {"train": order[end - count : end], "test": test_rows, "valid": order[:validation]}
        end -= count
        for name, own in rows.items():
            x, y = (arrays.x_test, arrays.y_test) if name == "test" else (arrays.x_train, arrays.y_train)
            places = own.sort().values.numpy()
            pixels = vary(x[places], variant, seed=seed, noise=noise)
            datasets[name].append(
                Images(
                    pixels=torch.from_numpy(pixels).flatten(1),
                    labels=torch.from_numpy(y[places]),
                    shape=(1, *pixels.shape[1:]),
                    task_label=task,
                )
            )
    if not validation:
        del datasets["valid"]
    return make_benchmark(datasets, arrays.n_classes)
