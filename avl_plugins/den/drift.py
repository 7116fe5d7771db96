"""The drift penalty (Eq. 6), which keeps weights where they were before the newest task, and its proximal step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from avl_plugins.growth.preconditioner import inverse_preconditioner
from avl_plugins.tasks.arguments import check_number

__all__ = ["Anchor", "Before", "anchors", "drift_penalty", "pull_back_"]

Before = list[tuple[Tensor, Tensor | None]]
"""Weight and bias of every hidden layer as they were before the newest task."""
Anchor = tuple[Tensor, Tensor]
"""A parameter, and what its leading block of that shape was before the newest task."""


def anchors(network: Any, before: Before) -> list[Anchor]:
    """Return the parameters of the hidden layers that are trained, and what they were before the newest task.

    Args:
        network: a `DynamicallyExpandableNetwork`, as a whole or with a selected part in its place.
        before: its weights and biases.
    """
    if network.stand_in is not None:
        return network.stand_in.anchors(network, before)
    found = []
    for layer, (weight, bias) in zip(network.hidden, before, strict=True):
        found.append((layer.layer.weight, weight))
        if bias is not None:
            found.append((layer.layer.bias, bias))
    return found


def drift_penalty(anchored: Sequence[Anchor]) -> Tensor:
    """Return sum ||W - W_before||^2 over weights and biases that there were before (Eq. 6, without lambda)."""
    total = anchored[0][1].new_zeros(())
    for parameter, past in anchored:
        total = total + (parameter[_block(past)] - past).square().sum()
    return total


@torch.no_grad()
def pull_back_(anchored: Sequence[Anchor], optimizer: Optimizer, drift_lambda: float) -> None:
    r"""Take the proximal step of lambda ||W - W_before||^2, right after `optimizer.step()`.

        W <- W - (W - W_before) s/(1 + s),   s = 2 lr lambda P,

    P being the factor by which the optimizer multiplies a constant gradient, for Adam about 1/sqrt(v), so that a fixed
    point of step and pull is a stationary point of loss plus penalty, and the pull is stable for every lambda. The
    gradient of the penalty would be divided by its own size in Adam: with a large lambda weights tremble around
    W_before by the learning rate. What has no gradient has not moved and stays as it is.

    Args:
        anchored: what to pull, and where to.
        optimizer: SGD, Adam, AdamW or RMSprop, which has just stepped.
        drift_lambda: lambda.

    Raises:
        ValueError: If the optimizer is another one, or it maximises, or lambda is negative or not finite.
    """
    check_number("drift_lambda", drift_lambda, low=0)
    inverse = inverse_preconditioner(optimizer, option="penalty_step")
    past_of = {id(parameter): past for parameter, past in anchored}
    for group in optimizer.param_groups:
        strength = 2 * group["lr"] * drift_lambda
        for parameter in group["params"]:
            past = past_of.get(id(parameter))
            if past is None or parameter.grad is None:
                continue
            block, inverse_factor = _block(past), inverse(group, optimizer.state.get(parameter, {}))
            if isinstance(inverse_factor, Tensor):
                parameter[block].lerp_(past, strength / (inverse_factor[block] + strength))
            else:
                parameter[block].lerp_(past, strength / (inverse_factor + strength))


def _block(past: Tensor) -> tuple[slice, ...]:
    return tuple(slice(size) for size in past.shape)
