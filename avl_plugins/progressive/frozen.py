"""Features of frozen columns, computed once for all epochs of an experience."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avl_plugins.data.loading import TensorLoader

__all__ = ["FrozenFeatures", "with_frozen_features"]

_CHUNK = 1024


class FrozenFeatures:
    """Features that the frozen columns have for one batch, which must not change under them.

    Args:
        x: The batch (B, ...).
        features: By depth, those of all frozen columns, concatenated (B, ...).
    """

    def __init__(self, x: Tensor, features: Sequence[Tensor]) -> None:
        self.x, self.version, self.features = x, x._version, list(features)

    def of(self, x: Tensor) -> list[Tensor]:
        """Return the features by depth.

        Raises:
            ValueError: If `x` is not the batch that they belong to, or it has been written to since.
        """
        if x is not self.x or x._version != self.version or len(x) != len(self.features[0]):
            raise ValueError(
                f"cache_frozen: features of {len(self.features[0])} samples, and the batch of {len(x)} is not the one "
                "they were computed from; a plugin that changes the batch cannot be used with cache_frozen=True"
            )
        return self.features


def with_frozen_features(network: Any, loader: TensorLoader, *, device: Any, limit: int) -> None:
    """Make the loader serve, after x and y, the concatenated features of the network's frozen columns by depth.

    Args:
        network: A `ProgressiveNetwork`.
        loader: Yields (x, y, ...); after this, (x, y, h_1, ..., h_L, ...).
        device: Where the network is.
        limit: Bytes that the features may take.

    Raises:
        ValueError: If they would take more. Nothing has changed then.
    """
    read, n = loader.read, loader.n_samples
    features: list[Tensor] = []
    for start in range(0, n, _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, n), device=loader.device)
        found = network.frozen_features(read(rows)[0].to(device)).features
        if not features:
            need = sum(h[0].nbytes for h in found) * n
            if need > limit:
                raise ValueError(
                    f"cache_bytes: the frozen columns' features of {n} samples take {need} bytes, more than {limit}; "
                    "raise it, or train with cache_frozen=False"
                )
            features = [h.new_empty((n, *h.shape[1:]), device=loader.device) for h in found]
        for whole, h in zip(features, found, strict=True):
            whole[start : start + _CHUNK] = h

    def read_with_features(rows: Tensor) -> tuple[Tensor, ...]:
        x, y, *rest = read(rows)
        return (x, y, *(h.index_select(0, rows) for h in features), *rest)

    loader.read = read_with_features
