"""What EWC refuses or warns about before it can go wrong silently."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from avalanche.training.templates import SupervisedMetaLearningTemplate
from torch import Tensor
from torch.optim import SGD, Optimizer

from avl_plugins.ewc.curvature import Penalty


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


def refuse_meta_learning(strategy: Any) -> None:
    """Raise ValueError for the template that never calls `before_backward`: the penalty would have no effect."""
    if isinstance(strategy, SupervisedMetaLearningTemplate):
        raise ValueError(
            f"{type(strategy).__name__} is a meta-learning strategy, whose inner and outer updates have no place for "
            "EWC's penalty: use EWCPlugin with a strategy derived from SupervisedTemplate"
        )


def experience_name(strategy: Any) -> str:
    """What messages call the current experience."""
    return f"experience {getattr(strategy.experience, 'current_experience', None)}"


def check_finite_loss(strategy: Any, loss: Tensor, penalty: Tensor) -> None:
    """Raise ValueError if `loss`, which is `strategy.loss` plus the penalty, is NaN or infinite."""
    if not math.isfinite(loss.sum().item()):
        raise ValueError(
            f"the loss is not finite in {experience_name(strategy)}, step {strategy.clock.train_exp_iterations}: "
            f"{strategy.loss.sum().item():g} plus EWC's penalty {penalty.item():g}. Lower the learning rate; if the "
            "penalty has diverged, step='proximal' is stable for any ewc_lambda"
        )


def check_choice(argument: str, value: Any, choices: Sequence[str], hint: str = "") -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, choices))}, got {value!r}{hint}")


def check_number(
    argument: str, value: Any, *, low: float, high: float = math.inf, open_low: bool = False, integer: bool = False
) -> None:
    """Raise TypeError or ValueError unless `value` is a finite number within the bounds."""
    if isinstance(value, bool) or not isinstance(value, int if integer else int | float):
        raise TypeError(f"{argument} must be {'an integer' if integer else 'a number'}, got {value!r}")
    too_low = value <= low if open_low else value < low
    if not math.isfinite(value) or too_low or value > high:
        bounds = f"{'>' if open_low else '>='} {low:g}" + (f" and <= {high:g}" if high < math.inf else "")
        raise ValueError(f"{argument} must be finite and {bounds}, got {value}")


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
        f"{name!r}). Use step='proximal', which is stable for any lambda, or lower lr or ewc_lambda by a factor of "
        f"{worst / 2:.3g}",
        UserWarning,
        stacklevel=2,
    )
    return True


def warn_if_class_incremental(seen: dict[int, set[int]], experience: Any) -> bool:
    """Add the experience's classes to `seen` (task label -> classes); warn if a trained head gets new classes.

    New classes under a task label trained before are the class-incremental setting, in which EWC is known to fail
    (van de Ven & Tolias 2019). Returns whether it warned.
    """
    classes = getattr(experience, "classes_in_this_experience", None)
    if not classes:
        return False
    classes = {int(c) for c in classes}
    labels = {int(t) for t in getattr(experience, "task_labels", None) or (0,)}
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
