"""Parameter groups of an optimizer: which one each parameter of a progressive network belongs to."""

from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer

__all__ = ["drop_frozen", "join_groups"]


def join_groups(network: Any, optimizer: Optimizer) -> None:
    """Put the network's parameters that are in none of the optimizer's groups into the one where they belong.

    That is the group of the parameter at the same place in another column. Where there is none, a lateral connection
    goes with the layer that it leads into, and the head with the last layer before it, weights with weights (so do U,
    V and alpha) and biases with biases. Avalanche leaves this to its own rule, which fails where the parameters
    of one layer are in different groups.

    Args:
        network: a `ProgressiveNetwork`.
        optimizer: its parameters in several groups, as they were made for the first column.

    Raises:
        ValueError: If no group has a parameter to go by. Nothing has changed then.
    """
    groups = [group["params"] for group in optimizer.param_groups]
    where = {id(parameter): number for number, group in enumerate(groups) for parameter in group}
    named = [(name.split(".", 2)[2], parameter) for name, parameter in network.named_parameters()]
    last = f"stages.{len(network.columns[0].stages) - 1}"
    known = {place: where[id(parameter)] for place, parameter in named if id(parameter) in where}
    joining = []
    for place, parameter in named:
        if id(parameter) not in where:
            number = next((known[like] for like in _alike(place, last) if like in known), None)
            if number is None:
                raise ValueError(
                    f"optimizer: none of its {len(groups)} parameter groups has a parameter like {place} of the first "
                    "column; make the groups from all of the network's parameters"
                )
            joining.append((number, parameter))
    for number, parameter in joining:
        groups[number].append(parameter)


def drop_frozen(optimizer: Optimizer) -> None:
    """Take the parameters that need no gradient, and their state, out of the optimizer."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not parameter.requires_grad:
                optimizer.state.pop(parameter, None)
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]


def _alike(place: str, last: str) -> Iterator[str]:
    """Yield the places in a column whose group a parameter may share, the most alike first."""
    yield place
    stage, lateral, rest = place.partition(".lateral.")
    if lateral:
        place = f"{stage}.layer.{'bias' if rest.endswith('bias') else 'weight'}"
        yield place
    if place.startswith("head."):
        place = place.replace("head", last, 1)
        yield place
    yield place.removesuffix("bias") + "weight"
