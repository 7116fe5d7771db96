"""MNIST-Variation of Yoon et al. 2018: rotated digits over photographs, 1,000, 200 and 5,000 images a class.

The paper's data are very likely "MNIST rotated + background images" of Larochelle et al. 2007, whose .amat files are
read where they are. Else the same is made of MNIST's digits and the two photographs that ship with scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import affine_grid, grid_sample

from benchmarks.data.arrays import Images, digits, make_benchmark, mnist
from benchmarks.data.download import intact

FILES = (
    "mnist_all_background_images_rotation_normalized_train_valid.amat",
    "mnist_all_background_images_rotation_normalized_test.amat",
)
PER_CLASS = (1000, 200, 5000)
"""Training, validation and test images a class."""
CONTRAST = 1.0
"""Of the photographs against the digits; chosen so that one net for each task has the paper's AUROC, about .80."""


@dataclass(frozen=True)
class Parts:
    """Images (N, 28, 28) uint8 and labels (N,) of three sets."""

    train: tuple[NDArray[np.uint8], NDArray[np.int64]]
    valid: tuple[NDArray[np.uint8], NDArray[np.int64]]
    test: tuple[NDArray[np.uint8], NDArray[np.int64]]
    name: str


def mnist_variation(root: str | Path, *, seed: int, per_class: Sequence[int] = PER_CLASS, data: str = "mnist") -> Parts:
    """Return the images, split at random by `seed`: the published ones where `root` has their files, else ours.

    Args:
        root: Folder of the data.
        seed: Of the split; rotations and patches are the same for all.
        per_class: Training, validation and test images a class.
        data: "mnist", or "digits" to make them of scikit-learn's 8 x 8 digits.

    Raises:
        ValueError: If there are no such data, a file is not what it should be, or there are too few images of a class.
        FileNotFoundError: If neither the files nor MNIST are there.
    """
    root = Path(root)
    if data not in ("mnist", "digits"):
        raise ValueError(f"data must be 'mnist' or 'digits', got {data!r}")
    if data == "mnist" and all((root / name).is_file() for name in FILES):
        read = [read_amat(root / name) for name in FILES]
        x, y = (np.concatenate([part[k] for part in read]) for k in (0, 1))
        return split_by_class(x, y, per_class, seed=seed, name="mnist-rot-back-image")
    arrays = mnist(root) if data == "mnist" else digits()
    x, y = np.concatenate([arrays.x_train, arrays.x_test]), np.concatenate([arrays.y_train, arrays.y_test])
    kept = np.concatenate([np.flatnonzero(y == c)[: sum(per_class)] for c in range(10)])
    made = over_photographs(rotated(x[kept], seed=0), sample_photographs(), seed=0)
    return split_by_class(made, y[kept], per_class, seed=seed, name=f"{data}-variation")


def read_amat(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read a text file of 784 grey levels in [0, 1] and a label a line.

    Raises:
        ValueError: If it is damaged, or the lines have another number of columns.
    """
    with intact(path):
        rows = np.loadtxt(path, dtype=np.float32, ndmin=2)
    if rows.shape[1] != 785:
        raise ValueError(f"{path}: expected 784 grey levels and a label a line, got {rows.shape[1]} columns")
    # The published images are stored column by column.
    pixels = np.round(rows[:, :784] * 255).astype(np.uint8).reshape(-1, 28, 28).transpose(0, 2, 1)
    return pixels, rows[:, 784].astype(np.int64)


def rotated(images: NDArray[np.uint8], *, seed: int) -> NDArray[np.float32]:
    """Return images turned by angles from U(0, 2 pi), bilinear, in [0, 1]."""
    angles = torch.rand(len(images), generator=torch.Generator().manual_seed(seed)) * 2 * torch.pi
    parts = []
    for part, angle in zip(torch.from_numpy(images).split(5000), angles.split(5000), strict=True):
        zero = torch.zeros_like(angle)
        turn = torch.stack([angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero], 1).view(-1, 2, 3)
        x = part[:, None].float() / 255
        parts.append(grid_sample(x, affine_grid(turn, list(x.shape), align_corners=False), align_corners=False)[:, 0])
    return torch.cat(parts).numpy()


def sample_photographs() -> list[NDArray[np.float32]]:
    """Return scikit-learn's two photographs in grey, in [0, 1]."""
    from sklearn.datasets import load_sample_images

    return [(image @ np.array([0.299, 0.587, 0.114]) / 255).astype(np.float32) for image in load_sample_images().images]


def over_photographs(
    digits: NDArray[np.float32], photographs: Sequence[NDArray[np.float32]], *, seed: int, contrast: float = CONTRAST
) -> NDArray[np.uint8]:
    """Return digits over random patches: d + (1 - d) contrast p, for patches p stretched to [0, 1].

    Patches with a standard deviation below 0.1 are drawn again, as Larochelle et al. left out flat ones.
    """
    random = np.random.default_rng(seed)
    n, side = len(digits), digits.shape[1]
    patches = np.empty_like(digits)
    missing = np.arange(n)
    while len(missing):
        which = random.integers(len(photographs), size=len(missing))
        for place, photograph in zip(missing, (photographs[k] for k in which), strict=True):
            top = random.integers(photograph.shape[0] - side + 1)
            left = random.integers(photograph.shape[1] - side + 1)
            patches[place] = photograph[top : top + side, left : left + side]
        flat = patches[missing].reshape(len(missing), -1).std(1) < 0.1
        missing = missing[flat]
    low = patches.min((1, 2), keepdims=True)
    patches = (patches - low) / (patches.max((1, 2), keepdims=True) - low)
    return np.round((digits + (1 - digits) * contrast * patches) * 255).astype(np.uint8)


def rows_by_class(y: NDArray[np.int64], per_class: Sequence[int], *, seed: int) -> list[NDArray[np.int64]]:
    """Return the numbers of training, validation and test samples, so many of each class, at random.

    Raises:
        ValueError: If there are too few of a class.
    """
    random = np.random.default_rng(seed)
    chosen: list[list[NDArray[Any]]] = [[], [], []]
    for label in np.unique(y):
        rows = random.permutation(np.flatnonzero(y == label))
        if len(rows) < sum(per_class):
            raise ValueError(f"per_class: {sum(per_class)} samples of class {label} asked for, there are {len(rows)}")
        for part, own in zip(chosen, np.split(rows, np.cumsum(per_class))[:3], strict=True):
            part.append(own)
    return [np.concatenate(part) for part in chosen]


def split_by_class(
    x: NDArray[np.uint8], y: NDArray[np.int64], per_class: Sequence[int], *, seed: int, name: str
) -> Parts:
    """Return training, validation and test images, so many of each class, at random."""
    train, valid, test = rows_by_class(y, per_class, seed=seed)
    return Parts((x[train], y[train]), (x[valid], y[valid]), (x[test], y[test]), name)


def one_vs_rest(parts: Parts, *, tasks: int = 10) -> Any:
    """Make a benchmark of binary tasks: in task t all images, those of class t labelled 1 and the others 0."""
    streams: dict[str, list[Images]] = {}
    for name, (x, y) in (("train", parts.train), ("valid", parts.valid), ("test", parts.test)):
        pixels = torch.from_numpy(x).flatten(1)
        labels = [torch.from_numpy((y == t).astype(np.int64)) for t in range(tasks)]
        streams[name] = [
            Images(pixels=pixels, labels=own, shape=(pixels.shape[1],), task_label=t) for t, own in enumerate(labels)
        ]
    return make_benchmark(streams, 2)
