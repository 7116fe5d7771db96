"""The state of a `DGRPlugin`, checked before anything is taken from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any

from torch import Tensor

from avl_plugins.dgr.frozen import detached_copy
from avl_plugins.dgr.targets import targets_from_plain

__all__ = ["all_or_nothing", "check_state", "fitting"]


def check_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with what older ones lack.

    Raises:
        ValueError: Entries are missing, unknown, or of another kind; the message names them.
    """
    state = {**_LATER, **state}
    if odd := sorted(state.keys() ^ _KINDS.keys()):
        raise ValueError(f"this is not the state of a DGRPlugin: entries missing or unknown: {odd}")
    for name, fits in _KINDS.items():
        if not fits(state[name]):
            raise ValueError(f"this is not the state of a DGRPlugin: its {name!r} cannot be {state[name]!r:.60}")
    if state["old_generator"] is None and state["source"] is None and state["tasks"]:
        raise ValueError(f"this is not the state of a DGRPlugin: no 'old_generator' after {state['tasks']} tasks")
    return state


@contextmanager
def fitting(name: str) -> Iterator[None]:
    """Say of which entry it was that an error came in taking it."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"state[{name!r}] does not fit this DGRPlugin: {error}") from error


@contextmanager
def all_or_nothing(plugin: Any) -> Iterator[None]:
    """Put plugin, source and generator back as they were where an error comes, or an interruption."""
    own, source, random = dict(vars(plugin)), dict(vars(plugin.source)), plugin._random.get_state()
    generator: Any = plugin.source.generator
    state = None if generator is None else (detached_copy(dict(generator.state_dict())), generator.data_range)
    try:
        yield
    except BaseException:
        vars(plugin).update(own)
        vars(plugin.source).update(source)
        plugin._random.set_state(random)
        if state is not None:
            generator.load_state_dict(state[0])
            if generator.data_range != state[1]:  # a user's own state may lack it
                generator.data_range = state[1]
        raise


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_labels(value: Any) -> bool:
    return isinstance(value, list) and all(type(label) is int for label in value)


def _is_mapping(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


def _is_range(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(end, Real) for end in value)


def _are_targets(value: Any) -> bool:
    try:
        targets_from_plain(value)
    except Exception:
        return False
    return True


def _is_solver(value: Any) -> bool:
    if value is None:
        return True
    return (
        isinstance(value, Mapping)
        and value.keys() - {"targets"} == {"tensors", "classes", "task_labels"}
        and isinstance(value["tensors"], Mapping)
        and all(isinstance(tensor, Tensor) for tensor in value["tensors"].values())
        and (value["classes"] is None or _are_labels(value["classes"]))
        and _are_labels(value["task_labels"])
        and _are_targets(value.get("targets"))
    )


def _is_chunk(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    return isinstance(value[0], Tensor) and all(map(_is_count, value[1:]))


def _are_losses(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(history, list) for history in value.values())


_KINDS: dict[str, Callable[[Any], bool]] = {
    "tasks": _is_count,
    "parts": _is_count,
    "classes": _are_labels,
    "task_labels": _are_labels,
    "generator": _is_mapping,
    "old_generator": _is_mapping,
    "source": _is_mapping,
    "solver": _is_solver,
    "random": lambda value: isinstance(value, Tensor),
    "seeded": lambda value: isinstance(value, bool),
    "chunk": _is_chunk,
    "losses": _are_losses,
    "range_read": _is_range,
    "old_range": _is_range,
    "shape": lambda value: value is None or _are_labels(value),
}
_LATER = {"parts": 0, "old_range": None, "shape": None}
"""What older states do not have."""
