"""What the phases of DEN share: which parameters are trained, proximal steps, and the loss on a data set."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avl_plugins.data.loading import batches_in_memory
from avl_plugins.den.proximal import group_soft_threshold, shrink_groups
from avl_plugins.den.stand_in import NewUnits, StandIn

__all__ = ["add_squares", "join_groups", "mean_loss", "proximal_step", "train_only"]


def join_groups(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put heads that are in none of several groups into that of the other heads, or into the first."""
    place = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
    heads: Any = network.heads
    index = next((place[id(p)] for p in heads.parameters() if id(p) in place), 0)
    optimizer.param_groups[index]["params"] += [p for p in heads.parameters() if id(p) not in place]


def train_only(strategy: Any, part: nn.Module, places: dict[str, int]) -> None:
    """Let the optimizer see the parameters of this part of the model alone, with fresh state; no others get gradients.

    Args:
        strategy: Its model and optimizer.
        part: The model, or a part of it.
        places: The group of the optimizer that each of the model's parameters belongs to, by name, to which those
            found in a group are added; parameters that were in none go into the first.
    """
    network, optimizer = strategy.model, strategy.optimizer
    names = {id(p): name for name, p in network.named_parameters()}
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) in names:
                places.setdefault(names[id(parameter)], index)
    sources = part.sources() if isinstance(part, StandIn) else {}
    prefix = next(name for name, module in network.named_modules() if module is part)
    trained = {name: p for name, p in part.named_parameters(prefix=prefix) if p.numel()}
    network.requires_grad_(False)
    members: list[list[Tensor]] = [[] for _ in optimizer.param_groups]
    for name, parameter in trained.items():
        parameter.requires_grad_(True)
        source = sources.get(name.removeprefix(f"{prefix}."), name)
        members[places.get(source, 0)].append(parameter)
    for group, own in zip(optimizer.param_groups, members, strict=True):
        group["params"] = own
    for parameter in network.parameters():
        parameter.grad = None
    optimizer.state.clear()
    strategy.optimized_param_id = dict(network.named_parameters())


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
def proximal_step(strategy: Any, *, l1: float, group_lasso: float) -> None:
    """Apply the steps of L1 to all weights that are trained, then of group lasso to the new units' incoming ones.

    Weights without a gradient, such as other tasks' heads, have not been moved by the optimizer, and stay.
    """
    stand_in = strategy.model.stand_in
    incoming: set[int] = set()
    if isinstance(stand_in, NewUnits):
        incoming = {id(weight) for weight in list(stand_in.weights)[:-1]}
    for group in strategy.optimizer.param_groups:
        for weight in group["params"]:
            if weight.dim() < 2 or weight.grad is None:
                continue
            if l1:
                weight.copy_(shrink_groups(weight, group["lr"] * l1))
            if group_lasso and id(weight) in incoming:
                dims = tuple(range(1, weight.dim()))
                weight.copy_(group_soft_threshold(weight, group["lr"] * group_lasso, dims))


@torch.no_grad()
def mean_loss(strategy: Any, label: int, dataset: Any, batch_size: int = 1000) -> float:
    """Return the strategy's criterion on a task's data, in evaluation mode; modes are left as they were."""
    network, total, count = strategy.model, 0.0, 0
    training = network.training
    network.eval()
    for x, y, *_ in batches_in_memory(dataset, batch_size):
        logits = network(x.to(strategy.device), label)
        total += float(strategy._criterion(logits, y.to(strategy.device))) * len(x)
        count += len(x)
    network.train(training)
    return total / count
