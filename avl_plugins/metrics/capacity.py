"""How large the model is: parameters, those that are trained, and growth since the first experience."""

from __future__ import annotations

from typing import Any, Literal

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from torch import nn

from avl_plugins.metrics._plugins import position
from avl_plugins.tasks.arguments import check_choice, check_flag

_NAMES = {"total": "Parameters", "trainable": "TrainableParameters", "relative": "RelativeCapacity"}


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Return the number of scalars in the model's parameters, shared ones once; only those with gradients if asked."""
    check_flag("trainable", trainable)
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def capacity_metrics(*, total: bool = True, trainable: bool = True, relative: bool = True) -> list[PluginMetric]:
    """Make metrics of the model's size, logged at the end of each training experience, when plugins have had their say.

    Args:
        total: "capacity/Parameters", their number.
        trainable: "capacity/TrainableParameters", the number of those that require gradients.
        relative: "capacity/RelativeCapacity", their number divided by that at the end of the first experience; 1 for a
            model that does not grow.

    Returns:
        The metrics asked for, to be passed to `EvaluationPlugin`. Each is one curve over all experiences.

    Raises:
        TypeError: An argument is not True or False.
    """
    kinds: list[tuple[bool, Literal["total", "trainable", "relative"]]] = [
        (total, "total"),
        (trainable, "trainable"),
        (relative, "relative"),
    ]
    for wanted, kind in kinds:
        check_flag(kind, wanted)
    return [Capacity(kind=kind) for wanted, kind in kinds if wanted]


class Capacity(PluginMetric[float | None]):
    """One number about the model's size.

    Args:
        kind: "total", "trainable" or "relative", as in `capacity_metrics`.

    Raises:
        ValueError: `kind` is none of these.
    """

    def __init__(self, *, kind: Literal["total", "trainable", "relative"]) -> None:
        super().__init__()
        check_choice("kind", kind, tuple(_NAMES))
        self.kind = kind
        self.first: int | None = None
        self.value: float | None = None

    def reset(self) -> None:
        """Forget the first experience."""
        self.first = self.value = None

    def result(self) -> float | None:
        """Return the latest value; None before the end of the first experience."""
        return self.value

    def after_training_exp(self, strategy: Any) -> MetricValue:
        """Count the parameters, and log their number."""
        count = count_parameters(strategy.model, trainable=self.kind == "trainable")
        if self.first is None:
            self.first = count
        self.value = count / max(self.first, 1) if self.kind == "relative" else float(count)
        name = get_metric_name(self, strategy, add_experience=False, add_task=False)
        return MetricValue(self, name, self.value, position(strategy))

    def __str__(self) -> str:
        return f"capacity/{_NAMES[self.kind]}"
