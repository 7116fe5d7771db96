"""The state of an `EWCPlugin`, checked and read before any of it is taken."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from avl_plugins.ewc.curvature import Penalty, make_penalty
from avl_plugins.tasks.states import COUNT, Entry, check_entries, is_number, list_of


def read_state(state: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all entries but the settings, tensors copied.

    Args:
        state: of `EWCPlugin.state_dict()`.
        settings: entries that must be as they are here.

    Raises:
        ValueError: an entry is missing, unknown, not what it should be or, of a setting, another one; it is named.
    """
    if isinstance(state, Mapping):
        state = {"curvature": "diagonal", **state}  # states from before there was another
    anything: Entry = ("anything", lambda value: True)
    check_entries("EWCPlugin", state, {**dict.fromkeys(settings, anything), **_ENTRIES})
    for name, value in settings.items():
        if state[name] != value:
            raise ValueError(
                f"the state was saved with {name}={state[name]!r}, this plugin has {name}={value!r}: build it with the "
                "same"
            )
    return {
        "penalty": _penalty("penalty", state["penalty"], state["curvature"]),
        "terms": {label: _penalty("terms", term, state["curvature"]) for label, term in state["terms"].items()},
        "tasks": state["tasks"],
        "importances": {name: f.detach().clone() for name, f in state["importances"].items()},
        "fisher_seconds": float(state["fisher_seconds"]),
        "last_penalty": state["last_penalty"].detach().clone(),
        "generator": _generator(state["generator"]),
        "parts": state["parts"],
        "classes": {task: set(classes) for task, classes in state["classes"].items()},
        "warned": set(state["warned"]),
        "active": None if state["active"] is None else set(state["active"]),
    }


def _penalty(entry: str, state: Any, curvature: str) -> Penalty:
    penalty = make_penalty(curvature)
    try:
        penalty.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"this is not the state of a EWCPlugin: entry {entry!r}: {error}") from error
    return penalty


def _generator(state: Tensor | None) -> torch.Generator | None:
    return None if state is None else torch.Generator().set_state(state.cpu())


def _is_generator(value: Any) -> bool:
    try:
        _generator(value)
    except (TypeError, AttributeError, RuntimeError):
        return False
    return True


def _is_label(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_dict(value: Any, keys: type, fits: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, keys) and fits(v) for k, v in value.items())


_names = list_of(lambda name: isinstance(name, str))
_ENTRIES: dict[str, Entry] = {
    "penalty": ("a dict", lambda value: isinstance(value, Mapping)),
    "terms": ("dicts by task label", lambda value: _is_dict(value, int, lambda term: isinstance(term, Mapping))),
    "tasks": COUNT,
    "importances": (
        "tensors by parameter name",
        lambda value: _is_dict(value, str, lambda f: isinstance(f, Tensor)),
    ),
    "fisher_seconds": ("a number >= 0", lambda value: is_number(value) and value >= 0),
    "last_penalty": ("a tensor", lambda value: isinstance(value, Tensor)),
    "generator": ("the state of a torch.Generator, or None", _is_generator),
    "parts": COUNT,
    "classes": ("lists of classes by task label", lambda value: _is_dict(value, int, list_of(_is_label))),
    "warned": ("a list of names", _names),
    "active": ("a list of names, or None", lambda value: value is None or _names(value)),
}
