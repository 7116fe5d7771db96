"""What a dynamically expandable network does for each task: units selected, added, removed and split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from avl_plugins.den.plugin import DENPlugin
from avl_plugins.metrics._plugins import find_plugin, position
from avl_plugins.metrics.pictures import Picture
from avl_plugins.tasks.arguments import check_flag

KINDS = ("selected", "added", "removed", "split")


def den_metrics(*, units: bool = True, figure: bool = True) -> list[PluginMetric]:
    """Make metrics of what `DENPlugin` did, logged after each experience.

    Args:
        units: "den/capacity", the paper's, "den/loss", "den/loss_threshold", tau, which it is compared with, and for
            each hidden layer, "layer 1" and so on, "den/units/<layer>", "den/selected/<layer>", "den/added/<layer>"
            (those kept), "den/removed/<layer>", "den/split/<layer>" and "den/drift/<layer>".
        figure: "den/growth", a figure of them over tasks.

    Returns:
        The metrics asked for, to be passed to `EvaluationPlugin`.

    Raises:
        TypeError: An argument is not True or False.
        ValueError: In training, if the strategy has no `DENPlugin`.
    """
    check_flag("units", units)
    check_flag("figure", figure)
    return [*([Units()] if units else []), *([Growth()] if figure else [])]


def growth_table(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return `DENPlugin.history` as rows, one a task and hidden layer.

    Returns:
        Rows with "number" (of the task, from 1), "task" (its label), "layer", "selected", "added" (those that stayed),
        "removed", "split", "drift" and "loss"; None for what was not done.
    """
    rows = []
    for number, entry in enumerate(history, start=1):
        layers = max((len(entry[kind]) - (kind == "selected") for kind in ("selected", "added", "split")), default=0)
        for layer in range(max(layers, 0)):
            added = entry["added"][layer] - entry["removed"][layer] if entry["added"] else None
            rows.append(
                {
                    "number": number,
                    "task": entry["label"],
                    "layer": layer + 1,
                    "selected": entry["selected"][layer + 1] if entry["selected"] else None,
                    "added": added,
                    "removed": entry["removed"][layer] if entry["removed"] else None,
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
        return MetricValue(self, full, value, position(strategy))


class Units(_OfDEN):
    """Numbers of units; see `den_metrics`."""

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Log the numbers of units."""
        plugin = find_plugin(strategy, DENPlugin, "den_metrics")
        network = strategy.model
        self.value = {"den/capacity": network.capacity()}
        for number, layer in enumerate(network.hidden, start=1):
            self.value[f"den/units/layer {number}"] = float(layer.units)
        for row in growth_table(plugin.history[-1:]):
            for kind in (*KINDS, "drift"):
                if row[kind] is not None:
                    self.value[f"den/{kind}/layer {row['layer']}"] = float(row[kind])
            if row["loss"] is not None:
                self.value |= {"den/loss": row["loss"], "den/loss_threshold": plugin.loss_threshold}
        return [self._log(strategy, name, value) for name, value in self.value.items()]

    def __str__(self) -> str:
        return "den/units"


class Growth(_OfDEN):
    """A figure over tasks; see `den_metrics`."""

    def after_training_exp(self, strategy: Any) -> MetricValue | None:
        """Draw the growth, from the second task on."""
        plugin = find_plugin(strategy, DENPlugin, "den_metrics")
        rows = growth_table(plugin.history)
        if not rows:
            return None
        self.value = growth_figure(rows, loss_threshold=plugin.loss_threshold)
        return self._log(strategy, str(self), Picture(self.value))

    def __str__(self) -> str:
        return "den/growth"


def growth_figure(rows: Sequence[Mapping[str, Any]], *, loss_threshold: float | None = None) -> Figure:
    """Draw units selected, added, removed and split, one line a hidden layer, and the loss before expansion.

    Args:
        rows: those of `growth_table`.
        loss_threshold: tau, drawn beside the loss.
    """
    figure = Figure(figsize=(13, 2.8), layout="constrained")
    *panels, losses = figure.subplots(1, len(KINDS) + 1)
    for axes, kind in zip(panels, KINDS, strict=True):
        for layer in sorted({row["layer"] for row in rows}):
            own = [row for row in rows if row["layer"] == layer and row[kind] is not None]
            x, y = [row["number"] for row in own], [row[kind] for row in own]
            axes.plot(x, y, "-o", ms=3, label=f"layer {layer}")
        axes.set(title=f"units {kind}", ylim=(0, max(1.0, axes.get_ylim()[1])))
    loss = {row["number"]: row["loss"] for row in rows if row["loss"] is not None}
    losses.plot(list(loss), list(loss.values()), "-o", ms=3)
    if loss_threshold is not None:
        losses.axhline(loss_threshold, color="0.5", ls="--")
    losses.set(title="loss, tau dashed", ylim=(0, None))
    for axes in figure.axes:
        axes.set_xlabel("task")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].legend(fontsize="small")
    return figure
