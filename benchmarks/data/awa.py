"""Animals with Attributes 2 (Xian et al. 2018): the official features, reduced by PCA, one class against the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import dataset_benchmark
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks.data.arrays import digits
from benchmarks.data.download import intact
from benchmarks.data.mnist_variation import rows_by_class

FILES = ("AwA2-features.txt", "AwA2-labels.txt")


class Features(TensorDataset):
    """Vectors of features with labels and one task label, as Avalanche wraps data sets.

    Args:
        x: (N, D) float32.
        y: (N,) int64.
        task_label: Of every sample.
    """

    def __init__(self, x: Tensor, y: Tensor, task_label: int) -> None:
        super().__init__(x, y)
        self.targets = y.tolist()
        self.targets_task_labels = ConstantSequence(task_label, len(y))


def awa2(root: str | Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read features (N, 2048) and labels from 0 on from the official text files.

    Raises:
        FileNotFoundError: If they are not there; the message names them.
        ValueError: If one is damaged, or they are not of the same length.
    """
    paths = [Path(root) / name for name in FILES]
    if absent := [path.name for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"no {' and no '.join(absent)} under {root}: put the files of the official AwA2 features (ResNet-101) there"
        )
    with intact(paths[0]):
        features = np.loadtxt(paths[0], dtype=np.float32, ndmin=2)
    with intact(paths[1]):
        labels = np.loadtxt(paths[1], dtype=np.int64, ndmin=1)
    if len(features) != len(labels):
        raise ValueError(f"{FILES[0]} has {len(features)} lines, {FILES[1]} {len(labels)}")
    return features, labels - labels.min()


def digit_features() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scikit-learn's digits as features."""
    arrays = digits()
    return (arrays.x_train.reshape(len(arrays.x_train), -1) / 255).astype(np.float32), arrays.y_train


def one_vs_rest_features(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    per_class: Sequence[int],
    tasks: int,
    dimensions: int,
    seed: int,
) -> Any:
    """Make a benchmark of binary tasks on principal components: in task t, class t against the rest.

    Components are those of the training samples, scaled by the standard deviation of the first of them.

    Args:
        features: (N, D).
        labels: (N,).
        per_class: Training, validation and test samples of each class, drawn by `seed`.
        tasks: Number of tasks, at most that of the classes.
        dimensions: Components that are kept; fewer where there are fewer samples.
        seed: Of the draw.

    Raises:
        ValueError: If there are too few samples of a class, or classes for the tasks.
    """
    from sklearn.decomposition import PCA

    classes = np.unique(labels)
    if not 1 <= tasks <= len(classes):
        raise ValueError(f"tasks: expected 1 to {len(classes)}, the number of classes, got {tasks}")
    train, valid, test = rows_by_class(labels, per_class, seed=seed)
    pca = PCA(min(dimensions, len(train), features.shape[1]), random_state=seed).fit(features[train])
    scale = np.sqrt(pca.explained_variance_[0])
    streams: dict[str, list[Features]] = {}
    for name, rows in (("train", train), ("valid", valid), ("test", test)):
        x = torch.from_numpy((pca.transform(features[rows]) / scale).astype(np.float32))
        streams[name] = [
            Features(x, torch.from_numpy((labels[rows] == classes[t]).astype(np.int64)), t) for t in range(tasks)
        ]
    return dataset_benchmark(streams["train"], streams["test"], other_streams_datasets={"valid": streams["valid"]})
