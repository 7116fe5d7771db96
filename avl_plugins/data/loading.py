"""Batches from memory: Avalanche's default loader replaced by slices of tensors."""

from __future__ import annotations

import dis
import logging
import random
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.data_loader import SingleDatasetDataLoader, TaskBalancedDataLoader
from avalanche.core import SupervisedPlugin
from avalanche.distributed.distributed_helper import DistributedHelper
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, default_collate

from avl_plugins.data.tensors import (
    Columns,
    Part,
    attribute_columns,
    batch_reader,
    batches_in_memory,
    dataset_parts,
    dataset_tensors,
    keeps_tensors,
    sample_columns,
    select,
)

__all__ = ["InMemoryLoaderPlugin", "TensorLoader", "batches_in_memory", "dataset_tensors"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A batch that was served."""

    rows: Tensor
    """Positions of its samples in the data set."""
    x: Tensor
    """Its first column."""
    version: int
    """How often `x` had been written to by then."""

    def is_in(self, x: Tensor) -> bool:
        """Whether `x` is the first column, and has not been written to since."""
        return x is self.x and x._version == self.version


class TensorLoader:
    """Batches sliced from tensors, in the order and with the random numbers of torch's DataLoader.

    Each epoch takes two numbers from the global torch generator when it shuffles and one when it does not, as
    ``DataLoader`` does, so that a run sees the same batches and ends in the same random state with either.

    Args:
        read: A function from a vector of positions to the columns of these samples, as new tensors.
        n_samples: Number of samples.
        device: Where ``read`` wants the positions.
        batch_size: Samples per batch.
        shuffle: Draw a new order each epoch; else the samples come as they are.
        drop_last: Leave out a last batch that is smaller.

    Attributes:
        served: The latest batch; None before the first and after the last.

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
        device: torch.device | str = "cpu",
    ) -> None:
        self.read = read
        self.n_samples = n_samples
        self.device = device
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.served: Served | None = None

    def __len__(self) -> int:
        full, rest = divmod(self.n_samples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[Tensor]]:
        _draw_seed()  # DataLoader draws one for its workers first
        if self.shuffle:
            order = torch.randperm(self.n_samples, generator=torch.Generator().manual_seed(_draw_seed()))
        else:
            order = torch.arange(self.n_samples)
        for rows in order.to(self.device).split(self.batch_size)[: len(self)]:
            batch = list(self.read(rows))
            self.served = Served(rows, batch[0], batch[0]._version)
            yield batch
        self.served = None


def _draw_seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_())


class InMemoryLoaderPlugin(SupervisedPlugin):
    """Serve each batch by slicing tensors, where Avalanche fetches and collates sample by sample.

    Takes the place of Avalanche's *default* loader, in training and evaluation, and yields the same batches bit for
    bit: the order, ``shuffle``, ``drop_last``, batch size, task labels and dtypes are those of the loader it finds.
    Data kept as tensors are gathered by index (:mod:`avl_plugins.data.tensors`); those that a leaf's ``gather``
    computes are computed once an experience in training, where they fit the cache. Other data are read once, transforms
    included, and held while they fit the cache. An experience with several task labels keeps Avalanche's balanced
    loader in training, and so does a distributed run; a log line says so.

    Args:
        device: Where to hold the tensors of the current experience; None leaves them in host memory, and the
            strategy moves batch by batch.
        cache_bytes: Bound on what is held of data that had to be read sample by sample, least recently used out first,
            and on the current experience's data that are computed once.

    Raises:
        ValueError: When an experience starts: its transforms are random (16 samples are drawn under two seeds),
            another plugin or the strategy has put a loader of its own in place, the data set has its own
            ``collate_fn``, or its samples do not form one batch.
    """

    def __init__(self, *, device: torch.device | str | None = None, cache_bytes: int = 2**30) -> None:
        super().__init__()
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes must not be negative, got {cache_bytes}")
        self.device = None if device is None else torch.device(device)
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[tuple, tuple[Columns, list[Part]]] = OrderedDict()
        self._train_loader: TensorLoader | None = None
        self._eval_loader: TensorLoader | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Replace the training loader."""
        self._train_loader = self._swap(strategy, TaskBalancedDataLoader)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Warn where a later plugin has replaced our loader."""
        if self._train_loader is not None and strategy.dataloader is not self._train_loader:
            self._warn_replaced(strategy)
            self._train_loader = None

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let go of the experience's tensors."""
        self._train_loader = None

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Replace the evaluation loader."""
        self._eval_loader = self._swap(strategy, SingleDatasetDataLoader)

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Warn where a later plugin has replaced our loader, and let go of the experience's tensors."""
        if self._eval_loader is not None and strategy.dataloader is not self._eval_loader:
            self._warn_replaced(strategy)
        self._eval_loader = None

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: the order of the samples comes from the global torch generator."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the empty state."""
        if state:
            raise ValueError(f"InMemoryLoaderPlugin has no state, got {sorted(state)}")

    def _swap(self, strategy: Any, default: Any) -> TensorLoader | None:
        found = strategy.dataloader
        if type(found) is default:
            if len(found.datasets) > 1:
                logger.info("several task labels in one experience: Avalanche's balanced loader stays")
                return None
            dataset, options = found.datasets[0], found.loader_kwargs
            batch_size, collate = found.batch_sizes[0], options["collate_fn"]
            shuffle, drop_last = options.get("shuffle", False), options.get("drop_last", False)
        elif _is_plain(found):
            dataset, batch_size, collate = found.dataset, found.batch_size, found.collate_fn
            shuffle, drop_last = type(found.sampler) is RandomSampler, found.drop_last
        else:
            raise ValueError(_conflict(strategy, found, before=self))
        if DistributedHelper.is_distributed:
            logger.info("distributed run: Avalanche's loader stays, which gives each process its share")
            return None
        if len(dataset) == 0:
            return None
        if collate is not default_collate:
            raise ValueError(
                f"InMemoryLoaderPlugin slices batches, but the data set has its own collate_fn {collate}; "
                "remove the plugin for this data set"
            )
        read = self._reader(dataset, again=default is TaskBalancedDataLoader and self.device is None)
        if self.device is not None:
            columns = tuple(column.to(self.device) for column in read(torch.arange(len(dataset))))
            read = partial(select, columns)
        strategy.dataloader = TensorLoader(
            read,
            len(dataset),
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            device=self.device or "cpu",
        )
        return strategy.dataloader

    def _reader(self, dataset: Any, *, again: bool) -> Callable[[Tensor], Columns]:
        """Return how to read the data set's rows: from its tensors, else from the cache, which is filled if need be.

        Where its tensors are computed from others, that is done now if the rows are to be read `again` and again.
        """
        parts = dataset_parts(dataset)
        if keeps_tensors(parts):
            if any(part.transforms for part in parts):
                _refuse_random(dataset)
            return batch_reader(dataset, parts, ahead_bytes=self.cache_bytes if again else 0)
        key = tuple((id(p.leaf), *map(id, p.transforms), _digest(p.rows), _digest(p.places)) for p in parts)
        if key in self._cache:
            self._cache.move_to_end(key)
        else:
            _refuse_random(dataset)
            # The parts are kept with the columns: an id names an object only as long as it lives.
            self._cache[key] = (sample_columns(dataset, parts), parts)
        columns, _ = self._cache[key]
        held = sum(column.nbytes for entry, _ in self._cache.values() for column in entry)
        while held > self.cache_bytes and self._cache:
            _, (dropped, _) = self._cache.popitem(last=False)
            held -= sum(column.nbytes for column in dropped)
        return partial(select, columns + attribute_columns(dataset))

    def _warn_replaced(self, strategy: Any) -> None:
        warnings.warn(_conflict(strategy, strategy.dataloader, after=self), stacklevel=3)


def _is_plain(loader: Any) -> bool:
    """Whether this is torch's loader as Avalanche makes it for data without task labels."""
    if type(loader) is not DataLoader or type(loader.batch_sampler) is not BatchSampler:
        return False
    if type(loader.sampler) is RandomSampler:
        return not loader.sampler.replacement and loader.sampler.num_samples == len(loader.sampler.data_source)
    return type(loader.sampler) is SequentialSampler


def _conflict(strategy: Any, found: Any, *, before: Any = None, after: Any = None) -> str:
    """Say who has put which loader in place of Avalanche's (``before`` us) or of ours (``after`` us)."""
    plugins, us = list(strategy.plugins), after if before is None else before
    place = plugins.index(us) if us in plugins else len(plugins)
    plugins = plugins[:place] if after is None else plugins[place + 1 :]
    names = [type(plugin).__name__ for plugin in plugins if _sets_dataloader(type(plugin))]
    owner = " and ".join(names) or f"{type(strategy).__name__} or a plugin of its"
    what = f"{owner} uses a loader of its own, {type(found).__name__}"
    if after is not None:
        return f"{what}, in place of InMemoryLoaderPlugin's, which does nothing here; remove one of the two"
    return f"{what}, which InMemoryLoaderPlugin must not replace; remove one of the two"


def _sets_dataloader(plugin: type) -> bool:
    functions = (value for cls in plugin.__mro__ for value in vars(cls).values() if hasattr(value, "__code__"))
    return any(
        step.opname == "STORE_ATTR" and step.argval == "dataloader"
        for function in functions
        for step in dis.get_instructions(function)
    )


def _refuse_random(dataset: Any) -> None:
    """Raise where 16 samples, spread over the data set, differ between two seeds."""
    rows = sorted({int(i) for i in np.linspace(0, len(dataset) - 1, 16)})
    first, second = (_draw(dataset, rows, seed) for seed in (0, 1))
    values = ((a, b) for pair in zip(first, second, strict=True) for a, b in zip(*pair, strict=True))
    if not all(_same(np.asarray(a), np.asarray(b)) for a, b in values):
        raise ValueError(
            "the data set's transforms are random, and InMemoryLoaderPlugin would freeze one draw of them; "
            "remove the plugin, or the random transforms, for this data set"
        )


def _draw(dataset: Any, rows: Iterable[int], seed: int) -> list[Any]:
    """Return some samples as drawn under ``seed``, and leave the global random states as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - transforms use the global state
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            return [dataset[row] for row in rows]
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(first, second, equal_nan=first.dtype.kind == second.dtype.kind == "f")


def _digest(rows: Tensor) -> int:
    return hash(rows.numpy().tobytes())
