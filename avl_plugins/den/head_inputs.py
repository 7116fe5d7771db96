"""What the newest head reads of all training samples, computed once, as nothing below moves while it is trained."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avl_plugins.data.loading import Served, TensorLoader

__all__ = ["Given", "HeadInputs", "head_inputs"]

logger = logging.getLogger(__name__)
_CHUNK = 1000


@dataclass(frozen=True)
class Given:
    """What the newest head reads of a batch."""

    batch: Served
    """The batch, of B samples."""
    features: Tensor
    """(B, features)."""

    def of(self, x: Tensor) -> Tensor | None:
        """Return the features if these are those of `x`, else None."""
        return self.features if self.batch.is_in(x) else None


class HeadInputs:
    """The features of all samples that a loader serves.

    Args:
        loader: Says which samples its latest batch holds.
        features: Of all its samples, (N, features).
    """

    def __init__(self, loader: TensorLoader, features: Tensor) -> None:
        self._loader, self._features = loader, features

    def latest(self) -> Given | None:
        """Return those of the batch that the loader served last."""
        served = self._loader.served
        if served is None:
            return None
        return Given(served, self._features.index_select(0, served.rows))


@torch.no_grad()
def head_inputs(network: Any, loader: Any, *, device: Any, limit: int) -> HeadInputs | None:
    """Compute what the newest head reads of a loader's samples; None, with a log line, where steps have to do that.

    That is so where batches are not served from memory on the network's device, so that they may differ in each epoch,
    the layers do not give the same twice (dropout), or there is too little memory. No random number is used up.

    Args:
        network: A `DynamicallyExpandableNetwork`, in the mode in which it is trained.
        loader: Of the strategy.
        device: Where the network is.
        limit: Bytes that the features may take.
    """
    if not isinstance(loader, TensorLoader):
        return _in_each_step("the batches do not come from InMemoryLoaderPlugin")
    if torch.device(loader.device).type != torch.device(device).type:
        return _in_each_step(f"InMemoryLoaderPlugin keeps the samples on another device than {device}")
    label, features = network.labels[-1], torch.empty(0)
    for rows in torch.arange(loader.n_samples, device=loader.device).split(_CHUNK):
        x = loader.read(rows)[0]
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            found = network.features(x, label)
            if not len(features) and not torch.equal(found, network.features(x, label)):
                return _in_each_step("the layers are random")
        if not len(features):
            need = found[0].nbytes * loader.n_samples
            if need > limit:
                return _in_each_step(f"cache_bytes: {loader.n_samples} samples take {need} bytes, more than {limit}")
            features = found.new_empty(loader.n_samples, found.shape[1])
        features[rows] = found
    return HeadInputs(loader, features)


def _in_each_step(why: str) -> HeadInputs | None:
    logger.info("what the new head reads is computed in each step: %s", why)
    return None
