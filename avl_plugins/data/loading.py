"""Batches from memory: Avalanche's default loader replaced by slices of tensors."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avl_plugins.data.repeatable import repeatable_columns
from avl_plugins.data.sampling import NotServed, another_loader, sampling_of
from avl_plugins.data.serving import TensorLoader
from avl_plugins.data.tensors import (
    Columns,
    Part,
    attribute_columns,
    batch_reader,
    batches_in_memory,
    dataset_parts,
    dataset_tensors,
    keeps_tensors,
    select,
)
from avl_plugins.tasks.arguments import check_count, check_flag

__all__ = ["InMemoryLoaderPlugin", "TensorLoader", "batches_in_memory", "dataset_tensors"]

log = logging.getLogger(__name__)
_KEPT = 1000
"""Data sets whose transforms are known not to be random."""


class InMemoryLoaderPlugin(SupervisedPlugin):
    """Serve each batch by slicing tensors, where Avalanche fetches and collates sample by sample.

    Takes the place of Avalanche's *default* loader, in training and evaluation, and yields the same batches bit for
    bit: the order, `shuffle`, `drop_last`, `persistent_workers`, batch size, task labels, dtypes and the random numbers
    that are used up are those of the loader it finds. Data kept as tensors are gathered by index
    (:mod:`avl_plugins.data.tensors`); those that a leaf's `gather` computes are computed once an experience in
    training, where they fit the cache. Other data are read once, transforms included, and held while they fit the
    cache, so that `cache_bytes=0` leaves them alone.

    Where this cannot be, Avalanche's loader stays, and a warning in the log says why, once for each reason: transforms
    are random, the strategy or another plugin has put a loader of its own in place (before this plugin or after it),
    the data set has its own `collate_fn`, samples that do not form one batch, or too many to be held, an experience has
    several task labels, the loader a sampler or generator of its own, or the run is distributed.

        Naive(model=model, optimizer=optimizer, plugins=[InMemoryLoaderPlugin()])

    Args:
        device: where to hold the tensors of the current experience; None leaves them in host memory, and batches are
            moved one by one.
        cache_bytes: bound on what is held of data that had to be read sample by sample, least recently used out first,
            and on the current experience's data that are computed once.
        strict: raise a ValueError where Avalanche's loader would stay.

    Raises:
        ValueError: When an experience starts, with `strict`.
    """

    def __init__(
        self, *, device: torch.device | str | None = None, cache_bytes: int = 2**30, strict: bool = False
    ) -> None:
        super().__init__()
        check_count("cache_bytes", cache_bytes, low=0)
        check_flag("strict", strict)
        self.device = None if device is None else torch.device(device)
        self.cache_bytes = cache_bytes
        self.strict = strict
        self._cache: OrderedDict[tuple, tuple[Columns, list[Part]]] = OrderedDict()
        self._repeatable: OrderedDict[tuple, list[Part]] = OrderedDict()
        self._told: set[str] = set()
        self._train_loader: TensorLoader | None = None
        self._eval_loader: TensorLoader | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Replace the training loader."""
        self._train_loader = self._serve_or_leave(strategy, again=True)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Say where a later plugin has replaced our loader."""
        self._check_place(strategy, self._train_loader)
        if self._train_loader is not None and strategy.clock.train_exp_epochs > 0:
            self._train_loader.begun = True  # before the checkpoint that a run goes on from

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let go of the experience's tensors."""
        self._train_loader = None

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Replace the evaluation loader."""
        self._eval_loader = self._serve_or_leave(strategy, again=False)

    def before_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Say where a later plugin has replaced our loader."""
        self._check_place(strategy, self._eval_loader)

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let go of the experience's tensors."""
        self._eval_loader = None

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: the order of the samples comes from the global torch generator."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the empty state."""
        if state:
            raise ValueError(f"InMemoryLoaderPlugin has no state, got {sorted(state)}")

    def serve(self, strategy: Any, *, again: bool = True) -> TensorLoader:
        """Put a loader from memory in the place of a strategy's.

        Args:
            strategy: when it has made its data loader.
            again: whether there are epochs; what a leaf's `gather` computes is then computed once, where it fits.

        Raises:
            NotServed: It would not give the same batches. Nothing has changed then.
        """
        found = sampling_of(strategy)
        try:
            read = self._reader(found.dataset, again=again and self.device is None)
        except NotServed:
            raise
        except ValueError as error:
            raise NotServed(str(error)) from error
        if self.device is not None:
            columns = tuple(column.to(self.device) for column in read(torch.arange(len(found.dataset))))
            read = partial(select, columns)
        strategy.dataloader = TensorLoader(
            read,
            len(found.dataset),
            batch_size=found.batch_size,
            shuffle=found.shuffle,
            drop_last=found.drop_last,
            persistent_workers=found.persistent_workers,
            device=self.device or "cpu",
            to=strategy.device,
        )
        return strategy.dataloader

    def _serve_or_leave(self, strategy: Any, *, again: bool) -> TensorLoader | None:
        try:
            return self.serve(strategy, again=again)
        except NotServed as why:
            self._leave(str(why))
            return None

    def _check_place(self, strategy: Any, own: TensorLoader | None) -> None:
        if own is not None and strategy.dataloader is not own:
            self._leave(another_loader(strategy))

    def _leave(self, why: str) -> None:
        """Leave the batches to the loader found: say so once, or raise."""
        if self.strict:
            raise ValueError(f"InMemoryLoaderPlugin cannot serve the batches: {why}; remove it, or pass strict=False")
        if why not in self._told:
            self._told.add(why)
            log.warning("InMemoryLoaderPlugin leaves the batches to the loader found: %s", why)

    def _reader(self, dataset: Any, *, again: bool) -> Callable[[Tensor], Columns]:
        """Return how to read the data set's rows: from its tensors, else from the cache, which is filled if need be."""
        parts = dataset_parts(dataset)
        # Kept together with the parts: an id names an object only as long as it lives.
        key = tuple((id(p.leaf), *map(id, p.transforms), _digest(p.rows), _digest(p.places)) for p in parts)
        if keeps_tensors(parts):
            if key not in self._repeatable and any(part.transforms for part in parts):
                repeatable_columns(dataset, parts)
                self._repeatable[key] = parts
                if len(self._repeatable) > _KEPT:
                    self._repeatable.popitem(last=False)
            return batch_reader(dataset, parts, ahead_bytes=self.cache_bytes if again else 0)
        if key in self._cache:
            self._cache.move_to_end(key)
        else:
            self._cache[key] = (repeatable_columns(dataset, parts, limit=self.cache_bytes), parts)
        columns, _ = self._cache[key]
        held = sum(column.nbytes for entry, _ in self._cache.values() for column in entry)
        while held > self.cache_bytes:
            _, (dropped, _) = self._cache.popitem(last=False)
            held -= sum(column.nbytes for column in dropped)
        return partial(select, columns + attribute_columns(dataset))


def _digest(rows: Tensor) -> int:
    return hash(rows.numpy().tobytes())
