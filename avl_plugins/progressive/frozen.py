"""Features of frozen columns, computed once for all epochs of an experience."""

from typing import Any

import torch
from torch import Tensor

from avl_plugins.loading import TensorLoader

__all__ = ["with_frozen_features"]

_CHUNK = 1024


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
    parts: list[list[Tensor]] = []
    for start in range(0, n, _CHUNK):
        x = read(torch.arange(start, min(start + _CHUNK, n), device=loader.device))[0]
        found = [h.to(loader.device) for h in network.frozen_features(x.to(device))]
        need = sum(h.nbytes for h in found) * n // len(x)
        if not parts and need > limit:
            raise ValueError(
                f"cache_bytes: the frozen columns' features of {n} samples take {need} bytes, more than {limit}; raise "
                "it, or train with cache_frozen=False"
            )
        parts.append(found)
    features = [torch.cat(list(depth)) for depth in zip(*parts, strict=True)]

    def read_with_features(rows: Tensor) -> tuple[Tensor, ...]:
        x, y, *rest = read(rows)
        return (x, y, *(h.index_select(0, rows) for h in features), *rest)

    loader.read = read_with_features
