"""The Kronecker-factored penalty applied after the optimizer's step instead of through the gradient."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from avl_plugins.ewc.kronecker_block import region
from avl_plugins.ewc.kronecker_penalty import KroneckerPenalty
from avl_plugins.ewc.proximal import proximal_step_
from avl_plugins.growth.preconditioner import inverse_preconditioner


def check_kronecker_proximal(penalty: KroneckerPenalty, optimizer: Optimizer) -> None:
    """Raise ValueError unless the penalty's proximal step has a closed form in this optimizer's metric."""
    if type(optimizer) is not SGD:
        raise ValueError(
            f"step='proximal' with Kronecker factors needs torch.optim.SGD, not {type(optimizer).__name__}: an "
            "optimizer that scales each parameter by itself leaves the factors no common eigenbasis. Use SGD or "
            "step='gradient'"
        )
    inverse_preconditioner(optimizer, option="step")  # refuses maximize=True
    for layer, terms in penalty.terms.items():
        shared = {n for term in terms for n in term.block.shapes} & penalty.diagonal.precision.keys()
        if len(terms) > 1 or shared:
            raise ValueError(
                f"step='proximal' needs one pair of Kronecker factors for layer {layer!r}, which has "
                f"{len(terms)}{' and a diagonal' if shared else ''}: their sum has no common eigenbasis. Use "
                "mode='online' or step='gradient'"
            )


@torch.no_grad()
def kronecker_proximal_step_(penalty: KroneckerPenalty, optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> None:
    r"""Pull the parameters to the penalty's centre, right after `optimizer.step()`.

        theta <- theta - s (I + s F)^-1 F (theta - c),   s = lr P,

    the proximal step of 1/2 (theta - c)^T F (theta - c) in SGD's metric; see `proximal_step_`. It is stable for every
    F. With the eigenvectors and values of the factors it costs three pairs of matrix products a layer.

    Args:
        penalty: of one pair of factors per layer, as `KroneckerPenalty.recentre` makes them; lambda is inside.
        optimizer: the SGD that has just stepped.
        parameters: the model's parameters by name.

    Raises:
        ValueError: another optimizer, or one that maximises; a layer with several pairs of factors; a protected
            parameter is missing or has shrunk.
    """
    check_kronecker_proximal(penalty, optimizer)
    penalty.check(parameters)
    proximal_step_(penalty.diagonal, optimizer, parameters)
    inverse = inverse_preconditioner(optimizer, option="step")
    names = {id(theta): name for name, theta in parameters.items()}
    steps = {
        names[id(theta)]: group["lr"] / float(inverse(group, {}))
        for group in optimizer.param_groups
        for theta in group["params"]
        if id(theta) in names and theta.grad is not None
    }
    for term in penalty.used(parameters, steps):
        for name, pull in term.pull(parameters, steps).items():
            parameters[name][region(pull.shape)].sub_(pull)
