"""Features of frozen columns, computed once for all epochs of an experience."""

import logging
from typing import Any

from torch import Tensor

from avl_plugins.data.serving import Given, NotOnce, ServedFeatures, TensorLoader
from avl_plugins.data.tensors import Columns

__all__ = ["given_for", "served_features"]

log = logging.getLogger(__name__)


def given_for(x: Tensor, given: Given) -> Columns:
    """Return, by depth, the features that the frozen columns have for a batch.

    Raises:
        ValueError: If `x` is not the batch that they belong to, or it has been written to since.
    """
    features = given.of(x)
    if features is None:
        raise ValueError(
            f"cache_bytes: features of {len(given.batch.rows)} samples, and the batch of {len(x)} is not the one they "
            "were computed from; a plugin that changes the batch needs cache_bytes=0"
        )
    return features


def served_features(network: Any, loader: TensorLoader, *, device: Any, limit: int) -> ServedFeatures | None:
    """Compute, by depth, the concatenated features that the frozen columns of a network have for a loader's samples.

    None, with a log line, where steps have to do that: they would take more memory than they may, or layers are random
    in evaluation mode, too.

    Args:
        network: a `ProgressiveNetwork`.
        loader: yields (x, ...).
        device: where the network is.
        limit: bytes that the features may take.
    """
    try:
        return ServedFeatures(loader, lambda x: network.frozen_features(x).features, device=device, limit=limit)
    except NotOnce as why:
        log.info("features of frozen columns are computed in each step: %s", why)
        return None
