"""Where `DENPlugin` cannot be used, said before anything is trained."""

from collections.abc import Sequence
from typing import Any

from avalanche.training.plugins import EarlyStoppingPlugin
from avalanche.training.supervised import Cumulative, JointTraining

from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.growth.preconditioner import inverse_preconditioner

__all__ = ["check_use", "each_layer"]

_KEEP_STATE = {
    "AGEMPlugin",
    "EWCPlugin",
    "GEMPlugin",
    "MASPlugin",
    "RWalkPlugin",
    "SynapticIntelligencePlugin",
}
"""Plugins with something for each parameter, which is of another shape after a task."""


def check_use(strategy: Any, plugin: Any) -> None:
    """Refuse other models, training on several tasks at once, and plugins that cannot be beside a `DENPlugin`.

    Raises:
        TypeError: If the model is no `DynamicallyExpandableNetwork`.
        ValueError: See `DENPlugin`.
    """
    if not isinstance(strategy.model, DynamicallyExpandableNetwork):
        raise TypeError(
            f"DENPlugin trains a DynamicallyExpandableNetwork, and the model is a {type(strategy.model).__name__}; "
            "pass model=DynamicallyExpandableNetwork(nn.Sequential(...)) with the layers before the output head"
        )
    if isinstance(strategy, JointTraining | Cumulative):
        raise ValueError(
            f"{type(strategy).__name__} trains on several tasks at once, and DENPlugin on one after the other"
        )
    names = {kind.__name__ for other in strategy.plugins for kind in type(other).__mro__}
    if found := sorted(names & _KEEP_STATE):
        raise ValueError(
            f"{found[0]} keeps something for each parameter, and DENPlugin trains parts of them and changes their "
            "shapes; remove one of the two"
        )
    if any(isinstance(other, EarlyStoppingPlugin) for other in strategy.plugins):
        raise ValueError(
            "EarlyStoppingPlugin goes back to the best state since training began, across phases between which "
            "the network grows; remove it, and call strategy.stop_training() from a plugin to end a phase early"
        )
    if not strategy.model.labels:
        _refuse_untrained(strategy)
    layers = len(strategy.model.layers)
    for name, count in (("expand_by", plugin.expand_by), ("max_splits", plugin.max_splits)):
        if len(each_layer(count, layers)) != layers:
            raise ValueError(f"{name}: expected one number or {layers}, one for each hidden layer, got {count}")
    if plugin.drift_step == "proximal":
        inverse_preconditioner(strategy.optimizer, option="drift_step")


def each_layer(count: int | Sequence[int] | None, layers: int) -> list[Any]:
    """Return a number for each layer."""
    return list(count) if isinstance(count, Sequence) else [count] * layers


def _refuse_untrained(strategy: Any) -> None:
    """Raise a ValueError where a parameter is frozen, or not in the optimizer: phases train all of them."""
    held = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
    for name, parameter in strategy.model.named_parameters():
        if not parameter.requires_grad or id(parameter) not in held:
            why = "is not in the optimizer" if parameter.requires_grad else "has requires_grad=False"
            raise ValueError(
                f"model: {name} {why}, and DENPlugin trains all hidden layers; apply a layer that is to stay as it is "
                "to the data instead"
            )
