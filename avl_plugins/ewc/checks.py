"""What EWC refuses or warns about before it can go wrong silently."""

import warnings
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer

from avl_plugins.ewc.criterion import sums_over_batch
from avl_plugins.ewc.evaluating import refuse_batch_statistics
from avl_plugins.ewc.penalty import QuadraticPenalty
from avl_plugins.ewc.selection import select
from avl_plugins.growth.preconditioner import inverse_preconditioner
from avl_plugins.tasks.arguments import check_number
from avl_plugins.tasks.boundaries import Task, current_task
from avl_plugins.tasks.labels import check_labels_differ
from avl_plugins.tasks.protocols import ActsInEnvironments


def refuse_avalanche_arguments(
    args: Sequence[Any], kwargs: Mapping[str, Any], write: str = "EWCPlugin(ewc_lambda=...)"
) -> None:
    """Raise TypeError for the arguments of `avalanche.training.plugins.EWCPlugin` that mean something else here.

    Raises:
        TypeError: with the argument to use instead; for positional ones, the call to `write`.
    """
    if args:
        raise TypeError(
            f"EWC takes keyword arguments only, got {len(args)} positional: write {write}. "
            "Lambda is the paper's (lambda/2 F d^2, per-sample Fisher), so Avalanche's value does not carry over"
        )
    if "decay_factor" in kwargs:
        raise TypeError("decay_factor is called gamma here: EWCPlugin(mode='online', gamma=...)")
    if "keep_importance_data" in kwargs:
        raise TypeError(
            "keep_importance_data does not exist here: the tasks' penalties are folded into one without loss, and "
            "`importances` holds the latest task's. Leave it out"
        )


def check_use(strategy: Any, plugin: Any) -> None:
    """Refuse what an `EWCPlugin` cannot be used with, in `before_training_exp`.

    Raises:
        ValueError: see `EWCPlugin`.
    """
    check_number("ewc_lambda", plugin.ewc_lambda, low=0)
    parameters = dict(strategy.model.named_parameters())
    select(parameters, plugin.include, plugin.exclude)
    plugin.penalty.check(parameters)
    acts = isinstance(strategy, ActsInEnvironments)
    if plugin.revisits == "replace" and not acts:
        check_labels_differ(current_task(strategy).experiences[0])
    if plugin.importance == "fisher":
        plugin.likelihood_for(strategy)
        if acts and plugin.fisher_data is None and plugin.labels in ("empirical", "batch"):
            raise ValueError(
                f"labels={plugin.labels!r} needs targets, of which {type(strategy).__name__} has none: use "
                "labels='exact' or 'sampled'"
            )
        if plugin.labels != "batch":
            refuse_batch_statistics(strategy.model)
    if plugin.step == "proximal":
        inverse_preconditioner(strategy.optimizer, option="step")


def warn_if_unstable(penalty: QuadraticPenalty, optimizer: Optimizer, model: nn.Module) -> bool:
    """Warn where gradient descent on the penalty alone would diverge: lr lambda max(F) > 2 under SGD.

    (Momentum moves the limit by a factor below 2; the task's own curvature only adds to the left side.)
    Returns whether it warned.
    """
    if not isinstance(optimizer, SGD):
        return False
    parameters = dict(model.named_parameters())
    names = {id(parameters[name]): name for name in penalty.precision}
    worst, lr, name = 0.0, 0.0, ""
    for group in optimizer.param_groups:
        for theta in group["params"]:
            if id(theta) in names:
                precision = float(penalty.precision[names[id(theta)]].max())
                if float(group["lr"]) * precision > worst:
                    lr, name = float(group["lr"]), names[id(theta)]
                    worst = lr * precision
    if worst <= 2:
        return False
    warnings.warn(
        f"EWC's gradient step will diverge: lr * lambda * max(F) = {lr:g} * {worst / lr:g} = {worst:g} > 2 (at "
        f"{name!r}). Use step='proximal', which is stable for any lambda, or lower lr or ewc_lambda by a factor of "
        f"{worst / 2:.3g}",
        UserWarning,
        stacklevel=2,
    )
    return True


def warn_if_sum(strategy: Any) -> bool:
    """Warn of a criterion that is a sum: the more samples in a mini-batch, the less a value of lambda weighs.

    Returns whether it warned.
    """
    if not sums_over_batch(strategy):
        return False
    warnings.warn(
        "the criterion is a sum over the mini-batch (reduction='sum'), so that what ewc_lambda weighs scales with the "
        "batch size: a value found with a mean is to be multiplied by train_mb_size. Use reduction='mean'",
        UserWarning,
        stacklevel=2,
    )
    return True


def warn_if_class_incremental(seen: dict[int, set[int]], task: Task) -> bool:
    """Add the task's classes to `seen` (task label -> classes); warn if a trained head gets new classes.

    New classes under a task label trained before are the class-incremental setting, in which EWC is known to fail
    (van de Ven & Tolias 2019). Returns whether it warned.
    """
    classes = _classes(task)
    if not classes:
        return False
    labels = {int(t) for e in task.experiences for t in getattr(e, "task_labels", None) or (0,)}
    new = classes - set().union(*(seen[t] for t in labels)) if labels <= seen.keys() else set()
    if new:
        warnings.warn(
            f"EWC fails in class-incremental training: this experience brings the new classes {sorted(new)} under task "
            f"label {min(labels)}, whose outputs were trained without them before. Use task "
            "labels and a multi-head model, or add replay (Avalanche's ReplayPlugin)",
            UserWarning,
            stacklevel=2,
        )
    for t in labels:
        seen[t] = seen.get(t, set()) | classes
    return bool(new)


def _classes(task: Task) -> set[int]:
    """The classes that Avalanche says a task has; none where targets are vectors or numbers."""
    try:
        return {index(c) for e in task.experiences for c in getattr(e, "classes_in_this_experience", None) or ()}
    except TypeError:
        return set()
