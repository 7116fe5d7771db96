"""The two approximations of the Fisher that `EWCPlugin` works with: its diagonal, or a Kronecker product per layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from avl_plugins.ewc.fisher import diagonal_fisher
from avl_plugins.ewc.importance import mean_importance, normalised
from avl_plugins.ewc.kronecker import KroneckerFisher, kronecker_fisher
from avl_plugins.ewc.kronecker_penalty import KroneckerPenalty
from avl_plugins.ewc.kronecker_proximal import check_kronecker_proximal, kronecker_proximal_step_
from avl_plugins.ewc.penalty import QuadraticPenalty
from avl_plugins.ewc.proximal import proximal_step_
from avl_plugins.growth.preconditioner import inverse_preconditioner
from avl_plugins.tasks.arguments import check_choice, check_number

Curvature = Literal["diagonal", "kronecker"]
Penalty = QuadraticPenalty | KroneckerPenalty


def check_curvature(
    curvature: str, *, damping: float, fisher_labels: str, importance: str, mode: str, penalty_step: str
) -> None:
    """Raise ValueError for arguments of `EWCPlugin` that do not go together."""
    check_choice("curvature", curvature, ("diagonal", "kronecker"))
    check_number("damping", damping, low=0)
    if curvature == "diagonal":
        if damping:
            raise ValueError(f"damping={damping} has no effect with curvature='diagonal': use curvature='kronecker'")
        return
    if fisher_labels == "batch":
        raise ValueError("fisher_labels='batch' has no Kronecker factors: use 'exact', 'sampled' or 'empirical'")
    if importance == "uniform":
        raise ValueError("importance='uniform' is diagonal: use it with curvature='diagonal'")
    if penalty_step == "proximal" and mode == "separate":
        raise ValueError(
            "penalty_step='proximal' with curvature='kronecker' needs mode='online': the sum of several tasks' "
            "Kronecker products has no eigenbasis of its own kind"
        )


def make_penalty(curvature: str) -> Penalty:
    """Make an empty penalty."""
    return KroneckerPenalty() if curvature == "kronecker" else QuadraticPenalty()


def measured(
    curvature: str, model: nn.Module, batches: Iterable[Any], names: Collection[str], *, damping: float, **options: Any
) -> dict[str, Tensor] | KroneckerFisher:
    """Return the Fisher over these parameters; the options are `diagonal_fisher`'s."""
    if curvature == "kronecker":
        return kronecker_fisher(model, batches, damping=damping, **options).restricted(names)
    fisher = diagonal_fisher(model, batches, **options)
    return {name: fisher[name] for name in names}


def diagonal_of(fisher: Mapping[str, Tensor] | KroneckerFisher) -> Mapping[str, Tensor]:
    """Return the diagonal by parameter name."""
    return fisher.diagonal() if isinstance(fisher, KroneckerFisher) else fisher


def with_mean_one(fisher: Mapping[str, Tensor] | KroneckerFisher) -> Mapping[str, Tensor] | KroneckerFisher:
    """Return the Fisher divided by the mean of its diagonal."""
    if isinstance(fisher, KroneckerFisher):
        return fisher.scaled(1 / mean_importance(fisher.diagonal()))
    return normalised(fisher)


def check_proximal(penalty: Penalty, optimizer: Optimizer) -> None:
    """Raise ValueError unless the penalty has a proximal step in this optimizer's metric."""
    if isinstance(penalty, KroneckerPenalty):
        check_kronecker_proximal(penalty, optimizer)
    else:
        inverse_preconditioner(optimizer, option="penalty_step")


def pull_(penalty: Penalty, optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> None:
    """Take the penalty's proximal step, after the optimizer's."""
    if isinstance(penalty, KroneckerPenalty):
        kronecker_proximal_step_(penalty, optimizer, parameters)
    else:
        proximal_step_(penalty, optimizer, parameters)
