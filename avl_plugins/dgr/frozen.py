"""Copies of networks as they are now, which are answered or sampled by while the networks learn on."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer
from torch.overrides import TorchFunctionMode

__all__ = ["detached_copy", "frozen_copy", "move"]

T = TypeVar("T")


class _Detaching(TorchFunctionMode):
    """While it is on, `deepcopy` copies tensors with a graph, too, without it, and lazy buffers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if isinstance(tensor, UninitializedBuffer):
                kind: Any = type(tensor)
                return memo.setdefault(id(tensor), kind(device=tensor.device, dtype=tensor.dtype))
            if not tensor.is_leaf:
                return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def detached_copy(thing: T) -> T:
    """Return a deep copy, also of modules that keep an activation, which `copy.deepcopy` refuses for its graph.

    The weight of a layer with PyTorch's older `weight_norm` or `spectral_norm` is such an activation.
    """
    with _Detaching():
        return deepcopy(thing)


def frozen_copy(generator: T) -> T:
    """Return a copy of a generator that is only sampled from."""
    copy = detached_copy(generator)
    if isinstance(copy, nn.Module):
        copy.requires_grad_(False)
    return copy


def move(generator: Any, device: torch.device) -> None:
    """Move a generator that is a module, and its optimizers' state, which `to` leaves where it was."""
    if not isinstance(generator, nn.Module):
        return
    state, before = generator.state_dict(), [p.device for p in generator.parameters()]
    generator.to(device)
    if [p.device for p in generator.parameters()] != before:
        generator.load_state_dict(state)  # optimizers put what they load beside their parameters
