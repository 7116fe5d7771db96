"""Copies of modules that hold what a forward pass has left in them."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["copy_module", "refuse_lazy"]

Module = TypeVar("Module", bound=nn.Module)


def copy_module(module: Module) -> Module:
    """Return a deep copy; activations that modules keep, and weights that they compute, are copied as plain values."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for tensor in _tensors(list(vars(part).values())):
            if not tensor.is_leaf:  # deepcopy refuses these
                memo[id(tensor)] = tensor.detach().clone()
    return deepcopy(module, memo)


def refuse_lazy(name: str, module: nn.Module) -> None:
    """Refuse a module with parameters or buffers that have no shape yet.

    Args:
        name: The argument's.
        module: What was given for it.

    Raises:
        TypeError: A module in it is lazy.
    """
    for part in module.modules():
        if any(map(is_lazy, (*part.parameters(recurse=False), *part.buffers(recurse=False)))):
            raise TypeError(f"{name}: {type(part).__name__} has no shape yet; give it its number of inputs")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
