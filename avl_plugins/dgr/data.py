"""A task's inputs: read once before it, to refuse what would end its training, and again for the generator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from avl_plugins.checkpoint.strategy_state import random_from_plain, random_to_plain
from avl_plugins.data.tensors import batches_in_memory, dataset_tensors
from avl_plugins.dgr.frozen import detached_copy

__all__ = ["Survey", "read", "survey", "try_generator", "untouched_random_state"]

_NOT_FINITE = "have NaN or infinite values: clean the data set, or its transforms for evaluation"


@dataclass(frozen=True)
class Survey:
    """What a pass over a task's inputs found.

    Attributes:
        low: smallest value.
        high: largest value.
        some: the first inputs, (N, *shape).
    """

    low: float
    high: float
    some: Tensor


def survey(experiences: Iterable[Any]) -> Survey:
    """Pass over a task's data, with the transforms for evaluation, from which generators and memories learn.

    Args:
        experiences: those of the task; little of their data is held at a time.

    Raises:
        ValueError: Inputs are no tensors of one shape, or inputs or targets have NaN or infinite values.
    """
    some: Any = None
    ends = []
    for experience in experiences:
        name = f"experience {getattr(experience, 'current_experience', None)}"
        for x, y, *_ in batches_in_memory(experience.dataset):
            if not isinstance(x, Tensor) or (some is not None and x.shape[1:] != some.shape[1:]):
                found = type(x).__name__ if some is None else f"shapes {tuple(some.shape[1:])} and {tuple(x.shape[1:])}"
                raise ValueError(f"inputs of {name} must be tensors of one shape to be replayed, got {found}")
            some = x if some is None else some
            ends.append([float(value) for value in x.aminmax()])
            if not all(map(isfinite, ends[-1])):
                raise ValueError(f"inputs of {name} {_NOT_FINITE}")
            if isinstance(y, Tensor) and not y.isfinite().all():
                raise ValueError(f"targets of {name} {_NOT_FINITE}")
    low, high = (float(v) for v in torch.tensor(ends, dtype=torch.float64).aminmax())
    return Survey(low, high, some)


def read(dataset: Any) -> tuple[Tensor, Tensor]:
    """Return all inputs and targets of a data set, with the transforms for evaluation."""
    if getattr(dataset, "collate_fn", default_collate) is default_collate:
        x, y, *_ = dataset_tensors(dataset.eval())
        return x, y
    batches = [batch[:2] for batch in batches_in_memory(dataset)]  # as its collate_fn makes them
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Leave the global random states as they were."""
    before = random_to_plain()
    try:
        yield
    finally:
        random_from_plain(before)


def try_generator(generator: Any, data_range: tuple[float, float], x: Tensor) -> None:
    """Let a copy of a generator take one step and give one sample, before a task is trained that it could not follow.

    Args:
        generator: as it is before its first step; it is left so.
        data_range: what its data range will be.
        x: some inputs, on its device.

    Raises:
        ValueError: It cannot be copied, or fit to these inputs, or its samples have another shape.
    """
    shape = tuple(x.shape[1:])
    with untouched_random_state():
        try:
            copy = detached_copy(generator)
            copy.data_range = data_range
            losses = copy.fit_batch(x[torch.arange(copy.batch_size) % len(x)], None, 1.0)
            for value in losses.values():
                float(value)
            sample = copy.sample(1, torch.Generator().manual_seed(0))
        except Exception as error:
            raise ValueError(
                f"generator: a first step of a copy of it, on inputs of shape {shape}, fails: {error}"
            ) from error
    if tuple(sample.shape[1:]) != shape:
        raise ValueError(
            f"generator: it gives samples of shape {tuple(sample.shape[1:])}, and the inputs have the shape {shape}"
        )
