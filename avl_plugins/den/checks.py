"""Where `DENPlugin` cannot be used, said before anything is trained."""

import math
from collections.abc import Sequence
from typing import Any

from avalanche.benchmarks import OnlineCLExperience
from avalanche.training.plugins import EarlyStoppingPlugin
from avalanche.training.supervised import Cumulative, JointTraining

from avl_plugins.den.loss import mean_loss
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.growth.preconditioner import inverse_preconditioner
from avl_plugins.tasks.checks import check_criterion, refuse_distributed, refuse_empty
from avl_plugins.tasks.labels import experience_classes, experience_labels
from avl_plugins.tasks.owners import refuse_shared

__all__ = ["check_experience", "check_use", "each_layer", "loss_before_expansion"]

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
            "pass model=DynamicallyExpandableNetwork(nn.Sequential(...)) with the layers before the output head, not "
            "inside DataParallel or torch.compile"
        )
    if isinstance(strategy, JointTraining | Cumulative):
        raise ValueError(
            f"{type(strategy).__name__} trains on several tasks at once, and DENPlugin on one after the other"
        )
    refuse_distributed("DENPlugin")
    check_criterion(strategy, "DENPlugin")
    refuse_shared(strategy, "DENPlugin", plugin=plugin)
    refuse_shared(strategy, "DENPlugin", model=strategy.model, gone=False)
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
            raise ValueError(f"{name} must be one number or {layers}, one for each hidden layer, got {count}")
    if plugin.penalty_step == "proximal":
        inverse_preconditioner(strategy.optimizer, option="penalty_step")


def check_experience(strategy: Any, validation_stream: Sequence[Any] | None) -> None:
    """Refuse experiences on which a task's phases cannot run one after the other.

    Raises:
        ValueError: If it is empty or a part of an online stream, or its validation data are not there, empty, or of
            another task.
    """
    experience: Any = strategy.experience
    refuse_empty(strategy, "DENPlugin")
    if isinstance(experience, OnlineCLExperience):
        raise ValueError(
            "DENPlugin goes over the data of a task again and again (retraining, expansion, split), which an online "
            "stream does not allow: train on the experiences that it was split from"
        )
    if validation_stream is None:
        return
    number = experience.current_experience
    if number >= len(validation_stream):
        raise ValueError(
            f"validation_stream must have an experience for each that is trained on, got {len(validation_stream)}, and "
            f"this is experience {number}"
        )
    own = validation_stream[number]
    if len(own.dataset) == 0:
        raise ValueError(f"validation_stream: its experience {number} is empty")
    if experience_labels(own) != experience_labels(experience):
        raise ValueError(
            f"validation_stream: its experience {number} has the task labels {experience_labels(own)}, the one that is "
            f"trained on {experience_labels(experience)}"
        )
    if max(experience_classes(own)) > max(experience_classes(experience)):
        raise ValueError(f"validation_stream: its experience {number} has classes that the one trained on has not")


def loss_before_expansion(plugin: Any, strategy: Any) -> float:
    """Return what tau is compared with: the newest task's mean loss on its validation data, or on its training data.

    Raises:
        ValueError: It is NaN or infinite.
    """
    what, experience = "the experience", strategy.experience
    if plugin.validation_stream is not None:
        what, experience = "validation_stream", plugin.validation_stream[experience.current_experience]
    label = strategy.model.newest
    loss = mean_loss(strategy, label, experience.dataset.eval())
    if not math.isfinite(loss):
        raise ValueError(f"{what}: the loss of task {label} on it is {loss:g}; clean it, or lower the learning rate")
    return loss


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
