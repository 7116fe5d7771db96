"""States of tasks that are kept for their Fishers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from avl_plugins.rl.entries import a_count, a_tensor, check_entries, check_next
from avl_plugins.tasks.arguments import check_count

__all__ = ["RecentStates"]


class RecentStates:
    """The latest states of each of the latest tasks.

    Where tasks are recognised, the label may be another's for a moment: that takes no states away. The memory of
    `tasks` times `capacity` states is needed at most; 3200 states of Atari are 90 MB.

    Args:
        capacity: how many of each task.
        tasks: of how many tasks. A further one takes the place of the one that has been without a new state longest.
    """

    def __init__(self, capacity: int, tasks: int = 4) -> None:
        check_count("capacity", capacity)
        check_count("tasks", tasks)
        self.capacity, self.tasks = capacity, tasks
        self._kept: dict[int, Tensor] = {}  # by label, the latest last
        self._next: dict[int, int] = {}
        self._count: dict[int, int] = {}

    def add(self, states: Tensor, label: int) -> None:
        """Keep states (B, ...) of a task, in the place of the oldest ones where there are too many."""
        kept = self._kept.pop(label, None)
        if kept is None:
            kept = states.new_empty((self.capacity, *states.shape[1:]))
            self._next[label] = self._count[label] = 0
        self._kept[label] = kept
        if len(self._kept) > self.tasks:
            oldest = next(iter(self._kept))
            for held in (self._kept, self._next, self._count):
                del held[oldest]
        states = states[-self.capacity :]
        kept[(self._next[label] + torch.arange(len(states))) % self.capacity] = states
        self._next[label] = (self._next[label] + len(states)) % self.capacity
        self._count[label] = min(self._count[label] + len(states), self.capacity)

    def __contains__(self, label: int) -> bool:
        """Return whether there are states of a task."""
        return label in self._kept

    def of(self, label: int) -> Tensor:
        """Return the states (B, ...) of a task; a ValueError where there are none."""
        if label not in self._kept:
            raise ValueError(f"no states of task {label} have been kept: train on it before its Fisher is computed")
        return self._kept[label][: self._count[label]]

    def state_dict(self) -> dict[int, Any]:
        """Return the states, and where the next ones go."""
        return {label: {"kept": self.of(label), "next": self._next[label]} for label in self._kept}

    def load_state_dict(self, state: Mapping[int, Any]) -> None:
        """Take the state of `state_dict()`.

        Raises:
            ValueError: it does not fit, and nothing is changed; the message names the entry.
        """
        if not isinstance(state, Mapping) or len(state) > self.tasks:
            raise ValueError(f"states must be a dict by label, of {self.tasks} tasks at most, got {state!r}")
        all_kept, all_next, all_count = {}, {}, {}
        for label, own in state.items():
            what = f"states of task {label}"
            check_entries(what, own, {"kept": a_tensor, "next": a_count})
            held, count, following = own["kept"].detach().cpu(), len(own["kept"]), own["next"]
            if not 0 < count <= self.capacity:
                raise ValueError(
                    f"kept in the state of {what} must be from 1 to fisher_states={self.capacity} states, got {count}"
                )
            check_next(f"next in the state of {what}", following, count, self.capacity)
            all_kept[label] = held.new_empty((self.capacity, *held.shape[1:]))
            all_kept[label][:count] = held
            all_next[label], all_count[label] = following, count
        self._kept, self._next, self._count = all_kept, all_next, all_count
