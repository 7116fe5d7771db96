"""Batches sliced from tensors, and features of their samples that are computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avl_plugins.data.random_state import random_state_kept
from avl_plugins.data.tensors import Columns, select

__all__ = ["Given", "NotOnce", "Served", "ServedFeatures", "TensorLoader"]

_CHUNK = 1024


class NotOnce(ValueError):
    """Says why features cannot be computed once."""


@dataclass(frozen=True)
class Served:
    """A batch that was served."""

    rows: Tensor
    """Positions of its samples in the data set."""
    x: Tensor
    """Its first column."""
    version: int
    """How often `x` had been written to by then."""

    @classmethod
    def of(cls, rows: Tensor, x: Tensor) -> Served:
        """Return what there is to know of a batch as it is now."""
        return cls(rows, x, x._version)

    def is_in(self, x: Tensor) -> bool:
        """Whether `x` is the first column, and has not been written to since."""
        return x is self.x and x._version == self.version


class TensorLoader:
    """Batches sliced from tensors, in the order and with the random numbers of torch's DataLoader.

    An epoch takes one number from the global torch generator for the workers, as `DataLoader` does even if it has none,
    and another one if it shuffles, so that a run sees the same batches and ends in the same random state with either.

    Args:
        read: a function from a vector of positions to the columns of these samples, as new tensors.
        n_samples: number of samples.
        device: where `read` wants the positions.
        batch_size: samples per batch.
        shuffle: draw a new order each epoch; else the samples come as they are.
        drop_last: leave out a last batch that is smaller.
        persistent_workers: take the workers' number in the first epoch only, as `DataLoader` does where they persist.
        to: where the batches go; None leaves them where `read` puts them.

    Attributes:
        served: the latest batch; None before the first and after the last.
        begun: whether an epoch has begun, and persistent workers have had their number.

    Yields:
        A list with a new tensor (batch_size, ...) for each column.
    """

    def __init__(
        self,
        read: Callable[[Tensor], Columns],
        n_samples: int,
        *,
        batch_size: int,
        shuffle: bool,
        drop_last: bool = False,
        persistent_workers: bool = False,
        device: torch.device | str = "cpu",
        to: torch.device | str | None = None,
    ) -> None:
        self.read = read
        self.n_samples = n_samples
        self.device = device
        self.to = to
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.persistent_workers = persistent_workers
        self.served: Served | None = None
        self.begun = False

    def __len__(self) -> int:
        full, rest = divmod(self.n_samples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[Tensor]]:
        if not (self.persistent_workers and self.begun):
            _draw_seed()
        self.begun = True
        if self.shuffle:
            order = torch.randperm(self.n_samples, generator=torch.Generator().manual_seed(_draw_seed()))
        else:
            order = torch.arange(self.n_samples)
        for rows in order.to(self.device).split(self.batch_size)[: len(self)]:
            batch = [column.to(self.to or column.device) for column in self.read(rows)]
            self.served = Served.of(rows, batch[0])
            yield batch
        self.served = None


@dataclass(frozen=True)
class Given:
    """Features of the samples of one batch, which must not change under them."""

    batch: Served
    """The batch, of B samples."""
    features: Columns
    """Tensors (B, ...)."""

    def of(self, x: Tensor) -> Columns | None:
        """Return the features if they are those of `x`, else None."""
        return self.features if self.batch.is_in(x) else None


class ServedFeatures:
    """Features of all samples that a loader serves, computed once.

    Args:
        loader: says which samples its latest batch holds.
        compute: a function from the first column of some samples to tensors (samples, ...). It is called without
            gradients, on up to 1024 samples at a time: features of a sample may differ in the last bits from those that
            it has in another batch.
        device: where `compute` wants the samples; the features are kept where the loader's samples are.
        limit: bytes that the features may take.

    Raises:
        NotOnce: They would take more, or draw random numbers, which are put back. Both is known after the first
            samples.
    """

    def __init__(
        self,
        loader: TensorLoader,
        compute: Callable[[Tensor], Sequence[Tensor]],
        *,
        device: torch.device | str,
        limit: int,
    ) -> None:
        self._loader = loader
        self._features: Columns = ()
        with random_state_kept() as moved, torch.no_grad():
            for rows in torch.arange(loader.n_samples, device=loader.device).split(_CHUNK):
                found = compute(loader.read(rows)[0].to(device))
                if moved():
                    raise NotOnce("the layers are random")
                if not self._features:
                    self._features = self._room_for(found, limit)
                for whole, h in zip(self._features, found, strict=True):
                    whole[rows] = h.to(whole.device)

    def _room_for(self, found: Sequence[Tensor], limit: int) -> Columns:
        n = self._loader.n_samples
        need = sum(h[0].nbytes for h in found) * n
        if need > limit:
            raise NotOnce(f"cache_bytes: the features of {n} samples take {need} bytes, more than {limit}")
        return tuple(h.new_empty((n, *h.shape[1:]), device=self._loader.device) for h in found)

    def latest(self) -> Given | None:
        """Return those of the batch that the loader served last; None outside an epoch."""
        served = self._loader.served
        if served is None:
            return None
        return Given(served, tuple(h.to(served.x.device) for h in select(self._features, served.rows)))


def _draw_seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_())
