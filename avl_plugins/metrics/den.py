"""What a dynamically expandable network does for each task: units selected, added, removed and split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from matplotlib.figure import Figure

from avl_plugins.den.plugin import DENPlugin
from avl_plugins.metrics._plugins import find_plugin

KINDS = ("selected", "added", "removed", "split")


def den_metrics(*, units: bool = True, figure: bool = True) -> list[PluginMetric]:
    """Make metrics of what `DENPlugin` did, logged after each experience.

    Args:
        units: "DEN/capacity", the paper's, "DEN/loss", which is compared with tau, and for each hidden layer l
            "DEN/units/layer<l>", "DEN/selected/layer<l>", "DEN/added/layer<l>" (those kept), "DEN/split/layer<l>" and
            "DEN/drift/layer<l>".
        figure: "DEN/growth", a figure of them over tasks.

    Returns:
        The metrics asked for, to be passed to `EvaluationPlugin`.

    Raises:
        ValueError: In training, if the strategy has no `DENPlugin`.
    """
    return [*([Units()] if units else []), *([Growth()] if figure else [])]


def growth_table(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return `DENPlugin.history` as rows, one a task and hidden layer.

    Returns:
        Rows with "task", "layer", "selected", "added" (those that stayed), "split", "drift" and "loss"; None for what
        was not done.
    """
    rows = []
    for entry in history:
        layers = max((len(entry[kind]) - (kind == "selected") for kind in ("selected", "added", "split")), default=0)
        for layer in range(max(layers, 0)):
            added = entry["added"][layer] - entry["removed"][layer] if entry["added"] else None
            rows.append(
                {
                    "task": entry["label"],
                    "layer": layer + 1,
                    "selected": entry["selected"][layer + 1] if entry["selected"] else None,
                    "added": added,
                    "split": entry["split"][layer] if entry["split"] else None,
                    "drift": entry["drift"][layer] if entry["drift"] else None,
                    "loss": entry.get("loss"),
                }
            )
    return rows


class _OfDEN(PluginMetric[Any]):
    """A metric of the latest task's growth."""

    def __init__(self) -> None:
        super().__init__()
        self.value: Any = None

    def reset(self) -> None:
        """Forget the latest value."""
        self.value = None

    def result(self) -> Any:
        """Return the latest value; None before the first experience has ended."""
        return self.value

    def before_training_exp(self, strategy: Any) -> None:
        """Say early that there is nothing to measure."""
        find_plugin(strategy, DENPlugin, "den_metrics")

    def _log(self, strategy: Any, name: str, value: Any) -> MetricValue:
        full = get_metric_name(name, strategy, add_experience=False, add_task=False)
        return MetricValue(self, full, value, strategy.clock.train_iterations)


class Units(_OfDEN):
    """Numbers of units; see `den_metrics`."""

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Log them."""
        history = find_plugin(strategy, DENPlugin, "den_metrics").history
        network = strategy.model
        self.value = {"DEN/capacity": network.capacity()}
        for number, layer in enumerate(network.hidden, start=1):
            self.value[f"DEN/units/layer{number}"] = float(layer.units)
        for row in growth_table(history[-1:]):
            for kind in ("selected", "added", "split", "drift"):
                if row[kind] is not None:
                    self.value[f"DEN/{kind}/layer{row['layer']}"] = float(row[kind])
            if row["loss"] is not None:
                self.value["DEN/loss"] = row["loss"]
        return [self._log(strategy, name, value) for name, value in self.value.items()]

    def __str__(self) -> str:
        return "DEN/units"


class Growth(_OfDEN):
    """A figure over tasks; see `den_metrics`."""

    def after_training_exp(self, strategy: Any) -> MetricValue | None:
        """Draw it, from the second task on."""
        rows = growth_table(find_plugin(strategy, DENPlugin, "den_metrics").history)
        if not rows:
            return None
        self.value = growth_figure(rows)
        return self._log(strategy, "DEN/growth", self.value)

    def __str__(self) -> str:
        return "DEN/growth"


def growth_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw units selected, added and split over tasks, one line a hidden layer; `rows` are those of `growth_table`."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 3), ("selected", "added", "split"), strict=True):
        for layer in sorted({row["layer"] for row in rows}):
            own = [row for row in rows if row["layer"] == layer and row[kind] is not None]
            axes.plot(range(2, 2 + len(own)), [row[kind] for row in own], "-o", ms=3, label=f"layer {layer}")
        axes.set(xlabel="task", title=f"units {kind}", ylim=(0, None))
    figure.axes[0].legend(fontsize="small")
    return figure
