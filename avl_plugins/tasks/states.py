"""The entries of a state_dict, checked before any of them is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["COUNT", "FLAG", "Entry", "check_entries", "is_count", "is_number", "list_of"]

Entry = tuple[str, Callable[[Any], bool]]
"""What an entry must be, in words, and whether a value is that."""


def check_entries(
    owner: str, state: Any, entries: Mapping[str, Entry], optional: Mapping[str, Entry] | None = None
) -> None:
    """Refuse a state with missing, unknown or other entries.

    Args:
        owner: whose state it is.
        state: what is to be loaded.
        entries: those that must be there.
        optional: those that may be; files of earlier versions lack them.

    Raises:
        ValueError: It does not fit; the message names the entry.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"the state of a {owner} must be a dict, got {type(state).__name__}")
    known = {**entries, **(optional or {})}
    for name in entries:
        if name not in state:
            raise ValueError(f"this is not the state of a {owner}: entry {name!r} is missing")
    for name, value in state.items():
        if name not in known:
            raise ValueError(f"this is not the state of a {owner}: entry {name!r} is unknown")
        what, fits = known[name]
        if not fits(value):
            raise ValueError(f"this is not the state of a {owner}: entry {name!r} must be {what}, got {value!r:.80}")


def is_count(value: Any) -> bool:
    """Return whether a value is an integer from 0 on, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return whether a value is a list or tuple of values that fit."""
    return lambda value: isinstance(value, list | tuple) and all(map(fits, value))


COUNT: Entry = ("an integer >= 0", is_count)
FLAG: Entry = ("True or False", lambda value: isinstance(value, bool))
