"""What all methods refuse in training: empty experiences, losses and data that are not finite, sums for means."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from avalanche.training.templates import SupervisedMetaLearningTemplate
from torch import Tensor, distributed

__all__ = [
    "check_criterion",
    "check_loss",
    "experience_name",
    "refuse_distributed",
    "refuse_empty",
    "refuse_meta_learning",
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
    """Refuse training in several processes, in `before_training`.

    Raises:
        ValueError: There are several.
    """
    if distributed.is_available() and distributed.is_initialized() and (number := distributed.get_world_size()) > 1:
        raise ValueError(
            f"{method} does not serve distributed training, in which {number} processes would drift apart: use one"
        )


def refuse_meta_learning(strategy: Any, method: str) -> None:
    """Refuse the template that never calls `before_backward`: what a method adds to the loss would not be there.

    Raises:
        ValueError: The strategy is one for meta-learning.
    """
    if isinstance(strategy, SupervisedMetaLearningTemplate):
        raise ValueError(
            f"{type(strategy).__name__} is a meta-learning strategy, whose updates have no place for what {method} "
            "adds to the loss: use a strategy derived from SupervisedTemplate"
        )


def check_criterion(strategy: Any, method: str) -> None:
    """Refuse a criterion that says itself that it is no mean over the mini-batch.

    Raises:
        ValueError: Its `reduction` is another one.
    """
    criterion = getattr(strategy, "_criterion", None)
    own, said = (criterion.func, criterion.keywords) if isinstance(criterion, partial) else (criterion, {})
    reduction = said.get("reduction", getattr(own, "reduction", "mean"))
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
