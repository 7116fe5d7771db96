"""What EWC refuses or warns about before it can go wrong silently."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from operator import index
from typing import Any

from torch.optim import SGD, Optimizer

from avl_plugins.ewc.criterion import sums_over_batch
from avl_plugins.ewc.curvature import Penalty
from avl_plugins.tasks.boundaries import Task


def explains_avalanche_arguments(write: str) -> Callable[[type], type]:
    """Have a class refuse Avalanche's arguments with an explanation, which Python's own TypeError would not give.

    A subclass that has a constructor of its own may have such arguments. Signatures and help show the constructor's.

    Args:
        write: the call to write instead of one with positional arguments.
    """

    def decorate(kind: type) -> type:
        def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:
            if inspect.unwrap(cls.__init__) is inspect.unwrap(kind.__init__):  # type: ignore[misc]
                refuse_avalanche_arguments(args, kwargs, write)
            return super(kind, cls).__new__(cls)  # type: ignore[arg-type, misc]

        __new__.__signature__ = inspect.signature(kind.__init__)  # type: ignore[attr-defined, misc]
        kind.__new__ = __new__  # type: ignore[assignment]
        return kind

    return decorate


def refuse_avalanche_arguments(args: Sequence[Any], kwargs: Mapping[str, Any], write: str) -> None:
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


def warn_if_unstable(penalty: Penalty, optimizer: Optimizer, parameters: Mapping[str, Any]) -> bool:
    """Warn where gradient descent on the penalty alone would diverge: lr lambda max(F) > 2 under SGD.

    (Momentum moves the limit by a factor below 2; the task's own curvature only adds to the left side.)
    Returns whether it warned.
    """
    if not isinstance(optimizer, SGD):
        return False
    largest = penalty.largest_eigenvalues()
    names = {id(parameters[name]): name for name in largest}
    worst, lr, name = 0.0, 0.0, ""
    for group in optimizer.param_groups:
        for theta in group["params"]:
            if id(theta) in names:
                precision = largest[names[id(theta)]]
                if float(group["lr"]) * precision > worst:
                    lr, name = float(group["lr"]), names[id(theta)]
                    worst = lr * precision
    if worst <= 2:
        return False
    warnings.warn(
        f"EWC's gradient step will diverge: lr * lambda * max(F) = {lr:g} * {worst / lr:g} = {worst:g} > 2 (at "
        f"{name!r}). Use penalty_step='proximal', which is stable for any lambda, or lower lr or ewc_lambda by a "
        f"factor of {worst / 2:.3g}",
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
