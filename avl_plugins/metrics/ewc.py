"""Metrics of Elastic Weight Consolidation: penalty, Fisher mass by layer, Fisher overlap between tasks."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from avalanche.evaluation import GenericPluginMetric, PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from avalanche.evaluation.metrics import Mean
from matplotlib.figure import Figure
from torch import Tensor

from avl_plugins.ewc.overlap import fisher_overlap
from avl_plugins.ewc.plugin import EWCPlugin
from avl_plugins.metrics._plugins import find_plugin


def ewc_metrics(
    *, minibatch: bool = False, epoch: bool = False, experience: bool = False, overlap: bool = False
) -> list[PluginMetric]:
    """Make metrics for a strategy that has an `EWCPlugin`.

    Args:
        minibatch: the penalty's value at every training iteration.
        epoch: the penalty's mean over the iterations of every training epoch.
        experience: the sum of the Fisher over each layer after every task.
        overlap: a figure of the overlaps between all tasks' Fishers by layer, after every task from the second
            on. It keeps every task's Fisher in memory.

    Returns:
        The metrics asked for, to be passed to `EvaluationPlugin`.
    """
    metrics: list[PluginMetric] = []
    if minibatch:
        metrics.append(EWCPenalty(reset_at="iteration", emit_at="iteration"))
    if epoch:
        metrics.append(EWCPenalty(reset_at="epoch", emit_at="epoch"))
    if experience:
        metrics.append(FisherMass())
    if overlap:
        metrics.append(FisherOverlap())
    return metrics


class EWCPenalty(GenericPluginMetric[float, Mean]):
    """Mean of the penalty's value, lambda included, over training iterations.

    Args:
        reset_at: when the mean starts again, "iteration" or "epoch".
        emit_at: when it is logged, likewise.
    """

    def __init__(self, *, reset_at: Any, emit_at: Any):
        super().__init__(Mean(), reset_at=reset_at, emit_at=emit_at, mode="train")
        self.name = "EWCPenalty_MB" if emit_at == "iteration" else "EWCPenalty_Epoch"

    def update(self, strategy: Any) -> None:
        """Take in the current iteration's penalty."""
        self._metric.update(float(find_plugin(strategy, EWCPlugin, "ewc_metrics").last_penalty))

    def __str__(self) -> str:
        return self.name


class _AfterTask(PluginMetric[Any]):
    """A metric of tasks that have ended: in online streams most experiences end none."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = 0
        """How many had ended when it last looked."""

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
    """Sum of the latest task's importances over each layer; logged under "EWCFisherMass/<layer>"."""

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
        for name, values in importances.items():
            layer = name.rpartition(".")[0] or name
            self.masses[layer] = self.masses.get(layer, 0.0) + float(values.sum())
        x = strategy.clock.train_iterations
        return [
            MetricValue(self, get_metric_name(f"EWCFisherMass/{layer}", strategy), mass, x)
            for layer, mass in self.masses.items()
        ]

    def __str__(self) -> str:
        return "EWCFisherMass"


class FisherOverlap(_AfterTask):
    """Figure of `fisher_overlap` between the Fishers of all tasks so far, one matrix a layer.

    Parameters that not all tasks have in the same shape, heads for example, are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fishers: list[dict[str, Tensor]] = []

    def reset(self) -> None:
        """Forget all tasks."""
        self.fishers = []

    def result(self) -> Figure | None:
        """Draw the figure; None before the second task."""
        if len(self.fishers) < 2:
            return None
        matrices = self.matrices()
        figure = Figure(figsize=(2.4 * max(1, len(matrices)) + 0.8, 2.9), layout="constrained")
        panels = figure.subplots(1, max(1, len(matrices)), squeeze=False)[0]
        for panel, (layer, matrix) in zip(panels, matrices.items(), strict=False):
            image = panel.imshow(matrix, vmin=0, vmax=1)
            panel.set(title=layer or "(top level)", xlabel="task", xticks=range(len(matrix)), yticks=range(len(matrix)))
        panels[0].set(ylabel="task")
        if matrices:
            figure.colorbar(image, ax=list(panels), label="Fisher overlap")
        return figure

    def matrices(self) -> dict[str, list[list[float]]]:
        """Overlap of tasks i and j by layer; NaN where the Fisher of either task is zero everywhere."""
        first = self.fishers[0]
        shared = [n for n in first if all(n in f and f[n].shape == first[n].shape for f in self.fishers)]
        tasks = [{n: f[n] for n in shared} for f in self.fishers]
        overlaps = [[fisher_overlap(one, other) for other in tasks] for one in tasks]
        found = [o for row in overlaps for o in row if o]
        layers = [layer for layer in found[0] if all(layer in o for o in found)] if found else []
        return {layer: [[o.get(layer, math.nan) for o in row] for row in overlaps] for layer in layers}

    def after_task(self, strategy: Any, importances: dict[str, Tensor]) -> list[MetricValue] | None:
        """Keep the task's Fisher and log the figure."""
        self.fishers.append({n: f.detach().clone() for n, f in importances.items()})
        figure = self.result()
        if figure is None:
            return None
        name = get_metric_name(self, strategy, add_task=False)
        return [MetricValue(self, name, figure, strategy.clock.train_iterations)]

    def __str__(self) -> str:
        return "EWCFisherOverlap"
