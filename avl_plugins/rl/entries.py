"""The entries of a state, checked before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from avl_plugins.tasks.arguments import check_count, check_kind, check_number

__all__ = ["Check", "a_count", "a_dict", "a_tensor", "check_entries", "check_next", "counts", "episodes", "or_none"]

Check = Callable[[str, Any], None]
"""Takes a name and a value; raises a TypeError or ValueError that begins with the name."""


def check_entries(what: str, state: Any, entries: Mapping[str, Check]) -> None:
    """Refuse a state that lacks entries, has unknown ones, or another kind of value in one.

    Args:
        what: whose state it is, for messages.
        state: what `load_state_dict` was given.
        entries: a check for each entry by its name.

    Raises:
        ValueError: it does not fit; the message names the entry.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"the state of {what} must be a dict, got a {type(state).__name__}")
    for said, names in (("lacks", entries.keys() - state.keys()), ("has unknown", state.keys() - entries.keys())):
        if names:
            raise ValueError(f"the state of {what} {said} entries: {sorted(names, key=str)}")
    for name, check in entries.items():
        try:
            check(f"{name} in the state of {what}", state[name])
        except TypeError as error:
            raise ValueError(str(error)) from error


def check_next(name: str, following: int, held: int, room: int) -> None:
    """Refuse where the next row of a ring goes, if it holds `held` of `room` rows and that cannot be."""
    if following >= room if held == room else following != held:
        raise ValueError(f"{name} must be where the next row goes after {held} of {room}, got {following}")


def or_none(check: Check) -> Check:
    """Return the check of an entry that may be None."""
    return lambda name, value: None if value is None else check(name, value)


a_count: Check = partial(check_count, low=0)
a_dict: Check = partial(check_kind, kind=dict, what="a dict")


def a_tensor(name: str, value: Any) -> None:
    """Refuse what is no tensor of rows."""
    check_kind(name, value, Tensor, "a tensor")
    if not value.ndim:
        raise ValueError(f"{name} must have rows, got a tensor without dimensions")


def counts(name: str, value: Any) -> None:
    """Refuse what is no dict of counts by label."""
    a_dict(name, value)
    for label, number in value.items():
        a_count(f"a label of {name}", label)
        a_count(f"[{label}] of {name}", number)


def episodes(name: str, value: Any) -> None:
    """Refuse what are no episodes as plain values."""
    check_kind(name, value, list, "a list")
    for episode in value:
        if not isinstance(episode, tuple | list) or len(episode) != 3:
            raise ValueError(f"{name} must be triples (total, length, env), got {episode!r}")
        for number, check in zip(episode, (check_number, a_count, a_count), strict=True):
            check(f"an episode of {name}", number)
