"""Features of frozen columns, computed once for all epochs of an experience."""

from typing import Any

from torch import Tensor

from avl_plugins.data.serving import Given, NotOnce, ServedFeatures, TensorLoader
from avl_plugins.data.tensors import Columns

__all__ = ["given_for", "served_features"]


def given_for(x: Tensor, given: Given) -> Columns:
    """Return, by depth, the features that the frozen columns have for a batch.

    Raises:
        ValueError: If `x` is not the batch that they belong to, or it has been written to since.
    """
    features = given.of(x)
    if features is None:
        raise ValueError(
            f"cache_frozen: features of {len(given.batch.rows)} samples, and the batch of {len(x)} is not the one they "
            "were computed from; a plugin that changes the batch cannot be used with cache_frozen=True"
        )
    return features


def served_features(network: Any, loader: TensorLoader, *, device: Any, limit: int) -> ServedFeatures:
    """Compute, by depth, the concatenated features that the frozen columns of a network have for a loader's samples.

    Args:
        network: A `ProgressiveNetwork`.
        loader: Yields (x, ...).
        device: Where the network is.
        limit: Bytes that the features may take.

    Raises:
        ValueError: If they would take more, or layers are random in evaluation mode, too.
    """
    try:
        return ServedFeatures(loader, lambda x: network.frozen_features(x).features, device=device, limit=limit)
    except NotOnce as why:
        raise ValueError(f"cache_frozen: {why}; raise cache_bytes, or train with cache_frozen=False") from why
