"""Running columns one after the other, and the part of a network that one task needs as a plain module."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from avl_plugins.progressive.column import Column

__all__ = ["SingleTaskNetwork", "run_columns"]

Tap = Callable[[int, int, Tensor], Tensor]


class SingleTaskNetwork(nn.Module):
    """The part of a progressive network that one task needs; x (B, ...) -> logits (B, classes)."""

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.columns = nn.ModuleList(columns)
        for column in columns:
            column.frozen = False  # nothing is special about them any more
        for column in columns[:-1]:
            column.head = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        columns: list[Any] = list(self.columns)
        *earlier, own = run_columns(columns, x)
        return columns[-1].logits(own, earlier)


def run_columns(columns: Sequence[Column], x: Tensor, tap: Tap | None = None, first: int = 0) -> list[list[Tensor]]:
    """Return the features of each column by depth; frozen ones without gradients, unless there is a tap.

    The tap is told the columns' numbers from `first` on.
    """
    found: list[list[Tensor]] = []
    for index, column in enumerate(columns, start=first):
        own_tap = None if tap is None else (lambda depth, h, index=index: tap(index, depth, h))
        context: AbstractContextManager = torch.no_grad() if column.frozen and tap is None else nullcontext()
        with context:
            found.append(column(x, found, own_tap))
    return found
