"""A buffer of transitions in vectorised environments."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from avl_plugins.rl.environments import Step

__all__ = ["ReplayBuffer", "Transitions"]

_COLUMNS = ("observations", "actions", "rewards", "terminated", "usable")


class Transitions(NamedTuple):
    """B transitions."""

    states: Tensor
    """(B, ...)."""
    actions: Tensor
    """(B,), int64."""
    rewards: Tensor
    """(B,), float32."""
    following: Tensor
    """(B, ...), the states after them."""
    terminated: Tensor
    """(B,), bool."""


class ReplayBuffer:
    """The latest transitions of N environments that are stepped together.

    A state is held once: the one after a step is the one before the next. The newest step can therefore not be drawn
    before the next one is added, and never if `end` says that there is none.

    Args:
        capacity: Transitions; rounded down to steps of all environments, 2 at least.
        number: N.

    Raises:
        ValueError: If `capacity` is less than two steps of all environments.
    """

    def __init__(self, capacity: int, number: int) -> None:
        self.rows = capacity // number
        if self.rows < 2:
            raise ValueError(f"capacity: expected at least 2 steps of {number} environments, got {capacity}")
        self.number = number
        self._next, self._count, self._newest = 0, 0, 0
        self._columns: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Return the number of transitions, those that cannot be drawn included."""
        return self._count * self.number

    @property
    def drawable(self) -> bool:
        """Whether there is a transition to draw."""
        if self._count < 2:
            return False
        steps = self._columns["usable"][: self._count].any(1)
        return bool(steps[torch.arange(self._count) != self._newest].any())

    def add(self, observations: Tensor, actions: Tensor, step: Step, rewards: Tensor) -> None:
        """Add a step of all environments.

        Args:
            observations: (N, ...), before the step.
            actions: (N,).
            step: What it has led to.
            rewards: (N,), for learning.
        """
        if not self._columns:
            kinds = (observations.dtype, torch.long, torch.float32, torch.bool, torch.bool)
            shapes = (observations.shape, *[(self.number,)] * 4)
            self._columns = {
                name: torch.zeros((self.rows, *shape), dtype=kind)
                for name, shape, kind in zip(_COLUMNS, shapes, kinds, strict=True)
            }
        for name, value in zip(_COLUMNS, (observations, actions, rewards, step.terminated, step.valid), strict=True):
            self._columns[name][self._next] = value
        self._newest = self._next
        self._next = (self._next + 1) % self.rows
        self._count = min(self._count + 1, self.rows)

    def end(self) -> None:
        """Say that no step follows the newest one."""
        if self._count:
            self._columns["usable"][self._newest] = False

    def sample(self, size: int) -> Transitions:
        """Draw transitions uniformly, with replacement, from the global generator.

        Raises:
            ValueError: If there are none to draw from.
        """
        places = self._places(size)
        row, env = places // self.number, places % self.number
        column = {name: self._columns[name][row, env] for name in _COLUMNS[:-1]}
        following = self._columns["observations"][(row + 1) % self.rows, env]
        return Transitions(
            column["observations"], column["actions"], column["rewards"], following, column["terminated"]
        )

    def sample_states(self, size: int) -> Tensor:
        """Draw states (B, ...) uniformly, with replacement."""
        places = self._places(size)
        return self._columns["observations"][places // self.number, places % self.number]

    def state_dict(self) -> dict[str, Any]:
        """Return what has been added, and where the next step goes."""
        held = {name: column[: self._count] for name, column in self._columns.items()}
        return {"columns": held, "next": self._next, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it."""
        self._next, self._count = state["next"], state["count"]
        self._newest = (self._next - 1) % self.rows
        self._columns = {}
        for name, held in state["columns"].items():
            self._columns[name] = held.new_zeros((self.rows, *held.shape[1:]))
            self._columns[name][: self._count] = held

    def _places(self, size: int) -> Tensor:
        total = self._count * self.number
        usable = self._columns["usable"].flatten() if self._columns else torch.zeros(0, dtype=torch.bool)
        found, missing, rounds = [], size, 0
        while missing:
            if rounds % 100 == 0 and not self.drawable:
                raise ValueError("the buffer has no transitions to draw from yet")
            drawn = torch.randint(total, (missing,))
            drawn = drawn[usable[drawn] & (drawn // self.number != self._newest)]
            found.append(drawn)
            missing -= len(drawn)
            rounds += 1
        return torch.cat(found)
