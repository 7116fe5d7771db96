"""Stacks of frames of which each frame is kept once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from avl_plugins.rl.entries import a_count, a_tensor, check_entries, check_next, or_none
from avl_plugins.tasks.arguments import check_count, check_kind

__all__ = ["FrameStacks"]


def _places(name: str, value: Any) -> None:
    check_kind(name, value, list, "a list")
    for place in value:
        if not isinstance(place, tuple | list) or len(place) != 2:
            raise ValueError(f"{name} must be pairs of a place and an environment, got {place!r}")
        for number in place:
            a_count(f"a place of {name}", number)


_ENTRIES = {"depth": a_count, "frames": a_tensor, "next": a_count, "places": _places, "older": or_none(a_tensor)}


class FrameStacks:
    """The latest observations of N environments, (N, F, ...): F frames each, newest last.

    Where the older frames of an observation are the newer ones of that before it, only its newest frame is kept; where
    they are not, as at an episode's beginning, all. What is taken is what was added, whatever that was.

    Args:
        rows: observations of each environment that can be taken. F - 1 frames more are kept for the oldest.
    """

    def __init__(self, rows: int) -> None:
        check_count("rows", rows)
        self.rows = rows
        self._frames: Tensor | None = None  # (rows + F - 1, N, ...), a ring
        self._whole = torch.zeros(0, 0, dtype=torch.bool)  # (rows + F - 1, N): the older frames are in `_older`
        self._older: dict[tuple[int, int], Tensor] = {}  # (F - 1, ...) by place and environment
        self._latest: Tensor | None = None
        self._next, self._count = 0, 0

    def __len__(self) -> int:
        """Return the steps of which the frames are kept."""
        return self._count

    def add(self, observations: Tensor) -> None:
        """Add an observation of each environment.

        Raises:
            ValueError: an observation is no stack of frames.
        """
        if observations.ndim < 2:
            raise ValueError(f"stacked=True needs observations (N, frames, ...), got {tuple(observations.shape)}")
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
        places = len(self._whole)
        latest, count = observations.clone(), min(self._count + 1, places)
        self._latest, self._next, self._count = latest, (at + 1) % places, count  # Ctrl-C before this adds nothing

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

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the state of `state_dict()`.

        Raises:
            ValueError: it does not fit, and nothing is changed; the message names the entry.
        """
        fresh = FrameStacks(self.rows)
        if state or not isinstance(state, Mapping):
            fresh._fill(state)
        vars(self).update(vars(fresh))

    def _fill(self, state: Mapping[str, Any]) -> None:
        check_entries("stacks", state, _ENTRIES)
        depth, frames, following, places = (state[name] for name in ("depth", "frames", "next", "places"))
        room, held = self.rows + depth - 1, len(frames)
        if depth < 1 or frames.ndim < 2 or not 0 < held <= room:
            raise ValueError(
                f"frames in the state of stacks must be from 1 to {room} steps of stacks {depth} deep, got "
                f"{tuple(frames.shape)}"
            )
        check_next("next in the state of stacks", following, held, room)
        older = frames.new_empty((0, depth - 1, *frames.shape[2:])) if state["older"] is None else state["older"]
        if older.shape != (len(places), depth - 1, *frames.shape[2:]) or older.dtype != frames.dtype:
            raise ValueError(
                f"older in the state of stacks must be {len(places)} times {depth - 1} frames {frames.dtype}, got "
                f"{tuple(older.shape)} {older.dtype}"
            )
        number = frames.shape[1]
        if not all(at < held and env < number for at, env in places):
            raise ValueError(f"places in the state of stacks must be pairs within {held} x {number}, got {places}")
        self._make_room(depth, frames.detach().cpu())
        self._next, self._count = following, held
        for place, frame in zip(places, older.detach().cpu(), strict=True):
            self._older[place[0], place[1]] = frame.clone()
            self._whole[place[0], place[1]] = True
        self._latest = self.take(torch.zeros(number, dtype=torch.long), torch.arange(number))

    def _make_room(self, depth: int, held: Tensor) -> None:
        places = self.rows + depth - 1
        self._frames = held.new_zeros((places, *held.shape[1:]))
        self._frames[: len(held)] = held
        self._whole = torch.zeros(places, held.shape[1], dtype=torch.bool)
