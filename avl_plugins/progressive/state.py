"""The shape of a progressive network as plain values, and growing a network to it."""

from collections.abc import Callable
from typing import Any

import torch

from avl_plugins.tasks.network import TRAINING_ON
from avl_plugins.tasks.states import FLAG, Entry, check_entries, is_count, list_of

__all__ = ["grow_to", "shape_of"]

_COLUMN: dict[str, Callable[[Any], bool]] = {
    "label": lambda value: type(value) is int,
    "classes": list_of(is_count),
    "frozen": FLAG[1],
}


def _fits(column: dict[str, Any]) -> bool:
    return all(fits(column[name]) for name, fits in _COLUMN.items())


_ENTRIES: dict[str, Entry] = {
    "columns": (
        f"a list of dicts of {', '.join(_COLUMN)}",
        list_of(lambda column: isinstance(column, dict) and column.keys() == _COLUMN.keys() and _fits(column)),
    ),
    "training_on": TRAINING_ON,
}


def shape_of(network: Any) -> dict[str, Any]:
    """Return the tasks of the columns, which are frozen, and what is being trained on."""
    columns = [column for column in network.columns if column.head is not None]
    return {
        "columns": [{"label": c.label, "classes": list(c.classes), "frozen": c.frozen} for c in columns],
        "training_on": network.training_on,
    }


def grow_to(network: Any, shape: dict[str, Any]) -> None:
    """Add the columns that the network lacks and freeze those that are frozen; random numbers are left as they were.

    Raises:
        ValueError: If it is no such shape, or the network's columns are not the first ones of it. Nothing has changed
            then.
    """
    check_entries(type(network).__name__, shape, _ENTRIES)
    own = [(column.label, list(column.classes)) for column in network.columns if column.head is not None]
    saved = [(column["label"], list(column["classes"])) for column in shape["columns"]]
    if own != saved[: len(own)]:
        labels, others = [label for label, _ in own], [label for label, _ in saved]
        raise ValueError(
            f"the network has columns for the tasks {labels}, the state for {others}"
            if labels != others[: len(labels)]
            else f"the heads of the network are for the classes {dict(own)}, those of the state for {dict(saved)}"
        )
    first = next(network.parameters())
    with torch.random.fork_rng(devices=[first.device] if first.is_cuda else []):
        for label, classes in saved[len(own) :]:
            network.add_task(label, classes)
    for column, of in zip(network.columns, shape["columns"], strict=False):
        if column.frozen != of["frozen"]:  # else what else is frozen in the newest column would be trained
            column.freeze(of["frozen"])
        column.train(network.training and not column.frozen)
    network.training_on = None if shape["training_on"] is None else tuple(shape["training_on"])
