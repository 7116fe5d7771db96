"""Which parameters an optimizer sees in a phase, each in the group that it belongs to."""

from typing import Any

import torch
from torch import Tensor, nn

from avl_plugins.den.stand_in import StandIn

__all__ = ["join_groups", "train_only"]


def join_groups(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put heads that are in none of several groups into that of the other heads, or into the first."""
    place = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
    heads: Any = network.heads
    index = next((place[id(p)] for p in heads.parameters() if id(p) in place), 0)
    optimizer.param_groups[index]["params"] += [p for p in heads.parameters() if id(p) not in place]


def train_only(strategy: Any, part: nn.Module, places: dict[str, int]) -> None:
    """Let the optimizer see the parameters of this part of the model alone, with fresh state; no others get gradients.

    Args:
        strategy: its model and optimizer.
        part: the model, or a part of it.
        places: the group of the optimizer that each of the model's parameters belongs to, by name, to which those
            found in a group are added; parameters that were in none go into the first.
    """
    network, optimizer = strategy.model, strategy.optimizer
    names = {id(p): name for name, p in network.named_parameters()}
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) in names:
                places.setdefault(names[id(parameter)], index)
    sources = part.sources(network) if isinstance(part, StandIn) else {}
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
