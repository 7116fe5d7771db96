"""What all methods refuse in training: empty experiences, losses and data that are not finite, sums for means."""

from __future__ import annotations

import functools
import gc
import math
import weakref
from typing import Any

from torch import Tensor, distributed

__all__ = [
    "check_criterion",
    "check_loss",
    "experience_name",
    "note_user",
    "refuse_distributed",
    "refuse_empty",
    "refuse_shared",
]

_users: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()
"""The strategy that trains with a plugin, or trains a network."""


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
    """Refuse training in several processes, in `before_training`.

    Raises:
        ValueError: There are several.
    """
    if distributed.is_available() and distributed.is_initialized() and (number := distributed.get_world_size()) > 1:
        raise ValueError(
            f"{method} does not serve distributed training, in which {number} processes would drift apart: use one"
        )


def refuse_shared(strategy: Any, name: str, thing: Any) -> None:
    """Refuse a plugin or network that another strategy has trained with, in `before_training`.

    Args:
        strategy: that is about to train.
        name: the argument's, "plugins" or "model".
        thing: the plugin or network, of which `note_user` takes note when its training begins.

    Raises:
        ValueError: The other strategy still exists.
    """
    if _user(thing) not in (None, strategy):
        gc.collect()  # it may be gone but for a cycle
    if (other := _user(thing)) not in (None, strategy):
        raise ValueError(
            f"{name}: another strategy, a {type(other).__name__}, has trained with this {type(thing).__name__}; make "
            "one for each, or delete the other strategy first"
        )


def note_user(strategy: Any, *things: Any) -> None:
    """Take note of who trains with plugins and networks; see `refuse_shared`."""
    for thing in things:
        _users[thing] = weakref.ref(strategy)


def _user(thing: Any) -> Any:
    user = _users.get(thing)
    return None if user is None else user()


def check_criterion(strategy: Any, method: str) -> None:
    """Refuse a criterion that says itself that it is no mean over the mini-batch.

    Raises:
        ValueError: Its `reduction` is another one.
    """
    criterion = getattr(strategy, "_criterion", None)
    if isinstance(criterion, functools.partial):
        reduction = criterion.keywords.get("reduction", "mean")
    else:
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
