"""What all methods refuse in training: empty experiences, losses and data that are not finite, sums for means."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_criterion",
    "check_loss",
    "experience_name",
    "note_strategy",
    "refuse_distributed",
    "refuse_empty",
    "refuse_second_strategy",
]


def experience_name(strategy: Any) -> str:
    """What messages call the current experience."""
    return f"experience {getattr(strategy.experience, 'current_experience', None)}"


def refuse_empty(strategy: Any, method: str) -> None:
    """Refuse an empty experience, in `before_train_dataset_adaptation`: before a data loader is made of it.

    Raises:
        ValueError: It is empty.
    """
    dataset = getattr(strategy.experience, "dataset", None)
    if dataset is not None and len(dataset) == 0:
        raise ValueError(f"{experience_name(strategy)} is empty: {method} has nothing to learn from; leave it out")


def refuse_distributed(method: str) -> None:
    """Refuse a run of several processes, in `before_training`: what a method draws and computes is each one's own.

    Raises:
        ValueError: There is more than one process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if (processes := torch.distributed.get_world_size()) > 1:
        raise ValueError(
            f"{method} does not serve distributed runs, and this is one of {processes} processes: what each draws and "
            "measures would be its own, so that their parameters drift apart. Train in one process"
        )


_SERVED: weakref.WeakKeyDictionary[Any, weakref.ref] = weakref.WeakKeyDictionary()  # not pickled with the plugin


def refuse_second_strategy(plugin: Any, strategy: Any) -> None:
    """Refuse a plugin that serves another strategy, in `before_training`; see `note_strategy`.

    Raises:
        ValueError: The other one is still there.
    """
    served = _SERVED.get(plugin)
    if served is None or served() in (None, strategy):
        return
    gc.collect()  # nobody may have kept it but cycles
    if served() is not None:
        raise ValueError(
            f"this {type(plugin).__name__} already serves another strategy, whose tasks it would take for those of "
            f"this {type(strategy).__name__}: make one for each (load_state_dict gives a new one what another knows)"
        )


def note_strategy(plugin: Any, strategy: Any) -> None:
    """Note that a plugin serves a strategy, once all is checked; neither is kept alive by it."""
    _SERVED[plugin] = weakref.ref(strategy)


def check_criterion(strategy: Any, method: str) -> None:
    """Refuse a criterion that says itself that it is no mean over the mini-batch.

    Raises:
        ValueError: Its `reduction` is another one.
    """
    criterion = getattr(strategy, "_criterion", None)
    reduction = getattr(criterion, "reduction", "mean")
    if reduction not in ("mean", "batchmean"):
        raise ValueError(
            f"criterion must be a mean over the mini-batch, as {method} compares and weighs losses, got "
            f"{type(criterion).__name__}(reduction={reduction!r}): use reduction='mean'"
        )


def check_loss(strategy: Any, loss: Tensor, *, hint: str = "Lower the learning rate") -> None:
    """Refuse a loss that is NaN or infinite, before it reaches a parameter.

    Args:
        strategy: in training; its mini-batch is looked at where the loss is not finite.
        loss: of the mini-batch, penalties included.
        hint: what to do where the data are not to blame.

    Raises:
        ValueError: It is not finite; the message names the experience and the step, and says whether the data are.
    """
    value = loss.detach().sum().item()
    if math.isfinite(value):
        return
    where = f"{experience_name(strategy)}, step {strategy.clock.train_exp_iterations}"
    if (bad := _not_finite(strategy.mbatch)) is not None:
        raise ValueError(f"{bad} of {where} have NaN or infinite values: clean the data set, or its transforms")
    raise ValueError(f"the loss is {value:g} in {where}. {hint}")


def _not_finite(mbatch: Any) -> str | None:
    """Name the part of a mini-batch that is not finite, if one is."""
    for what, values in zip(("inputs", "targets"), mbatch or (), strict=False):
        if isinstance(values, Tensor) and values.is_floating_point() and not values.isfinite().all():
            return what
    return None
