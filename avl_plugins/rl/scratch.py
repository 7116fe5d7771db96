"""Memory that is used again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Scratch"]


class Scratch:
    """Tensors in the same memory at each use: for many images it is costlier to get from the system than to fill."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __call__(
        self,
        use: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """Return a tensor with any content. What was returned for the same use before loses its own."""
        kept = self._kept.get(use)
        if (
            kept is None
            or kept.shape != tuple(shape)
            or kept.dtype != dtype
            or kept.device.type != torch.device(device).type
            or not kept.is_contiguous(memory_format=memory_format)
        ):
            kept = torch.empty(tuple(shape), dtype=dtype, device=device, memory_format=memory_format)
            self._kept[use] = kept
        return kept
