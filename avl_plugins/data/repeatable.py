"""Reading a data set once for all, where it would give the same samples again."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avl_plugins.data.random_state import random_state_kept
from avl_plugins.data.sampling import NotServed
from avl_plugins.data.tensors import Columns, Part, bare_samples, collate, sample_columns, select

__all__ = ["repeatable_columns"]

_READINGS = 256
_CHUNK = 32


def repeatable_columns(dataset: Any, parts: list[Part], *, limit: float = inf) -> Columns:
    """Return what `sample_columns` does, if another reading would return the same and it takes up to `limit` bytes.

    Samples that draw random numbers are told by the global random states of torch, NumPy and Python, however seldom it
    makes a difference (a flip with a probability of .02). For what draws from elsewhere 256 samples, spread over the
    data set and the same again where it has fewer, are read beforehand, to be compared. All states are put back.

    Raises:
        NotServed: The samples are random, or take more bytes.
        ValueError: They do not form one batch.
    """
    samples = bare_samples(dataset)
    chunks = torch.from_numpy(np.linspace(0, len(samples) - 1, _READINGS).astype(np.int64)).split(_CHUNK)
    with random_state_kept() as moved:

        def same(one: Columns, other: Columns) -> Columns:
            if moved() or not _equal(one, other):
                raise NotServed("the data set's transforms are random, and one draw of them would be frozen")
            return one

        def read(rows: Tensor) -> Columns:
            return collate([samples[row] for row in rows.tolist()])

        first = same(read(chunks[0]), read(chunks[0]))  # before the rest is read for nothing
        if sum(column[0].nbytes for column in first) * len(samples) > limit:
            raise NotServed("the data set's samples take more than the cache_bytes of InMemoryLoaderPlugin")
        drawn = [first, *map(read, chunks[1:])]
        columns = sample_columns(dataset, parts)
        for rows, one in zip(chunks, drawn, strict=True):
            same(one, select(columns, rows))
    return columns


def _equal(one: Columns, other: Columns) -> bool:
    """Whether columns are the same, bit for bit but for the kind of NaN."""
    return len(one) == len(other) and all(map(_equal_column, one, other))


def _equal_column(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
