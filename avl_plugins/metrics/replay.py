"""What a generator replays: images, classes, losses, and how far it is from the real data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue, TensorImage
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor
from torchvision.utils import make_grid

from avl_plugins.data.tensors import dataset_tensors
from avl_plugins.dgr.frechet import frechet_distance, small_classifier
from avl_plugins.dgr.plugin import DGRPlugin
from avl_plugins.dgr.scholar import Scholar
from avl_plugins.metrics._plugins import find_plugin
from avl_plugins.tasks.boundaries import current_task

SEED = 0
"""Of the samples that are measured: a generator of their own, so that a run is the same with and without metrics."""


def replay_metrics(
    *,
    images: bool = True,
    classes: bool = True,
    losses: bool = True,
    distance: bool = False,
    shape: Sequence[int] | None = None,
    classifier: Callable[[Tensor], Tensor] | None = None,
    samples: int = 1000,
) -> list[PluginMetric]:
    """Make metrics of what a `DGRPlugin` replays, logged after each experience, when its scholar has been made.

    Args:
        images: "ReplayImages", a grid of 64 replayed inputs.
        classes: "ReplayShare/class<c>", the share of each class, and "ReplayImbalance", the largest share times their
            number (1 where all are alike).
        losses: "GeneratorLoss/<name>", the generator's losses over its iterations, which are their x.
        distance: "ReplayDistance", the Frechet distance of replayed to real inputs of all experiences so far, in the
            features of a small classifier trained on these (costs seconds; the method itself sees no past data).
            Like `classes`, it is left out where targets are values.
        shape: (C, H, W) of an image, where inputs are vectors.
        classifier: Inputs -> logits or labels, to tell the replayed classes; None: the scholar's own solver.
        samples: How many inputs classes and distance are measured on.

    Returns:
        The metrics asked for, to be passed to `EvaluationPlugin`.

    Raises:
        ValueError: If `samples` is below 2; in training, if the strategy has no `DGRPlugin`, or inputs do not have
            an image's shape and `shape` is not given.
    """
    if samples < 2:
        raise ValueError(f"samples: expected at least 2, got {samples}")
    metrics: list[PluginMetric] = []
    if images:
        metrics.append(ReplayImages(shape=shape))
    if classes:
        metrics.append(ReplayClasses(classifier=classifier, samples=samples))
    if losses:
        metrics.append(GeneratorLosses())
    if distance:
        metrics.append(ReplayDistance(samples=samples))
    return metrics


class _AfterScholar(PluginMetric[Any]):
    """A metric of the scholar, taken when an experience has ended."""

    name = ""

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
        find_plugin(strategy, DGRPlugin, "replay_metrics")

    def after_training_exp(self, strategy: Any) -> Any:
        """Measure, where a task has ended and there is a scholar."""
        plugin = find_plugin(strategy, DGRPlugin, "replay_metrics")
        scholar = plugin.scholar if plugin.parts == 0 else None
        return None if scholar is None else self.measure(strategy, plugin, scholar)

    def measure(self, strategy: Any, plugin: DGRPlugin, scholar: Scholar) -> MetricValue | list[MetricValue]:
        """Return the metric's values."""
        raise NotImplementedError

    def _log(self, strategy: Any, value: Any, name: str | None = None, x: int | None = None) -> MetricValue:
        full = get_metric_name(name or self.name, strategy, add_experience=False, add_task=False)
        return MetricValue(self, full, value, strategy.clock.train_iterations if x is None else x)

    def __str__(self) -> str:
        return self.name


class ReplayImages(_AfterScholar):
    """A grid of 64 replayed inputs; see `replay_metrics`."""

    name = "ReplayImages"

    def __init__(self, *, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.shape = None if shape is None else tuple(shape)

    def measure(self, strategy: Any, plugin: DGRPlugin, scholar: Scholar) -> MetricValue:
        """Draw the grid."""
        x = scholar.source(64, _generator())
        x = x if self.shape is None else x.reshape(len(x), *self.shape)
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"shape: replayed inputs have the shape {tuple(x.shape[1:])}; pass an image's (C, H, W)")
        self.value = make_grid(x.float(), nrow=8, normalize=True, padding=1, pad_value=0.5)
        return self._log(strategy, TensorImage(self.value))


class ReplayClasses(_AfterScholar):
    """Shares of classes among replayed inputs; see `replay_metrics`."""

    name = "ReplayImbalance"

    def __init__(self, *, classifier: Callable[[Tensor], Tensor] | None = None, samples: int = 1000) -> None:
        super().__init__()
        self.classifier, self.samples = classifier, samples

    def measure(self, strategy: Any, plugin: DGRPlugin, scholar: Scholar) -> list[MetricValue]:
        """Count."""
        answers = scholar.sample(self.samples, _generator(), device=strategy.device)
        found: Any = answers.classes() if self.classifier is None else self.classifier(answers.x)
        if found is None or not plugin.classes:  # values have no classes, and maps more than one
            return []
        labels = found.argmax(1) if found.dim() == 2 else found
        self.value = {c: float((labels == c).float().mean()) for c in plugin.classes}
        shares = [self._log(strategy, share, f"ReplayShare/class{c}") for c, share in self.value.items()]
        return [*shares, self._log(strategy, max(self.value.values()) * len(self.value))]


class GeneratorLosses(_AfterScholar):
    """The generator's losses over its iterations, at most 500 points an experience; see `replay_metrics`."""

    name = "GeneratorLoss"

    def __init__(self) -> None:
        super().__init__()
        self.iterations = 0

    def reset(self) -> None:
        """Forget the iterations so far."""
        super().reset()
        self.iterations = 0

    def measure(self, strategy: Any, plugin: DGRPlugin, scholar: Scholar) -> list[MetricValue]:
        """Log the losses of this experience."""
        self.value = plugin.generator_losses
        logged, length = [], 0
        for name, values in self.value.items():
            length = max(length, len(values))
            step = max(1, len(values) // 500)
            logged += [
                self._log(strategy, values[i], f"GeneratorLoss/{name}", x=self.iterations + i)
                for i in range(0, len(values), step)
            ]
        self.iterations += length
        return logged


class ReplayDistance(_AfterScholar):
    """Frechet distance of replayed to real inputs; see `replay_metrics`."""

    name = "ReplayDistance"

    def __init__(self, *, samples: int = 1000) -> None:
        super().__init__()
        self.samples = samples

    def measure(self, strategy: Any, plugin: DGRPlugin, scholar: Scholar) -> MetricValue | list[MetricValue]:
        """Train the classifier, and measure."""
        last = current_task(strategy).experiences[-1]
        stream = last.origin_stream[: last.current_experience + 1]
        columns = [dataset_tensors(experience.dataset.eval()) for experience in stream]
        if not plugin.classes or any(c[1].dim() > 1 for c in columns):  # the classifier tells classes
            return []
        # Classes of different tasks are told apart, as labels may count from zero in each.
        several = len({label for e in stream for label in getattr(e, "task_labels", ())}) > 1
        width = 1 + max(int(c[1].max()) for c in columns)
        x = torch.cat([c[0] for c in columns])
        y = torch.cat([c[1].long() + (width * k if several else 0) for k, c in enumerate(columns)])
        features = small_classifier(x, y)
        rows = torch.randperm(len(x), generator=_generator())[: self.samples]
        self.value = frechet_distance(features(x[rows]), features(scholar.source(self.samples, _generator()).cpu()))
        return self._log(strategy, self.value)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)
