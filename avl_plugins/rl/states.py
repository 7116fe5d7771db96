"""States of a task that are kept for its Fisher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["RecentStates"]


class RecentStates:
    """The latest states of one task; those of another take their place.

    Args:
        capacity: How many.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.label: int | None = None
        self._kept: Tensor | None = None
        self._next, self._count = 0, 0

    def add(self, states: Tensor, label: int) -> None:
        """Keep states (B, ...) of a task, in the place of the oldest ones where there are too many."""
        if label != self.label or self._kept is None:
            self.label, self._next, self._count = label, 0, 0
            self._kept = states.new_empty((self.capacity, *states.shape[1:]))
        states = states[-self.capacity :]
        places = (self._next + torch.arange(len(states))) % self.capacity
        self._kept[places] = states
        self._next = (self._next + len(states)) % self.capacity
        self._count = min(self._count + len(states), self.capacity)

    def __contains__(self, label: int) -> bool:
        """Return whether there are states of a task."""
        return self._kept is not None and label == self.label

    def of(self, label: int) -> Tensor:
        """Return the states (B, ...) of a task; a ValueError where there are none."""
        if self._kept is None or label != self.label:
            raise ValueError(f"no states of task {label} have been kept: train on it before its Fisher is computed")
        return self._kept[: self._count]

    def state_dict(self) -> dict[str, Any]:
        """Return the states, and where the next ones go."""
        kept = None if self._kept is None else self._kept[: self._count]
        return {"label": self.label, "kept": kept, "next": self._next, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them."""
        self.label, self._next, self._count = state["label"], state["next"], state["count"]
        self._kept = None
        if (kept := state["kept"]) is not None:
            self._kept = kept.new_empty((self.capacity, *kept.shape[1:]))
            self._kept[: self._count] = kept
