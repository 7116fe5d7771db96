"""A buffer of transitions in vectorised environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avl_plugins.rl.entries import a_count, a_dict, a_tensor, check_entries, check_next, or_none
from avl_plugins.rl.environments import Step
from avl_plugins.rl.frame_stacks import FrameStacks
from avl_plugins.tasks.arguments import check_count, check_flag

__all__ = ["ReplayBuffer", "Transitions"]

_COLUMNS = {"actions": torch.long, "rewards": torch.float32, "terminated": torch.bool, "usable": torch.bool}


_ENTRIES = {
    "columns": a_dict,
    "observations": or_none(a_tensor),
    "stacks": or_none(a_dict),
    "next": a_count,
    "count": a_count,
}


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
    before the next one is added, and never if `end` says that there is none. 50,000 states of Atari, four frames of
    84 x 84 bytes, are 1.4 GB, and a checkpoint holds them too; with `stacked` they are 0.35 GB.

    Args:
        capacity: transitions; rounded down to steps of all environments, 2 at least.
        number: N.
        stacked: states are stacks of frames (F, ...), newest last, each of which mostly shares F - 1 with the one
            before: keep each frame once. What is drawn is the same, bit for bit.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: `number` is below 1, or `capacity` is less than two steps of all environments.
    """

    def __init__(self, capacity: int, number: int, *, stacked: bool = False) -> None:
        check_count("number", number)
        check_count("capacity", capacity, low=2 * number)
        check_flag("stacked", stacked)
        self.rows = capacity // number
        self.number = number
        self._next, self._count, self._newest = 0, 0, 0
        self._columns: dict[str, Tensor] = {}
        self._observations: Tensor | None = None
        self._stacks = FrameStacks(self.rows) if stacked else None

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
            step: what it has led to.
            rewards: (N,), for learning.
        """
        if not self._columns:
            self._columns = {
                name: torch.zeros((self.rows, self.number), dtype=dtype) for name, dtype in _COLUMNS.items()
            }
            if self._stacks is None:
                self._observations = observations.new_zeros((self.rows, *observations.shape))
        at, count = self._next, min(self._count + 1, self.rows)
        for name, value in zip(_COLUMNS, (actions, rewards, step.terminated, step.valid), strict=True):
            self._columns[name][at] = value
        if self._stacks is not None:
            self._stacks.add(observations)
        elif self._observations is not None:
            self._observations[at] = observations
        self._newest, self._next, self._count = at, (at + 1) % self.rows, count  # Ctrl-C before this adds nothing

    def end(self) -> None:
        """Say that no step follows the newest one."""
        if self._count:
            self._columns["usable"][self._newest] = False

    def sample(self, size: int) -> Transitions:
        """Draw transitions uniformly, with replacement, from the global generator.

        Raises:
            ValueError: there are none to draw from.
        """
        places = self._places(size)
        row, env = places // self.number, places % self.number
        column = {name: self._columns[name][row, env] for name in ("actions", "rewards", "terminated")}
        states, following = self._states(row, env), self._states((row + 1) % self.rows, env)
        return Transitions(states, column["actions"], column["rewards"], following, column["terminated"])

    def sample_states(self, size: int) -> Tensor:
        """Draw states (B, ...) uniformly, with replacement."""
        places = self._places(size)
        return self._states(places // self.number, places % self.number)

    def state_dict(self) -> dict[str, Any]:
        """Return what has been added, not copied, and where the next step goes."""
        held = {name: column[: self._count] for name, column in self._columns.items()}
        observations = None if self._observations is None else self._observations[: self._count]
        stacks = None if self._stacks is None else self._stacks.state_dict()
        own = {"columns": held, "observations": observations, "stacks": stacks}
        return own | {"next": self._next, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a copy of the state of `state_dict()`.

        Raises:
            ValueError: it does not fit, and nothing is changed; the message names the entry.
        """
        check_entries("a ReplayBuffer", state, _ENTRIES)
        if (self._stacks is None) != (state["stacks"] is None):
            raise ValueError("stacked: the state is of a buffer with the other choice: build this one with the same")
        self._check_rows(state)
        fresh = ReplayBuffer(self.rows * self.number, self.number, stacked=self._stacks is not None)
        if fresh._stacks is not None:
            fresh._stacks.load_state_dict(state["stacks"])
            if min(len(fresh._stacks), self.rows) != state["count"]:
                raise ValueError(f"stacks in the state of a ReplayBuffer must be of its {state['count']} steps")
        fresh._next, fresh._count = state["next"], state["count"]
        fresh._newest = (fresh._next - 1) % self.rows
        fresh._columns = {name: fresh._whole(held) for name, held in state["columns"].items()}
        fresh._observations = None if state["observations"] is None else fresh._whole(state["observations"])
        vars(self).update(vars(fresh))

    def _check_rows(self, state: Mapping[str, Any]) -> None:
        """Refuse rows that are not this buffer's: of other numbers, dtypes or environments, or too many."""
        count, following, columns, seen = (state[name] for name in ("count", "next", "columns", "observations"))
        if count > self.rows:
            raise ValueError(f"count in the state of a ReplayBuffer must be <= {self.rows}, its steps, got {count}")
        check_next("next in the state of a ReplayBuffer", following, count, self.rows)
        if columns or count:
            check_entries("columns of a ReplayBuffer", columns, dict.fromkeys(_COLUMNS, a_tensor))
        for name, column in columns.items():
            if column.shape != (count, self.number) or column.dtype != _COLUMNS[name]:
                raise ValueError(
                    f"{name} in the state of a ReplayBuffer must be {(count, self.number)} {_COLUMNS[name]}, got "
                    f"{tuple(column.shape)} {column.dtype}"
                )
        held = self._stacks is None and count
        if held and (seen is None or seen.shape[:2] != (count, self.number)):
            found = None if seen is None else tuple(seen.shape)
            raise ValueError(f"observations in the state of a ReplayBuffer must be {(count, self.number)}, got {found}")

    def _whole(self, held: Tensor) -> Tensor:
        """Return a column with room for all rows, on the CPU: a strategy on a GPU keeps its buffers there, too."""
        column = torch.zeros((self.rows, *held.shape[1:]), dtype=held.dtype)
        column[: self._count] = held
        return column

    def _states(self, row: Tensor, env: Tensor) -> Tensor:
        if self._stacks is not None:
            return self._stacks.take((self._newest - row) % self.rows, env)
        observations: Any = self._observations
        return observations[row, env]

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
