"""Sensitivity of a progressive network's new task to its columns, logged as it grows."""

from __future__ import annotations

from typing import Any, Literal

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor

from avl_plugins.data.loading import batches_in_memory
from avl_plugins.metrics._plugins import position
from avl_plugins.metrics.columns import find_progressive_network
from avl_plugins.metrics.pictures import Picture
from avl_plugins.progressive.activations import stages_of
from avl_plugins.progressive.figure import sensitivity_figure
from avl_plugins.progressive.sensitivity import FisherSensitivity, Normalise, average_fisher_sensitivity
from avl_plugins.tasks.arguments import check_choice, check_count, check_flag
from avl_plugins.tasks.labels import experience_labels


def sensitivity_metrics(
    *,
    figure: bool = True,
    columns: bool = True,
    layers: bool = False,
    normalise: Normalise = "layer",
    labels: Literal["exact", "sampled"] = "exact",
    max_samples: int | None = 1000,
    batch_size: int = 256,
) -> list[PluginMetric]:
    """Make the metric of the Average Fisher Sensitivity of each new task, from the second column on.

    It is computed on the task's training data, without train-time augmentation, after training on it.

    Args:
        figure: "progressive/AFS", the figure of `sensitivity_figure`.
        columns: "progressive/AFS/column<j>", each column's share, averaged over depths.
        layers: "progressive/AFS/depth<i>/column<j>", AFS(i, j).
        normalise: as for `average_fisher_sensitivity`.
        labels: as for `average_fisher_sensitivity`.
        max_samples: use a uniformly random subset of this many samples; None for all.
        batch_size: samples per pass.

    Returns:
        The metric, in a list, to be passed to `EvaluationPlugin`; an empty one if nothing is asked for.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: An argument is out of range; at the start of a training, the model does not contain one
            `ProgressiveNetwork`, or columns differ in width with normalise="map".
    """
    for name, wanted in (("figure", figure), ("columns", columns), ("layers", layers)):
        check_flag(name, wanted)
    if not (figure or columns or layers):
        return []
    return [
        ColumnSensitivity(
            figure=figure,
            columns=columns,
            layers=layers,
            normalise=normalise,
            labels=labels,
            max_samples=max_samples,
            batch_size=batch_size,
        )
    ]


class ColumnSensitivity(PluginMetric[FisherSensitivity | None]):
    """Average Fisher Sensitivity of each new task; see `sensitivity_metrics` for the arguments."""

    def __init__(
        self,
        *,
        figure: bool = True,
        columns: bool = True,
        layers: bool = False,
        normalise: Normalise = "layer",
        labels: Literal["exact", "sampled"] = "exact",
        max_samples: int | None = 1000,
        batch_size: int = 256,
    ) -> None:
        super().__init__()
        check_choice("normalise", normalise, ("layer", "map"))
        check_choice("labels", labels, ("exact", "sampled"))
        check_count("max_samples", max_samples, none="all")
        check_count("batch_size", batch_size)
        self.figure, self.columns, self.layers = figure, columns, layers
        self.normalise, self.labels = normalise, labels
        self.max_samples, self.batch_size = max_samples, batch_size
        self.reset()

    def reset(self) -> None:
        """Forget the latest task."""
        self.label: int | None = None
        self.fisher: dict[tuple[int, int], Tensor] = {}
        self.means: dict[tuple[int, int], Tensor] = {}

    def result(self) -> FisherSensitivity | None:
        """Return the latest task's sensitivities; None before there are two columns."""
        if self.label is None:
            return None
        normalise: Any = self.normalise
        return FisherSensitivity(self.label, normalise, self.fisher, self.means)

    def before_training_exp(self, strategy: Any) -> None:
        """Say before the training that there are no columns, or maps of theirs that cannot be compared."""
        network = find_progressive_network(strategy.model)
        if self.normalise == "map":
            stages = stages_of(network, network.labels[-1])
            nothing = {place: torch.zeros(stage.maps) for place, stage in stages.items()}
            FisherSensitivity(network.labels[-1], "map", nothing, nothing)  # which compares the widths

    def after_training_exp(self, strategy: Any) -> list[MetricValue] | None:
        """Compute the sensitivity to the columns, and log it."""
        network = find_progressive_network(strategy.model)
        (label,) = experience_labels(strategy.experience)
        if network.labels.index(label) == 0:
            return None
        dataset = strategy.experience.dataset
        if self.max_samples is not None and self.max_samples < len(dataset):
            generator = torch.Generator().manual_seed(torch.initial_seed())
            rows = torch.randperm(len(dataset), generator=generator)[: self.max_samples].sort().values
            dataset = dataset.subset(rows.tolist())
        labels: Any = self.labels
        normalise: Any = self.normalise
        found = average_fisher_sensitivity(
            network, batches_in_memory(dataset, self.batch_size), label, labels=labels, normalise=normalise
        )
        self.label, self.fisher, self.means = label, dict(found.fisher), dict(found.means)
        return self._values(strategy, found)

    def _values(self, strategy: Any, found: FisherSensitivity) -> list[MetricValue]:
        values: dict[str, float | Picture] = {}
        if self.columns:
            values |= {f"{self}/column{j}": share for j, share in enumerate(found.columns.tolist())}
        if self.layers:
            for i, row in enumerate(found.layers.tolist()):
                values |= {f"{self}/depth{i}/column{j}": value for j, value in enumerate(row)}
        if self.figure:
            network = find_progressive_network(strategy.model)
            names = [f"task {label}" for label in network.labels[: found.shape[1]]]
            values[str(self)] = Picture(sensitivity_figure(found, columns=names))
        x = position(strategy)
        return [MetricValue(self, get_metric_name(name, strategy), value, x) for name, value in values.items()]

    def __str__(self) -> str:
        return "progressive/AFS"
