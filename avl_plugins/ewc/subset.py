"""A uniformly random subset of the samples in a stream of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor | None, Tensor | None]
"""Inputs, targets and task labels, a row a sample; None where there are none."""


@runtime_checkable
class Selectable(Protocol):
    """Batches that can leave out samples without reading them, such as `avl_plugins.data.tensors.Batches`."""

    @property
    def n_samples(self) -> int:
        """How many samples there are."""

    def only(self, chosen: Tensor) -> Iterable[Any]:
        """Return the batches of the samples with these numbers, ascending, as large as they would have been."""


def take_random(batches: Selectable, size: int, generator: torch.Generator) -> Iterable[Any]:
    """Batches of `size` samples drawn uniformly without replacement, in order (all, where there are fewer).

    They are the ones that `random_subset` would draw.
    """
    return batches.only(_smallest(_keys(batches.n_samples, generator), size))


def random_subset(batches: Iterable[Batch], size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Yield batches of `size` samples drawn uniformly without replacement, in order (all, where there are fewer).

    Every sample gets a uniform key and the smallest keys stay, so that the subset does not depend on the batch size.
    Candidates are thinned out whenever there are twice as many as needed. Samples of different shapes, such as
    sequences that each batch pads to its own width, stay in different batches.
    """
    kept: list[tuple[Tensor, Batch]] = []  # keys and samples
    highest, held, length = float("inf"), 0, 0
    for batch in batches:
        x, y, t = batch
        length = max(length, len(x))
        keys = _keys(len(x), generator)
        rows = (keys < highest).nonzero().flatten()
        y = None if y is None else torch.as_tensor(y)
        t = None if t is None else torch.as_tensor(t).expand(len(x))
        kept.append((keys[rows], _rows((x, y, t), rows)))
        held += len(rows)
        if held > 2 * size:
            kept = _thinned(kept, size)
            highest, held = max(float(keys.max()) for keys, _ in kept), size
    for _, alike in groupby((batch for _, batch in _thinned(kept, size)), _form):
        samples: Any = tuple(None if column[0] is None else torch.cat(column) for column in zip(*alike, strict=True))
        for rows in torch.arange(len(samples[0])).split(length):
            yield _rows(samples, rows)


def _keys(samples: int, generator: torch.Generator) -> Tensor:
    return torch.rand(samples, generator=generator, dtype=torch.float64)


def _smallest(keys: Tensor, size: int) -> Tensor:
    """Positions of the `size` smallest keys, ascending."""
    return keys.topk(min(size, len(keys)), largest=False).indices.sort().values


def _thinned(kept: list[tuple[Tensor, Batch]], size: int) -> list[tuple[Tensor, Batch]]:
    """Those with the `size` smallest keys; batches of which none is left are dropped."""
    if not kept:
        return []
    stays = torch.zeros(sum(len(keys) for keys, _ in kept), dtype=torch.bool)
    stays[_smallest(torch.cat([keys for keys, _ in kept]), size)] = True
    parts = stays.split([len(keys) for keys, _ in kept])
    chosen = [(keys, batch, part.nonzero().flatten()) for (keys, batch), part in zip(kept, parts, strict=True)]
    return [(keys[rows], _rows(batch, rows)) for keys, batch, rows in chosen if len(rows)]


def _form(batch: Batch) -> tuple[Any, ...]:
    x, y, t = batch
    return x.shape[1:], x.dtype, None if y is None else (y.shape[1:], y.dtype), t is None


def _rows(batch: Batch, rows: Tensor) -> Batch:
    x, y, t = batch
    return x[rows], None if y is None else y[rows], None if t is None else t[rows]
