"""Calling an agent's network, and the checks that it fits the task."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

__all__ = ["as_input", "call", "check_outputs", "try_network"]


def call(network: nn.Module, x: Tensor, label: int) -> Any:
    """Return the network's outputs for its inputs; one of several tasks is given the label, too."""
    return network(x, label) if isinstance(network, MultiTaskModule) else network(x)


def as_input(observations: Tensor) -> Tensor:
    """Return observations as networks take them: float32, bytes as fractions."""
    converted = observations.to(torch.float32)
    return converted.div_(255) if observations.dtype == torch.uint8 else converted


def check_outputs(outputs: Any, states: int, wanted: int, what: str, task: str) -> None:
    """Refuse outputs of another shape than a task takes.

    Args:
        outputs: of the network.
        states: for how many states they are.
        wanted: how many there have to be for each.
        what: what they are.
        task: the task's name.

    Raises:
        ValueError: there are others.
    """
    found = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
    if found != (states, wanted):
        raise ValueError(
            f"model must have outputs {(states, wanted)} for {states} states of task {task!r}, {what}, got {found}"
        )


@torch.no_grad()
def try_network(network: nn.Module, observations: Tensor, label: int, task: str) -> Any:
    """Return a network's outputs, and leave it (in evaluation mode for the call) and the random state as they were.

    Raises:
        ValueError: it fails on the task's observations.
    """
    modes = [(module, module.training) for module in network.modules()]
    device = observations.device
    network.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return call(network, as_input(observations.clone()), label)
    except Exception as error:
        raise ValueError(
            f"model must take the observations of task {task!r}, {tuple(observations.shape)} {observations.dtype}, "
            f"got {type(error).__name__}: {error}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
