"""The quadratic penalty applied after the optimizer's step instead of through the gradient."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from avl_plugins.ewc.penalty import QuadraticPenalty
from avl_plugins.growth.preconditioner import inverse_preconditioner


@torch.no_grad()
def proximal_step_(penalty: QuadraticPenalty, optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> None:
    r"""Pull the parameters to the penalty's centre, right after `optimizer.step()`.

        theta <- theta - (theta - c) s/(1 + s),   s = lr A P,

    which is the proximal (implicit) step of 1/2 A (theta - c)^2 in the optimizer's own metric: lr is the parameter
    group's, and P the factor by which the optimizer multiplies a constant gradient (`inverse_preconditioner`), so
    that a fixed point of optimizer step and pull is a stationary point of loss plus penalty. Unlike the explicit
    gradient, which diverges once lr A > 2, the pull is stable for every A. Where A is 0 theta stays as it is, and so
    does a parameter without a gradient, which the optimizer has not moved.

    Args:
        penalty: the quadratic; lambda is inside A.
        optimizer: the optimizer that has just stepped.
        parameters: the model's parameters by name.

    Raises:
        ValueError: the optimizer is none of these, or maximises; a protected parameter is missing or has shrunk.
    """
    inverse = inverse_preconditioner(optimizer, option="penalty_step")
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
