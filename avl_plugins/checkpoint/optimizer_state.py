"""An optimizer by its parameters' names as plain values, and back."""

import logging
from typing import Any

from torch import Tensor, nn

from avl_plugins.checkpoint.names import bare_name, full_name
from avl_plugins.checkpoint.plain import from_plain, of_same_kind, to_plain

__all__ = ["optimizer_from_plain", "optimizer_to_plain"]

log = logging.getLogger(__name__)


def optimizer_to_plain(strategy: Any) -> dict[str, Any] | None:
    """Return groups, state and the names Avalanche has learned, all by parameter name; None without an optimizer.

    After an evaluation that grew the model the optimizer still holds the parameters from before. They go by the name
    under which `optimized_param_id` knows them, and without their state, as the next `make_optimizer()` will have it.

    Raises:
        ValueError: If a parameter that is being trained belongs neither to the model nor to the criterion.
    """
    optimizer = strategy.optimizer
    if optimizer is None:
        return None
    named, learned = _named_parameters(strategy), _learned(strategy)
    names = {id(p): name for name, p in (learned or {}).items() if name in named}
    names |= {id(p): name for name, p in named.items()}
    groups, state = [], {}
    for group in optimizer.param_groups:
        members = []
        for parameter in group["params"]:
            if id(parameter) in names:
                members.append(names[id(parameter)])
            elif parameter.grad is not None or optimizer.state.get(parameter):
                raise ValueError(
                    f"the optimizer trains a parameter of shape {tuple(parameter.shape)} that is in neither the "
                    "model nor the criterion; train with remove_params=True if it has been taken out of the model"
                )
        groups.append(
            {**{k: to_plain(v, f"optimizer {k}") for k, v in group.items() if k != "params"}, "params": members}
        )
    for parameter, values in optimizer.state.items():
        name = names.get(id(parameter), "")
        if values and named.get(name) is parameter:
            state[name] = to_plain(values, f"optimizer state of {name}")
    return {
        "class": type(optimizer).__qualname__,
        "groups": groups,
        "state": state,
        "learned": None if learned is None else [name for name in learned if name in named],
    }


def optimizer_from_plain(strategy: Any, plain: dict[str, Any]) -> None:
    """Give the optimizer the saved groups, with the model's parameters in the saved order, and their state.

    Raises:
        ValueError: If they do not fit.
    """
    optimizer, named = strategy.optimizer, _named_parameters(strategy)
    fresh, saved = optimizer.param_groups, plain["groups"]
    if len(saved) < len(fresh):
        raise ValueError(f"optimizer: saved with {len(saved)} parameter groups, built with {len(fresh)}")
    if len(names := [name for group in saved for name in group["params"]]) != len(set(names)):
        raise ValueError("optimizer: the same parameter is in it twice")
    if unknown := [name for name in (*names, *plain["state"]) if name not in named]:
        raise ValueError(f"optimizer: it is for parameters that the model does not have: {', '.join(unknown)}")
    places = {name: place for place, name in enumerate(names)}
    groups = [_group_from_plain(group, fresh[i] if i < len(fresh) else fresh[0]) for i, group in enumerate(saved)]
    # Lists are replaced rather than changed, so that undoing needs no copy of the state.
    optimizer.param_groups = [{**group, "params": [named[name] for name in group["params"]]} for group in groups]
    groups = [{**group, "params": [places[name] for name in group["params"]]} for group in groups]
    state = {places[name]: of_same_kind(from_plain(v), {}, f"state of {name}") for name, v in plain["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    if hasattr(strategy, "optimized_param_id"):
        learned = plain["learned"]
        model = strategy.model
        strategy.optimized_param_id = learned and {full_name(model, name): named[name] for name in learned}


def _group_from_plain(plain: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    group = {key: of_same_kind(from_plain(value), fresh.get(key), f"optimizer {key}") for key, value in plain.items()}
    if missing := fresh.keys() - group.keys():  # of another version of torch
        log.warning(
            "the file does not say the optimizer's %s: what it was built with stays", ", ".join(sorted(missing))
        )
    return {**fresh, **group}


def _named_parameters(strategy: Any) -> dict[str, Tensor]:
    """Return the parameters a strategy may train: the model's, and those of a criterion that is a module."""
    model, criterion = strategy.model, getattr(strategy, "_criterion", None)
    own = criterion.named_parameters() if isinstance(criterion, nn.Module) else ()
    names = {bare_name(model, name): parameter for name, parameter in model.named_parameters()}
    return names | {f"criterion: {name}": p for name, p in own}


def _learned(strategy: Any) -> dict[str, Tensor] | None:
    """Return the parameters that Avalanche has given the optimizer, by name."""
    learned = getattr(strategy, "optimized_param_id", None)
    return learned and {bare_name(strategy.model, name): parameter for name, parameter in learned.items()}
