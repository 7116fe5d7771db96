"""The quadratic penalty applied after the optimizer's step instead of through the gradient."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from avl_plugins.ewc.penalty import QuadraticPenalty


@torch.no_grad()
def proximal_step_(penalty: QuadraticPenalty, optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> None:
    r"""Pull the parameters to the penalty's centre, right after `optimizer.step()`.

        theta <- theta - (theta - c) s/(1 + s),   s = lr A P,

    which is the proximal (implicit) step of 1/2 A (theta - c)^2 in the optimizer's own metric: lr is the parameter
    group's, and P the factor by which the optimizer multiplies a constant gradient,

        SGD                   1
        SGD with momentum m   (1 - dampening)/(1 - m), Nesterov too
        Adam, AdamW           1/(sqrt(v/(1 - beta2^t)) + eps), v the running (amsgrad: maximal) squared gradient
        RMSprop               1/(sqrt(v) + eps) (centered: v minus the squared mean gradient), times 1/(1 - m)

    so that a fixed point of optimizer step and pull is a stationary point of loss plus penalty. Unlike the explicit
    gradient, which diverges once lr A > 2, the pull is stable for every A. Where A is 0 theta stays as it is, and so
    does a parameter without a gradient, which the optimizer has not moved.

    Args:
        penalty: the quadratic; lambda is inside A.
        optimizer: the optimizer that has just stepped.
        parameters: the model's parameters by name.

    Raises:
        ValueError: the optimizer is none of these, or maximises; a protected parameter is missing or has shrunk.
    """
    inverse = inverse_preconditioner(optimizer)
    penalty.check(parameters)
    names = {id(parameters[name]): name for name in penalty.precision}
    for group in optimizer.param_groups:
        for theta in group["params"]:
            name = names.get(id(theta))
            if name is None or theta.grad is None:
                continue
            weight = penalty.precision[name] * group["lr"]
            weight.div_(inverse(group, optimizer.state.get(theta, {})) + weight)  # s/(1 + s) = lr A/(1/P + lr A)
            theta.lerp_(penalty.centre[name], weight)


def inverse_preconditioner(optimizer: Optimizer) -> Callable[[dict[str, Any], dict[str, Any]], Tensor | float]:
    """The function (parameter group, parameter's state) -> 1/P of `proximal_step_`.

    Raises:
        ValueError: P is not known for this optimizer, or it maximises.
    """
    known = _INVERSES.get(type(optimizer))
    if known is None:
        raise ValueError(
            f"step='proximal' knows {', '.join(t.__name__ for t in _INVERSES)}, not "
            f"{type(optimizer).__name__}: use step='gradient' or one of these optimizers"
        )
    if any(group["maximize"] for group in optimizer.param_groups):
        raise ValueError("step='proximal' needs an optimizer that minimises: set maximize=False")
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
