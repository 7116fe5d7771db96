"""Shared fixtures: one tiny benchmark of real digits, seeds, and the MNIST folder where there is one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.data.arrays import Arrays, digits, permuted, split
from benchmarks.data.download import missing_mnist


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Bit equality holds for a fixed number of threads, and one is fastest for models this small."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Start each test from the same global random state, and leave dtype and arithmetic as they were.

    Experiments that a test runs in this process flush denormal numbers, which Hypothesis refuses to work without.
    """
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def digits_arrays() -> Arrays:
    """400 training and 200 test digits of 8 x 8 pixels, ten classes."""
    arrays = digits()
    return dataclasses.replace(
        arrays,
        x_train=arrays.x_train[:400],
        y_train=arrays.y_train[:400],
        x_test=arrays.x_test[:200],
        y_test=arrays.y_test[:200],
    )


@pytest.fixture(scope="session")
def digits_split(digits_arrays: Arrays) -> Any:
    """Five experiences of two classes each (labels 0 and 1), task labels 0..4; inputs (64,) float32."""
    return split(digits_arrays, 5, seed=0)


@pytest.fixture(scope="session")
def digits_classes(digits_arrays: Arrays) -> Any:
    """Class-incremental: five experiences of two new classes each, no task labels (all 0)."""
    return split(digits_arrays, 5, seed=0, task_labels=False)


@pytest.fixture(scope="session")
def digits_permuted(digits_arrays: Arrays) -> Any:
    """Three pixel permutations of all ten classes, no task labels (all 0); inputs (64,) float32."""
    return permuted(digits_arrays, 3, seed=0)


@pytest.fixture(scope="session")
def digits_tasks(digits_split: Any) -> Any:
    """The task-incremental benchmark most tests want: the same as ``digits_split``."""
    return digits_split


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder named by $AVL_DATA_ROOT, where it holds MNIST; else the test is skipped."""
    root = os.environ.get("AVL_DATA_ROOT")
    if not root:
        pytest.skip("needs MNIST: set AVL_DATA_ROOT to a folder with MNIST/raw")
    if missing := missing_mnist(Path(root) / "MNIST" / "raw"):
        pytest.skip(f"needs MNIST: AVL_DATA_ROOT={root} lacks MNIST/raw/{missing[0]}")
    return Path(root)
