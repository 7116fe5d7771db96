"""Which samples Avalanche's own loaders put into which batch, read off the loader that a strategy holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from avalanche.benchmarks.utils.data_loader import SingleDatasetDataLoader, TaskBalancedDataLoader
from avalanche.distributed.distributed_helper import DistributedHelper
from avalanche.training.plugins import BiCPlugin, CoPEPlugin, GSS_greedyPlugin, RARPlugin, ReplayPlugin
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, default_collate

__all__ = ["NotServed", "Sampling", "another_loader", "sampling_of"]

_SAMPLING = {"shuffle", "drop_last", "num_workers", "persistent_workers"}
_OTHER = {"collate_fn", "pin_memory", "prefetch_factor", "timeout", "multiprocessing_context"}
"""Options of torch's loader that have no say in which samples are in which batch."""
_WITH_A_LOADER = (BiCPlugin, CoPEPlugin, GSS_greedyPlugin, RARPlugin, ReplayPlugin)


class NotServed(ValueError):
    """Says why the batches of a loader cannot be served from memory."""


@dataclass(frozen=True)
class Sampling:
    """What a loader goes through, and how."""

    dataset: Any
    batch_size: int
    shuffle: bool
    drop_last: bool
    persistent_workers: bool
    """Whether it has workers that go on from epoch to epoch."""


def sampling_of(strategy: Any) -> Sampling:
    """Return what a strategy's loader goes through, if it is one of Avalanche's default ones.

    Raises:
        NotServed: It is another loader, or it does more than to go through one data set, in order or shuffled.
    """
    loader = strategy.dataloader
    if DistributedHelper.is_distributed:
        raise NotServed("in a distributed run Avalanche's loader gives each process its share")
    if type(loader) in (TaskBalancedDataLoader, SingleDatasetDataLoader):
        sampling, collate = _of_avalanches(loader), loader.loader_kwargs["collate_fn"]
    elif type(loader) is DataLoader:
        sampling, collate = _of_torchs(loader), loader.collate_fn
    else:
        raise NotServed(another_loader(strategy))
    if collate is not default_collate:
        raise NotServed(f"the data set has its own collate_fn, {collate}")
    if len(loader) == 0:
        raise NotServed("there is no batch to serve")
    return sampling


def another_loader(strategy: Any) -> str:
    """Say whose loader a strategy has, where that is known, and what it is."""
    names = [type(plugin).__name__ for plugin in strategy.plugins if isinstance(plugin, _WITH_A_LOADER)]
    owner = " and ".join(names) or "the strategy or another plugin"
    return f"{owner} uses a loader of its own, {type(strategy.dataloader).__name__}"


def _of_avalanches(loader: Any) -> Sampling:
    if len(loader.datasets) > 1:
        raise NotServed("Avalanche's loader balances several task labels in one data set")
    options = {name: value for name, value in loader.loader_kwargs.items() if value is not None}
    if more := sorted(options.keys() - _SAMPLING - _OTHER):
        raise NotServed(f"Avalanche's loader has the option {more[0]}")
    if loader.never_ending:
        raise NotServed("Avalanche's loader never ends")
    return Sampling(
        dataset=loader.datasets[0],
        batch_size=loader.batch_sizes[0],
        shuffle=options.get("shuffle", False),
        drop_last=options.get("drop_last", False),
        persistent_workers=options.get("persistent_workers", False) and options.get("num_workers", 0) > 0,
    )


def _of_torchs(loader: DataLoader) -> Sampling:
    batches = loader.batch_sampler
    if type(batches) is not BatchSampler or loader.generator is not None or not _is_default(batches.sampler, loader):
        raise NotServed("the data loader has a sampler or a generator of its own")
    return Sampling(
        dataset=loader.dataset,
        batch_size=batches.batch_size,
        shuffle=type(batches.sampler) is RandomSampler,
        drop_last=batches.drop_last,
        persistent_workers=loader.persistent_workers,
    )


def _is_default(sampler: Any, loader: DataLoader) -> bool:
    """Whether a sampler is the one that torch makes for a loader's data set."""
    if type(sampler) is RandomSampler and (sampler.replacement or sampler.generator is not None):
        return False
    return (
        type(sampler) in (RandomSampler, SequentialSampler)
        and len(sampler.data_source) == len(sampler) == len(loader.dataset)  # type: ignore[arg-type]
    )
