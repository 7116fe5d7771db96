"""Metrics of Elastic Weight Consolidation: penalty, Fisher mass by layer, Fisher overlap between tasks."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from avl_plugins.ewc.overlap import fisher_overlap
from avl_plugins.ewc.plugin import EWCPlugin
from avl_plugins.metrics._layers import layer_of, readable_layers
from avl_plugins.metrics._plugins import find_plugin, position
from avl_plugins.metrics.pictures import Picture
from avl_plugins.tasks.arguments import check_choice, check_flag


def ewc_metrics(
    *, minibatch: bool = False, epoch: bool = False, experience: bool = False, overlap: bool = False
) -> list[PluginMetric]:
    """Make metrics for a strategy that has an `EWCPlugin`.

    Args:
        minibatch: "ewc/Penalty_MB", the penalty's value, lambda included, at every training iteration.
        epoch: "ewc/Penalty_Epoch", its mean over the iterations of every training epoch.
        experience: "ewc/FisherMass/<layer>", the sum of the Fisher over each layer after every task. A layer is called
            by its module's name; the numbers of an `nn.Sequential` become "layer 1", "layer 2" and so on.
        overlap: "ewc/FisherOverlap", a figure of the overlaps between all tasks' Fishers by layer, after every task
            from the second on. It keeps every task's Fisher in memory.

    Returns:
        The metrics asked for, to be passed to `EvaluationPlugin`.

    Raises:
        TypeError: An argument is not True or False.
        ValueError: In training, if the strategy has no `EWCPlugin`.
    """
    flags = {"minibatch": minibatch, "epoch": epoch, "experience": experience, "overlap": overlap}
    for name, wanted in flags.items():
        check_flag(name, wanted)
    metrics: list[PluginMetric] = []
    if minibatch:
        metrics.append(EWCPenalty(emit_at="iteration"))
    if epoch:
        metrics.append(EWCPenalty(emit_at="epoch"))
    if experience:
        metrics.append(FisherMass())
    if overlap:
        metrics.append(FisherOverlap())
    return metrics


class EWCPenalty(PluginMetric[float]):
    """The penalty's value, lambda included, in training; see `ewc_metrics`.

    Args:
        emit_at: when it is logged: after each "iteration", or after each "epoch", the mean over its iterations.

    Raises:
        ValueError: `emit_at` is neither.
    """

    def __init__(self, *, emit_at: Literal["iteration", "epoch"]) -> None:
        super().__init__()
        check_choice("emit_at", emit_at, ("iteration", "epoch"))
        self.emit_at = emit_at
        self.reset()

    def reset(self) -> None:
        """Begin a new mean."""
        self.total, self.count = 0.0, 0

    def result(self) -> float:
        """Return the mean; 0 before the first iteration."""
        return self.total / max(self.count, 1)

    def before_training_exp(self, strategy: Any) -> None:
        """Say early that there is nothing to measure."""
        find_plugin(strategy, EWCPlugin, "ewc_metrics")

    def before_training_epoch(self, strategy: Any) -> None:
        """Begin the epoch's mean."""
        self.reset()

    def after_training_iteration(self, strategy: Any) -> MetricValue | None:
        """Take in the iteration's penalty, and log it where that is asked for."""
        if self.emit_at == "iteration":
            self.reset()
        self.total += float(find_plugin(strategy, EWCPlugin, "ewc_metrics").last_penalty)
        self.count += 1
        return self._value(strategy) if self.emit_at == "iteration" else None

    def after_training_epoch(self, strategy: Any) -> MetricValue | None:
        """Log the epoch's mean where that is asked for."""
        return self._value(strategy) if self.emit_at == "epoch" else None

    def _value(self, strategy: Any) -> MetricValue:
        return MetricValue(self, get_metric_name(self, strategy), self.result(), position(strategy))

    def __str__(self) -> str:
        return "ewc/Penalty_MB" if self.emit_at == "iteration" else "ewc/Penalty_Epoch"


class _AfterTask(PluginMetric[Any]):
    """A metric of tasks that have ended: in online streams most experiences end none."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = 0
        """How many had ended when it last looked."""

    def before_training_exp(self, strategy: Any) -> None:
        """Say early that there is nothing to measure."""
        find_plugin(strategy, EWCPlugin, "ewc_metrics")

    def after_training_exp(self, strategy: Any) -> list[MetricValue] | None:
        """Log the task that has ended, if any; the plugin has its Fisher by now, as metrics come after plugins."""
        plugin = find_plugin(strategy, EWCPlugin, "ewc_metrics")
        if plugin.tasks == self.tasks:
            return None
        self.tasks = plugin.tasks
        return self.after_task(strategy, plugin.importances)

    @abstractmethod
    def after_task(self, strategy: Any, importances: dict[str, Tensor]) -> list[MetricValue] | None:
        """Take in the importances of a task that has ended, and return what to log."""


class FisherMass(_AfterTask):
    """Sum of the latest task's importances over each layer; see `ewc_metrics`."""

    def __init__(self) -> None:
        super().__init__()
        self.masses: dict[str, float] = {}

    def reset(self) -> None:
        """Forget the latest task."""
        self.masses = {}

    def result(self) -> dict[str, float]:
        """Return the mass by layer."""
        return self.masses

    def after_task(self, strategy: Any, importances: dict[str, Tensor]) -> list[MetricValue]:
        """Log the masses."""
        self.reset()
        layers = readable_layers(importances)
        for name, values in importances.items():
            layer = layers[layer_of(name)]
            self.masses[layer] = self.masses.get(layer, 0.0) + float(values.sum())
        x = position(strategy)
        return [
            MetricValue(self, get_metric_name(f"{self}/{layer}", strategy), mass, x)
            for layer, mass in self.masses.items()
        ]

    def __str__(self) -> str:
        return "ewc/FisherMass"


class FisherOverlap(_AfterTask):
    """Figure of `fisher_overlap` between the Fishers of all tasks so far, one matrix a layer.

    Parameters that not all tasks have in the same shape, heads for example, are left out. Only what a new task adds to
    the matrices is computed, unless there are more parameters to be left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget all tasks."""
        self.fishers: list[dict[str, Tensor]] = []
        self.shared: list[str] = []
        """Names of the parameters that all tasks have in the same shape."""
        self.rows: list[list[dict[str, float]]] = []
        """For each task, the overlaps by layer with the tasks up to it, itself included."""

    def result(self) -> Figure | None:
        """Draw the figure; None before the second task."""
        if len(self.fishers) < 2:
            return None
        matrices, names = self.matrices(), readable_layers(self.fishers[-1])
        figure = Figure(figsize=(2.4 * max(1, len(matrices)) + 0.8, 2.9), layout="constrained")
        panels = figure.subplots(1, max(1, len(matrices)), squeeze=False)[0]
        for panel, (layer, matrix) in zip(panels, matrices.items(), strict=False):
            image = panel.imshow(matrix, vmin=0, vmax=1)
            panel.set(title=names.get(layer, "(top level)"), xlabel="task")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set(ylabel="task")
        if matrices:
            figure.colorbar(image, ax=list(panels), label="Fisher overlap")
        return figure

    def matrices(self) -> dict[str, list[list[float]]]:
        """Overlap of tasks i and j by layer; NaN where the Fisher of either is zero everywhere."""
        found = [one for row in self.rows for one in row if one]
        layers = [layer for layer in found[0] if all(layer in one for one in found)] if found else []
        tasks = range(len(self.rows))
        return {
            layer: [[self.rows[max(i, j)][min(i, j)].get(layer, math.nan) for j in tasks] for i in tasks]
            for layer in layers
        }

    def after_task(self, strategy: Any, importances: dict[str, Tensor]) -> list[MetricValue] | None:
        """Keep the task's Fisher, and log the figure."""
        self.add(importances)
        figure = self.result()
        if figure is None:
            return None
        name = get_metric_name(self, strategy, add_task=False)
        return [MetricValue(self, name, Picture(figure), position(strategy))]

    def add(self, importances: dict[str, Tensor]) -> None:
        """Take in the Fisher of another task."""
        self.fishers.append({name: values.detach().clone() for name, values in importances.items()})
        first, before = self.fishers[0], self.shared
        self.shared = [n for n in first if all(n in f and f[n].shape == first[n].shape for f in self.fishers)]
        if self.shared != before:
            self.rows = []
        for number in range(len(self.rows), len(self.fishers)):
            self.rows.append([self._overlap(number, other) for other in range(number + 1)])

    def _overlap(self, one: int, other: int) -> dict[str, float]:
        first, second = ({name: self.fishers[task][name] for name in self.shared} for task in (one, other))
        return fisher_overlap(first, second)

    def __str__(self) -> str:
        return "ewc/FisherOverlap"
