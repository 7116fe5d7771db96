"""The entries of a `DENPlugin`'s state, and those of earlier versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from avl_plugins.tasks.states import Entry, check_entries, is_count, is_number, list_of

__all__ = ["checked_state"]


def _is_layer(value: Any) -> bool:
    """Return whether a value is a weight and a bias, or None for that."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return isinstance(value[0], Tensor) and isinstance(value[1], Tensor | None)


_ENTRIES: dict[str, Entry] = {
    "history": (
        'a list of dicts with a "label" each',
        list_of(lambda entry: isinstance(entry, dict) and isinstance(entry.get("label"), int)),
    ),
    "weights_before": ("a weight, and a bias or None, for each layer", list_of(_is_layer)),
    "losses": ("a list of numbers", list_of(is_number)),
    "running": ("two numbers", lambda value: list_of(is_number)(value) and len(value) == 2),
    "groups": (
        "a dict of numbers of parameter groups",
        lambda value: isinstance(value, dict) and all(map(is_count, value.values())),
    ),
}


def checked_state(state: Any, phases: Sequence[str]) -> dict[str, Any]:
    """Return a state with the entries of today.

    In earlier versions "phase" was called "step", "done" at the end, and two entries more said whether units were being
    added or split.

    Args:
        state: what is to be loaded.
        phases: names of those that the plugin has.

    Raises:
        ValueError: If an entry is missing, unknown or of another kind.
    """
    if isinstance(state, dict) and "step" in state:
        state = dict(state)
        step = state.pop("step")
        state["phase"] = None if step == "done" else step
        state.pop("expanding", None), state.pop("splitting", None)
    phase: Entry = (f"None or one of {', '.join(phases)}", lambda value: value is None or value in phases)
    check_entries("DENPlugin", state, {**_ENTRIES, "phase": phase})
    return dict(state)
