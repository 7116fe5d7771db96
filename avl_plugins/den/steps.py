"""What DEN adds to a training step: the gradient of mu's squares before it, the proximal steps of sparsity after it."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from avl_plugins.den.proximal import group_soft_threshold, shrink_groups

__all__ = ["add_squares", "proximal_step"]


@torch.no_grad()
def add_squares(weights: Sequence[Tensor], factor: float) -> Tensor:
    """Return factor / 2 times the sum of squares, and add its gradient to that of the weights, before `backward()`.

    The same as if it were part of the loss, without passing over the weights a few times more in autograd.
    """
    total = weights[0].new_zeros(())
    for weight in weights:
        total += torch.dot(weight.flatten(), weight.flatten())
        if weight.grad is None:
            weight.grad = factor * weight
        else:
            weight.grad.add_(weight, alpha=factor)
    return factor / 2 * total


@torch.no_grad()
def proximal_step(
    optimizer: Optimizer, *, l1: float, group_lasso: float = 0.0, incoming: Collection[Tensor] = ()
) -> None:
    """Apply the steps of L1 to all weights that are trained, then of group lasso to the new units' incoming ones.

    Weights without a gradient, such as other tasks' heads, have not been moved by the optimizer, and stay.

    Args:
        optimizer: it has just stepped.
        l1: mu.
        group_lasso: weight of group lasso, 0 for none.
        incoming: the new units' incoming weights.
    """
    grouped = {id(weight) for weight in incoming}
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.dim() < 2 or weight.grad is None:
                continue
            if l1:
                weight.copy_(shrink_groups(weight, group["lr"] * l1))
            if group_lasso and id(weight) in grouped:
                dims = tuple(range(1, weight.dim()))
                weight.copy_(group_soft_threshold(weight, group["lr"] * group_lasso, dims))
