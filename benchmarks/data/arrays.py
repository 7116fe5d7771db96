"""Images in memory, and the Avalanche benchmarks made of them.

Images are permuted and split as whole arrays when the benchmark is built, and stay uint8: ten permutations of
MNIST take 550 MB, a quarter of what they would as float32. Batches become float32 in [0, 1] when they are asked for:
sample by sample through ``__getitem__``, as Avalanche's loaders do, or at once through ``gather``, as
:class:`avl_plugins.data.loading.InMemoryLoaderPlugin` does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import dataset_benchmark
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.data.download import MNIST_FILES, download_mnist, intact, missing_mnist, name_of, read_idx


@dataclass(frozen=True)
class Arrays:
    """A labelled image data set: images (N, H, W) or (N, H, W, C) uint8, labels (N,) int64."""

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]
    name: str

    @property
    def n_classes(self) -> int:
        """Number of classes, counted as the largest label plus one."""
        return int(self.y_train.max()) + 1


def mnist(root: str | os.PathLike[str], *, verify: bool = True) -> Arrays:
    """Read MNIST from torchvision's layout (``root/MNIST/raw``), downloading it there first when absent.

    Args:
        root: Folder of the data.
        verify: Refuse files that are not MNIST's. Else other images in files of these names are taken, under the name
            "fashion-mnist" or "mnist-like (unverified)".

    Raises:
        FileNotFoundError: It is absent and could not be downloaded; the message names what to do.
        ValueError: A file there is not the IDX file it should be, or not MNIST's.
    """
    raw = Path(root) / "MNIST" / "raw"
    if missing_mnist(raw):
        download_mnist(raw)
    x_train, y_train, x_test, y_test = (read_idx(raw / name) for name in MNIST_FILES)
    name = name_of(raw)
    if verify and name != "mnist":
        raise ValueError(
            f"{raw} holds {name}, not MNIST: move its files away, and MNIST is downloaded, or take them for what they "
            "are, with --data mnist-like or mnist(root, verify=False)"
        )
    for x, y in ((x_train, y_train), (x_test, y_test)):
        if x.ndim != 3 or y.shape != x.shape[:1]:
            raise ValueError(f"{raw} holds images {x.shape} with labels {y.shape}; they must be (N, H, W) and (N,)")
    return Arrays(x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64), name)


def cifar100(root: str | os.PathLike[str]) -> Arrays:
    """Read CIFAR-100 from ``root/cifar100.npz`` or from torchvision's layout (``root/cifar-100-python``).

    Raises:
        FileNotFoundError: ``root`` holds neither; the message names both ways.
        ValueError: A file is damaged, or the npz file is not what it should be; names it.
    """
    root = Path(root)
    names = ("x_train", "y_train", "x_test", "y_test")
    path = root / "cifar100.npz"
    if path.is_file():
        with intact(path), path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if absent := [name for name in names if name not in file]:
                raise ValueError(f"it has no array named {', '.join(absent)}")
            x_train, y_train, x_test, y_test = (file[name] for name in names)
            _check_cifar(x_train, y_train)
            _check_cifar(x_test, y_test)
    elif (root / "cifar-100-python").is_dir():
        from torchvision.datasets import CIFAR100  # costs a second to import, and only this branch needs it

        with intact(root / "cifar-100-python"):
            train, test = CIFAR100(root, train=True), CIFAR100(root, train=False)
        x_train, x_test = train.data, test.data
        y_train, y_test = np.asarray(train.targets), np.asarray(test.targets)
    else:
        raise FileNotFoundError(
            f"no CIFAR-100 under {root}. Either run torchvision.datasets.CIFAR100({str(root)!r}, download=True) "
            "once, or put a cifar100.npz there (x_train, y_train, x_test, y_test; images uint8, N x 32 x 32 x 3)"
        )
    return Arrays(x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64), "cifar100")


def _check_cifar(x: NDArray[Any], y: NDArray[Any]) -> None:
    if x.dtype != np.uint8 or x.shape[1:] != (32, 32, 3) or y.shape != x.shape[:1]:
        raise ValueError(f"images {x.shape} {x.dtype} and labels {y.shape}: not (N, 32, 32, 3) uint8 and (N,)")
    if y.dtype.kind not in "iu" or not len(y) or y.min() < 0 or y.max() > 99:
        raise ValueError("its labels are not integers from 0 to 99")


def digits() -> Arrays:
    """Return the 1,797 8 x 8 digits that ship with scikit-learn, 360 of them (the same each time) as the test set."""
    from sklearn.datasets import load_digits  # an extra: only those who ask for digits need it

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # 17 grey levels onto 0..255
    labels = bunch.target.astype(np.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).numpy()
    test, train = order[:360], order[360:]
    return Arrays(images[train], labels[train], images[test], labels[test], "digits")


class Images(Dataset):
    """Labelled uint8 images, read as float32 in [0, 1].

    Args:
        pixels: Flattened images, (N, D) uint8, channel first.
        labels: (N,) int64.
        shape: Shape of one image; (D,) when flat.
        task_label: Task label of every sample.
    """

    def __init__(self, *, pixels: Tensor, labels: Tensor, shape: tuple[int, ...], task_label: int = 0) -> None:
        self.pixels = pixels
        self.labels = labels
        self.shape = shape
        # Avalanche reads these two when it wraps the data set.
        self.targets = labels.tolist()
        self.targets_task_labels = ConstantSequence(task_label, len(labels))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index].view(self.shape).float().div_(255), self.targets[index]

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (len(rows), *shape) and labels of ``rows``: what ``__getitem__`` gives, as one batch."""
        pixels = self.pixels.index_select(0, rows).view(len(rows), *self.shape)
        return pixels.float().div_(255), self.labels.index_select(0, rows)


def permuted(
    arrays: Arrays,
    n_tasks: int,
    *,
    seed: int,
    square: int | None = None,
    validation: int = 0,
    task_labels: bool = False,
    identity_first: bool = False,
    flat: bool = True,
) -> Any:
    """Make a benchmark of ``n_tasks`` fixed random pixel permutations of the same images.

    Args:
        arrays: The images. With colour, a pixel moves with its channels.
        n_tasks: Number of experiences.
        seed: Of the permutations and of the held-out images. Task k has the same permutation whatever ``n_tasks``.
        square: Permute only the central ``square`` x ``square`` pixels.
        validation: Number of training images to hold out, the same ones for each task, as stream "valid".
        task_labels: Label task k with k; else all labels are 0.
        identity_first: Leave the first task's pixels in place; the paper permutes them too.
        flat: Images are vectors; else (C, H, W).

    Returns:
        An Avalanche benchmark with ``train_stream``, ``test_stream`` and, with ``validation``, ``streams["valid"]``.

    Raises:
        ValueError: ``n_tasks``, ``square`` or ``validation`` is out of range.
    """
    height, width = arrays.x_train.shape[1:3]
    if n_tasks < 1:
        raise ValueError(f"n_tasks must be at least 1, got {n_tasks}")
    if square is not None and not 1 <= square <= min(height, width):
        raise ValueError(f"square must be between 1 and the image's side {min(height, width)}, got {square}")
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(height * width).view(height, width)
    if square is not None:
        top, left = (height - square) // 2, (width - square) // 2
        places = places[top : top + square, left : left + square]
    places = places.flatten()
    orders: list[Tensor] = []
    for _ in range(n_tasks):
        order = torch.arange(height * width)
        order[places] = places[torch.randperm(len(places), generator=generator)]
        orders.append(order)
    if identity_first:
        orders[0] = torch.arange(height * width)

    streams, shape = image_streams(arrays, validation, seed, flat)
    channels = streams["train"][0].shape[1] // (height * width)
    datasets: dict[str, list[Images]] = {name: [] for name in streams}
    for name, (pixels, labels) in streams.items():
        for task, order in enumerate(orders):
            columns = torch.cat([order + channel * height * width for channel in range(channels)])
            own = torch.from_numpy(np.take(pixels.numpy(), columns.numpy(), axis=1))  # 3 x torch's indexing
            datasets[name].append(Images(pixels=own, labels=labels, shape=shape, task_label=task if task_labels else 0))
    return make_benchmark(datasets, arrays.n_classes)


def split(
    arrays: Arrays,
    n_experiences: int,
    *,
    seed: int = 0,
    task_labels: bool = True,
    class_ids_from_zero: bool | None = None,
    shuffle_classes: bool = False,
    validation: int = 0,
    flat: bool = True,
) -> Any:
    """Make a benchmark that shows the classes in ``n_experiences`` groups of equal size.

    Args:
        arrays: The images.
        n_experiences: Number of experiences; divides the number of classes.
        seed: Of the class order and of the held-out images.
        task_labels: Label experience k with k; else all labels are 0.
        class_ids_from_zero: Count each experience's classes from 0; by default where there are task labels, so
            that each head has just its own classes. Else classes keep their numbers in ``arrays``.
        shuffle_classes: Draw the order of the classes; else 0, 1, 2, ...
        validation: Number of training images to hold out, drawn from all classes, as stream "valid".
        flat: Images are vectors; else (C, H, W).

    Returns:
        An Avalanche benchmark with ``train_stream``, ``test_stream`` and, with ``validation``, ``streams["valid"]``.

    Raises:
        ValueError: ``n_experiences`` does not divide the number of classes, or ``validation`` is out of range.
    """
    n_classes = arrays.n_classes
    if n_experiences < 1 or n_classes % n_experiences:
        raise ValueError(f"n_experiences must divide the {n_classes} classes, got {n_experiences}")
    if class_ids_from_zero is None:
        class_ids_from_zero = task_labels
    classes = torch.arange(n_classes)
    if shuffle_classes:
        classes = torch.randperm(n_classes, generator=torch.Generator().manual_seed(seed))
    groups = classes.view(n_experiences, -1)
    streams, shape = image_streams(arrays, validation, seed, flat)
    datasets: dict[str, list[Images]] = {name: [] for name in streams}
    for name, (pixels, labels) in streams.items():
        for task, group in enumerate(groups):
            rows = torch.isin(labels, group).nonzero().flatten()
            own = labels[rows]
            if class_ids_from_zero:
                own = (own[:, None] == group).int().argmax(1)
            datasets[name].append(
                Images(pixels=pixels[rows], labels=own, shape=shape, task_label=task if task_labels else 0)
            )
    return make_benchmark(datasets, n_classes)


def image_streams(
    arrays: Arrays, validation: int, seed: int, flat: bool
) -> tuple[dict[str, tuple[Tensor, Tensor]], tuple[int, ...]]:
    """Return flattened images and labels of each stream, and the shape of one image."""
    n_train = len(arrays.y_train)
    if not 0 <= validation < n_train:
        raise ValueError(f"validation must be between 0 and {n_train - 1} training images, got {validation}")
    x_train, x_test = (_channel_first(torch.from_numpy(x)) for x in (arrays.x_train, arrays.x_test))
    y_train, y_test = torch.from_numpy(arrays.y_train), torch.from_numpy(arrays.y_test)
    shape = (x_train[0].numel(),) if flat else tuple(x_train.shape[1:])
    x_train, x_test = x_train.flatten(1).contiguous(), x_test.flatten(1).contiguous()
    streams = {"train": (x_train, y_train), "test": (x_test, y_test)}
    if validation:
        order = torch.randperm(n_train, generator=torch.Generator().manual_seed(seed))
        held_out, kept = order[:validation].sort().values, order[validation:].sort().values
        streams["train"] = (x_train[kept], y_train[kept])
        streams["valid"] = (x_train[held_out], y_train[held_out])
    return streams, shape


def _channel_first(images: Tensor) -> Tensor:
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)


def make_benchmark(datasets: dict[str, list[Images]], n_classes: int) -> Any:
    """Return an Avalanche benchmark of streams "train", "test" and any others, one experience a data set."""
    others = {name: views for name, views in datasets.items() if name not in ("train", "test")}
    benchmark = dataset_benchmark(datasets["train"], datasets["test"], other_streams_datasets=others)
    benchmark.n_classes = n_classes  # as nc_benchmark has it
    return benchmark
