"""The state of an `EWCPlugin`, read entry by entry before any of it is taken."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from avl_plugins.ewc.penalty import QuadraticPenalty
from avl_plugins.tasks.arguments import check_count, check_number


def read_state(state: Any, same: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all entries, tensors copied.

    Args:
        state: of `EWCPlugin.state_dict()`.
        same: entries that must be as they are here.

    Raises:
        ValueError: an entry is missing, unknown, other than in `same`, or not what it should be; it is named.
    """
    wanted = {*same, *_READERS}
    if not isinstance(state, Mapping) or set(state) != wanted:
        odd = sorted(map(str, wanted ^ set(state))) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"this is not the state of an EWCPlugin: entries missing or unknown: {odd}")
    for name, value in same.items():
        if state[name] != value:
            raise ValueError(
                f"the state was saved with {name}={state[name]!r}, this plugin has {name}={value!r}: build it with the "
                "same"
            )
    found = {}
    for name, reader in _READERS.items():
        try:
            found[name] = reader(state[name])
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(f"the entry {name!r} of an EWCPlugin's state cannot be taken: {error}") from error
    return found


def _penalty(state: Any) -> QuadraticPenalty:
    penalty = QuadraticPenalty()
    penalty.load_state_dict(state)
    return penalty


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"expected a tensor, got {type(value).__name__}")
    return value.detach().clone()


def _generator(value: Any) -> torch.Generator | None:
    return None if value is None else torch.Generator().set_state(_tensor(value).cpu())


def _count(value: Any) -> int:
    check_count("it", value, low=0)
    return int(value)


def _label(value: Any) -> int:
    check_count("a label", value, low=-(2**63))
    return int(value)


def _seconds(value: Any) -> float:
    check_number("it", value, low=0)
    return float(value)


def _names(value: Any) -> set[str]:
    if not isinstance(value, list | tuple | set) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"expected a list of names, got {value!r}")
    return set(value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "penalty": _penalty,
    "terms": lambda value: {_label(label): _penalty(term) for label, term in value.items()},
    "tasks": _count,
    "importances": lambda value: {str(name): _tensor(f) for name, f in value.items()},
    "fisher_seconds": _seconds,
    "last_penalty": _tensor,
    "generator": _generator,
    "parts": _count,
    "classes": lambda value: {_label(task): {_label(c) for c in classes} for task, classes in value.items()},
    "warned": _names,
    "active": lambda value: None if value is None else _names(value),
}
