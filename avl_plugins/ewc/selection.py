"""Which parameters a plugin is concerned with."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

Selection = str | Iterable[str] | Callable[[str, nn.Parameter], bool]
"""One or more glob patterns over parameter names, or a function (name, parameter) -> bool."""


def check_selection(argument: str, selection: Any) -> Selection | None:
    """Return a selection that can be used again and again: a pattern, a tuple of patterns or a function.

    Raises:
        TypeError: it is none of these.
        ValueError: it is empty.
    """
    if selection is None or isinstance(selection, str) or callable(selection):
        return selection
    patterns = tuple(selection) if isinstance(selection, Iterable) else ()
    if not isinstance(selection, Iterable) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(
            f"{argument} must be glob patterns over parameter names, a function (name, parameter) -> bool, or None, "
            f"got {selection!r}"
        )
    if not patterns:
        raise ValueError(f"{argument} must be one pattern or more, or None, got {selection!r}")
    return patterns


def select(
    parameters: Mapping[str, nn.Parameter], include: Selection | None, exclude: Selection | None
) -> dict[str, nn.Parameter]:
    """Parameters that need gradients, are included (None: all) and are not excluded (None: none), in order.

    Raises:
        ValueError: no parameter is left, or a pattern matches none at all.
    """
    trainable = {name: p for name, p in parameters.items() if p.requires_grad}
    if not trainable:
        raise ValueError("the model has no parameters that need gradients: EWC has nothing to protect")
    kept = trainable if include is None else _matching("include", include, parameters)
    dropped = {} if exclude is None else _matching("exclude", exclude, parameters)
    selected = {name: p for name, p in trainable.items() if name in kept and name not in dropped}
    if not selected:
        raise ValueError(f"include and exclude leave none of the trainable parameters {list(trainable)}")
    return selected


def _matching(argument: str, selection: Selection, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    if callable(selection):
        return {name: p for name, p in parameters.items() if selection(name, p)}
    patterns = [selection] if isinstance(selection, str) else list(selection)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise ValueError(
                f"{argument} pattern {pattern!r} matches none of the parameters {list(parameters)} "
                "(for parameters that appear later, give a function (name, parameter) -> bool)"
            )
    return {name: p for name, p in parameters.items() if any(fnmatchcase(name, q) for q in patterns)}


def leaves(loss: Tensor) -> set[int]:
    """Ids of the leaf tensors that `loss` depends on, found in its graph."""
    found, visited, stack = set(), set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        stack.extend(following for following, _ in node.next_functions)
    return found
