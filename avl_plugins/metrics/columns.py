"""How large the columns of a progressive network are, and what share of them the lateral connections take."""

from __future__ import annotations

from typing import Any, Literal

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name

from avl_plugins.metrics._plugins import position
from avl_plugins.progressive.network import ProgressiveNetwork
from avl_plugins.tasks.arguments import check_choice, check_flag

_NAMES = {
    "parameters": "ColumnParameters",
    "column_share": "ColumnLateralShare",
    "network_share": "NetworkLateralShare",
}


def column_metrics(
    *, parameters: bool = True, column_share: bool = True, network_share: bool = True
) -> list[PluginMetric]:
    """Make metrics of a progressive network's columns, logged at the end of each training experience.

    Rusu et al. (2016, appendix B) name the growth of the parameters, quadratic in the number of columns, as the
    method's limit: all of the quadratic part is lateral.

    Args:
        parameters: "progressive/ColumnParameters", the number of the newest column's, with its head and laterals.
        column_share: "progressive/ColumnLateralShare", the share of these that are lateral; 0 for the first column.
        network_share: "progressive/NetworkLateralShare", the lateral share of all columns' parameters together.

    Returns:
        The metrics asked for, to be passed to `EvaluationPlugin`. Each is one curve over all experiences.

    Raises:
        TypeError: An argument is not True or False.
        ValueError: In training, if the strategy's model is no `ProgressiveNetwork` and contains none, or several.
    """
    kinds: list[tuple[bool, Literal["parameters", "column_share", "network_share"]]] = [
        (parameters, "parameters"),
        (column_share, "column_share"),
        (network_share, "network_share"),
    ]
    for wanted, kind in kinds:
        check_flag(kind, wanted)
    return [ColumnSize(kind=kind) for wanted, kind in kinds if wanted]


class ColumnSize(PluginMetric[float | None]):
    """One number about the size of a progressive network's columns.

    Args:
        kind: "parameters", "column_share" or "network_share", as in `column_metrics`.

    Raises:
        ValueError: `kind` is none of these.
    """

    def __init__(self, *, kind: Literal["parameters", "column_share", "network_share"]) -> None:
        super().__init__()
        check_choice("kind", kind, tuple(_NAMES))
        self.kind = kind
        self.value: float | None = None

    def reset(self) -> None:
        """Forget the latest value."""
        self.value = None

    def result(self) -> float | None:
        """Return the latest value; None before the end of the first experience."""
        return self.value

    def before_training_exp(self, strategy: Any) -> None:
        """Say before the training that there are no columns to count."""
        find_progressive_network(strategy.model)

    def after_training_exp(self, strategy: Any) -> MetricValue:
        """Count the columns' parameters, and log the number."""
        network = find_progressive_network(strategy.model)
        columns = [network.parameters_of(label) for label in network.labels]
        if self.kind != "network_share":
            columns = columns[-1:]
        lateral = sum(column["lateral"] for column in columns)
        total = lateral + sum(column["column"] for column in columns)
        self.value = float(total) if self.kind == "parameters" else lateral / total
        name = get_metric_name(self, strategy, add_experience=False, add_task=False)
        return MetricValue(self, name, self.value, position(strategy))

    def __str__(self) -> str:
        return f"progressive/{_NAMES[self.kind]}"


def find_progressive_network(model: Any) -> ProgressiveNetwork:
    """Return the `ProgressiveNetwork` that a model is or contains; a ValueError says that there is not one."""
    found = [module for module in model.modules() if isinstance(module, ProgressiveNetwork)]
    if len(found) != 1:
        raise ValueError(
            f"the metrics of columns need a model with one ProgressiveNetwork in it, and {type(model).__name__} has "
            f"{len(found)}: pass model=ProgressiveNetwork(...), or leave these metrics out"
        )
    return found[0]
