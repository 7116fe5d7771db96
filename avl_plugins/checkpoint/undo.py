"""Putting objects back as they were, whatever has been done to them since."""

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLExperience
from avalanche.logging import BaseLogger
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset

from avl_plugins.checkpoint.plain import SCALARS, is_wiring

__all__ = ["undo_for"]

_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_RANDOM = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
# What no load changes, and what may be large or belong to a thread.
_LEFT_ALONE = (CLExperience, Dataset, DataLoader, BaseLogger, Figure, Image)
_MODULES_LEFT_ALONE = ("torch._", "torch.utils.", "avalanche.benchmarks.", "avalanche.logging.", "avl_plugins.data.")


def undo_for(*roots: Any) -> Callable[[], None]:
    """Return a function that puts objects, and all that hangs on them, back as they are now.

    Attributes and containers get the very objects back that they hold now; tensors, arrays and random generators get
    their values. Data sets, loggers, functions and objects of the standard library are left alone, and so are
    strategies that are not among the `roots`.
    """
    seen: dict[int, Any] = {}  # keeps what was seen alive, so that no id comes twice
    undo: list[Callable[[], Any]] = []
    waiting = list(roots)
    while waiting:
        value = waiting.pop()
        if type(value) in SCALARS or id(value) in seen:
            continue
        if _is_left_alone(value) and not any(value is root for root in roots):
            continue
        seen[id(value)] = value
        undo.extend(_undo_for_one(value))
        waiting.extend(_parts(value))

    def undo_all() -> None:
        for restore in undo:
            restore()

    return undo_all


def _is_left_alone(value: Any) -> bool:
    if isinstance(value, (Tensor, nn.Module, *_CONTAINERS, *_RANDOM)):
        return False
    module = type(value).__module__
    return (
        module.partition(".")[0] in sys.stdlib_module_names  # numbers and strings, files, threads, queues
        or module.startswith(_MODULES_LEFT_ALONE)
        or isinstance(value, _LEFT_ALONE)
        or is_wiring(value)
    )


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, _CONTAINERS):
        yield from value.values() if isinstance(value, dict) else value
    yield from _attributes(value).values()


def _attributes(value: Any) -> dict[str, Any]:
    return {} if isinstance(value, Tensor) else getattr(value, "__dict__", {})


def _undo_for_one(value: Any) -> Iterator[Callable[[], Any]]:
    """Yield what puts back the contents of an object itself."""
    if isinstance(value, Tensor):
        yield _undo_for_tensor(value)
    elif isinstance(value, (dict, set)):
        yield partial(_refill, value, value.update, value.copy())
    elif isinstance(value, (list, deque)):
        yield partial(_refill, value, value.extend, list(value))
    elif isinstance(value, np.ndarray):
        yield partial(np.copyto, value, value.copy())
    elif isinstance(value, (torch.Generator, np.random.RandomState)):
        generator: Any = value
        yield partial(generator.set_state, generator.get_state())
    elif isinstance(value, np.random.Generator):
        yield partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    elif isinstance(value, random.Random):
        yield partial(value.setstate, value.getstate())
    if isinstance(value, nn.Module):
        yield partial(setattr, value, "__class__", type(value))  # a lazy module becomes an ordinary one
    if attributes := _attributes(value):
        yield partial(_refill, attributes, attributes.update, attributes.copy())


def _refill(container: Any, fill: Callable[[Any], None], contents: Any) -> None:
    container.clear()
    fill(contents)


def _undo_for_tensor(tensor: Tensor) -> Callable[[], None]:
    kind, trained = type(tensor), tensor.requires_grad
    data = torch.empty(0, dtype=tensor.dtype, device=tensor.device) if is_lazy(tensor) else tensor.data
    values = data.clone()
    # Nothing writes in place to a sparse tensor, or to one whose elements share memory.
    writable = data.layout is torch.strided and not data.is_inference() and 0 not in data.stride()

    def undo() -> None:
        tensor.data = data  # its shape and device may have changed
        tensor.__class__ = kind  # a lazy parameter becomes an ordinary one
        if writable:
            data.copy_(values)
        if tensor.is_leaf:
            tensor.requires_grad = trained

    return undo
