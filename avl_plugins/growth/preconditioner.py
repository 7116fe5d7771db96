"""By which factor an optimizer multiplies a gradient, for proximal steps in the optimizer's own metric."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

__all__ = ["inverse_preconditioner"]


def inverse_preconditioner(
    optimizer: Optimizer, *, option: str
) -> Callable[[dict[str, Any], dict[str, Any]], Tensor | float]:
    """Return the function (parameter group, parameter's state) -> 1/P, P the factor of a constant gradient.

        SGD                   1
        SGD with momentum m   (1 - dampening)/(1 - m), Nesterov too
        Adam, AdamW           1/(sqrt(v/(1 - beta2^t)) + eps), v the running (amsgrad: maximal) squared gradient
        RMSprop               1/(sqrt(v) + eps) (centered: v minus the squared mean gradient), times 1/(1 - m)

    Args:
        optimizer: one of these, which has stepped.
        option: the argument that asks for proximal steps where it is "proximal", named in errors.

    Raises:
        ValueError: P is not known for this optimizer, or it maximises.
    """
    known = _INVERSES.get(type(optimizer))
    if known is None:
        raise ValueError(
            f"{option}='proximal' knows {', '.join(t.__name__ for t in _INVERSES)}, not "
            f"{type(optimizer).__name__}: use {option}='gradient' or one of these optimizers"
        )
    if any(group["maximize"] for group in optimizer.param_groups):
        raise ValueError(f"{option}='proximal' needs an optimizer that minimises: set maximize=False")
    return known


def _sgd(group: dict[str, Any], state: dict[str, Any]) -> float:
    return (1 - group["momentum"]) / (1 - group["dampening"]) if group["momentum"] else 1.0


def _adam(group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    second_moment = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    correction = 1 - group["betas"][1] ** float(state["step"])
    return second_moment.sqrt().div_(correction**0.5).add_(group["eps"])


def _rmsprop(group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    second_moment = state["square_avg"]
    if group["centered"]:
        second_moment = second_moment.addcmul(state["grad_avg"], state["grad_avg"], value=-1)
    denominator = second_moment.sqrt().add_(group["eps"])
    return denominator.mul_(1 - group["momentum"]) if group["momentum"] else denominator


_INVERSES: dict[type[Optimizer], Callable[[dict[str, Any], dict[str, Any]], Tensor | float]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
    RMSprop: _rmsprop,
}
