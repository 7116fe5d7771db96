"""Two domains of the same ten digits, for experiments that learn one after the other.

MNIST, and one of these:

- "svhn": house numbers (Netzer et al. 2011) as torchvision reads them; MNIST is then padded to 32 x 32 and made RGB.
- "mnist-negative": MNIST with black and white exchanged.
- "mnist-m": the difference |digit - patch| of a digit and a patch of a photograph in each channel (Ganin et al. 2016);
  the photographs are those of CIFAR-100, where the paper has BSDS500's.
- "digits-negative": scikit-learn's digits with black and white exchanged, beside these digits in place of MNIST.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.arrays import Arrays, Images, cifar100, digits, image_streams, make_benchmark, mnist
from benchmarks.data.download import intact

DOMAINS = ("svhn", "mnist-negative", "mnist-m", "digits-negative")


def svhn(root: str | Path) -> Arrays:
    """Read SVHN, (N, 32, 32, 3) uint8, from `root/train_32x32.mat` and `root/test_32x32.mat`.

    Raises:
        FileNotFoundError: If they are not there; the message names what to do.
    """
    from torchvision.datasets import SVHN

    root = Path(root)
    parts = []
    for part in ("train", "test"):
        if not (root / f"{part}_32x32.mat").is_file():
            raise FileNotFoundError(
                f"no {part}_32x32.mat under {root}: run torchvision.datasets.SVHN({str(root)!r}, {part!r}, "
                "download=True) once where there is a network, or choose another domain, for example mnist-negative"
            )
        with intact(root / f"{part}_32x32.mat"):
            data = SVHN(str(root), split=part)
        parts += [data.data.transpose(0, 2, 3, 1), data.labels.astype(np.int64)]
    return Arrays(parts[0], parts[1], parts[2], parts[3], "svhn")


def domain_pair(domain: str, root: str | Path) -> tuple[Arrays, Arrays]:
    """Return MNIST and the other domain, their images in the same format.

    Raises:
        ValueError: If there is no such domain.
        FileNotFoundError: If its data are not there.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain must be one of {', '.join(DOMAINS)}, got {domain!r}")
    plain = digits() if domain == "digits-negative" else mnist(root)
    if domain.endswith("-negative"):
        return plain, replace(plain, x_train=255 - plain.x_train, x_test=255 - plain.x_test, name=domain)
    if domain == "svhn":
        other = svhn(root)
        return replace(plain, x_train=padded(plain.x_train), x_test=padded(plain.x_test)), other
    photographs = cifar100(root)
    coloured = replace(plain, x_train=rgb(plain.x_train), x_test=rgb(plain.x_test))
    return coloured, replace(
        plain,
        x_train=on_photographs(plain.x_train, photographs.x_train, seed=0),
        x_test=on_photographs(plain.x_test, photographs.x_test, seed=1),
        name=domain,
    )


def rgb(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey images (N, H, W) as (N, H, W, 3)."""
    return np.repeat(images[..., None], 3, axis=3)


def padded(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey images (N, 28, 28) as (N, 32, 32, 3), black around."""
    return rgb(np.pad(images, ((0, 0), (2, 2), (2, 2))))


def on_photographs(images: NDArray[np.uint8], photographs: NDArray[np.uint8], *, seed: int) -> NDArray[np.uint8]:
    """Return |digit - patch| for a random patch of a random photograph, (N, H, W, 3).

    Args:
        images: (N, H, W) uint8.
        photographs: (M, height, width, 3) uint8, at least H x W.
        seed: Of the patches.
    """
    random = np.random.default_rng(seed)
    height, width = images.shape[1:]
    which = random.integers(len(photographs), size=len(images))
    top = random.integers(photographs.shape[1] - height + 1, size=len(images))
    left = random.integers(photographs.shape[2] - width + 1, size=len(images))
    rows = (top[:, None] + np.arange(height))[:, :, None]
    columns = (left[:, None] + np.arange(width))[:, None, :]
    patches = photographs[which[:, None, None], rows, columns].astype(np.int16)
    return np.abs(images[..., None].astype(np.int16) - patches).astype(np.uint8)


def in_turn(first: Arrays, second: Arrays, *, seed: int, validation: int = 0, task_labels: bool = False) -> Any:
    """Make a benchmark of two experiences, one a data set, with images (C, H, W).

    Args:
        first: Of the first experience.
        second: Of the second, in the same format.
        seed: Of the held-out images.
        validation: Number of training images of each to hold out, as stream "valid".
        task_labels: Label the second with 1; else all labels are 0.

    Returns:
        An Avalanche benchmark with `train_stream`, `test_stream` and, with `validation`, `streams["valid"]`.

    Raises:
        ValueError: If the formats differ, or `validation` is out of range.
    """
    if first.x_train.shape[1:] != second.x_train.shape[1:]:
        raise ValueError(f"images of {first.name} and {second.name} have different shapes")
    datasets: dict[str, list[Images]] = {}
    for task, arrays in enumerate((first, second)):
        streams, shape = image_streams(arrays, validation, seed, flat=False)
        for name, (pixels, labels) in streams.items():
            label = task if task_labels else 0
            datasets.setdefault(name, []).append(Images(pixels=pixels, labels=labels, shape=shape, task_label=label))
    return make_benchmark(datasets, first.n_classes)
