"""Stacks of frames of which each frame is kept once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["FrameStacks"]


class FrameStacks:
    """The latest observations of N environments, (N, F, ...): F frames each, newest last.

    Where the older frames of an observation are the newer ones of that before it, only its newest frame is kept; where
    they are not, as at an episode's beginning, all. What is taken is what was added, whatever that was.

    Args:
        rows: Observations of each environment that can be taken. F - 1 frames more are kept for the oldest.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._frames: Tensor | None = None  # (rows + F - 1, N, ...), a ring
        self._whole = torch.zeros(0, 0, dtype=torch.bool)  # (rows + F - 1, N): the older frames are in `_older`
        self._older: dict[tuple[int, int], Tensor] = {}  # (F - 1, ...) by place and environment
        self._latest: Tensor | None = None
        self._next, self._count = 0, 0

    def add(self, observations: Tensor) -> None:
        """Add an observation of each environment."""
        if self._frames is None or self._latest is None:
            number, depth, *shape = observations.shape
            self._make_room(depth, observations.new_empty((0, number, *shape)))
            whole = torch.ones(number, dtype=torch.bool)
        else:
            whole = (observations[:, :-1] != self._latest[:, 1:]).flatten(1).any(1)
        at = self._next
        self._frames[at] = observations[:, -1]  # type: ignore[index]
        self._whole[at] = whole
        for env in range(len(observations)):
            self._older.pop((at, env), None)
            if whole[env]:
                self._older[at, env] = observations[env, :-1].clone()
        self._latest = observations.clone()
        self._next = (at + 1) % len(self._whole)
        self._count = min(self._count + 1, len(self._whole))

    def take(self, age: Tensor, env: Tensor) -> Tensor:
        """Return the observations (B, F, ...) of environments (B,) that were added `age` (B,) before the latest."""
        frames: Any = self._frames
        places, depth = len(frames), len(frames) - self.rows + 1
        at = (self._next - 1 - age) % places
        found = frames[(at[:, None] - torch.arange(depth - 1, -1, -1)) % places, env[:, None]]
        for back in range(depth - 2, -1, -1):  # the nearest one that was kept whole comes last, and counts
            place = (at - back) % places
            for b in self._whole[place, env].nonzero().flatten().tolist():
                found[b, : depth - 1 - back] = self._older[int(place[b]), int(env[b])][back:]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return frames, whole stacks and where the next ones go; nothing before the first."""
        if self._frames is None or self._latest is None:
            return {}
        return {
            "depth": self._latest.shape[1],
            "frames": self._frames[: self._count],
            "next": self._next,
            "places": [list(place) for place in self._older],
            "older": torch.stack(list(self._older.values())) if self._older else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them."""
        self._frames, self._latest, self._older = None, None, {}
        self._next, self._count = 0, 0
        if not state:
            return
        self._make_room(state["depth"], state["frames"])
        self._next, self._count = state["next"], len(state["frames"])
        for place, older in zip(state["places"], () if state["older"] is None else state["older"], strict=True):
            self._older[place[0], place[1]] = older.clone()
            self._whole[place[0], place[1]] = True
        number = self._whole.shape[1]
        self._latest = self.take(torch.zeros(number, dtype=torch.long), torch.arange(number))

    def _make_room(self, depth: int, held: Tensor) -> None:
        places = self.rows + depth - 1
        self._frames = held.new_zeros((places, *held.shape[1:]))
        self._frames[: len(held)] = held
        self._whole = torch.zeros(places, held.shape[1], dtype=torch.bool)
