"""What a generator replays: images, classes, losses, and how far it is from the real data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from avl_plugins.data.random_state import random_state_kept
from avl_plugins.data.tensors import dataset_tensors
from avl_plugins.dgr.frechet import frechet_distance, small_classifier
from avl_plugins.dgr.plugin import DGRPlugin
from avl_plugins.dgr.scholar import Scholar
from avl_plugins.metrics._plugins import find_plugin, position
from avl_plugins.metrics.pictures import Picture
from avl_plugins.tasks.arguments import check_callable, check_choice, check_count, check_flag
from avl_plugins.tasks.boundaries import current_task

log = logging.getLogger(__name__)

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
        images: "dgr/ReplayImages", a grid of 64 replayed inputs. Where these are no images there is none, and the log
            says so.
        classes: "dgr/ReplayShare/class<c>", the share of each class, and "dgr/ReplayImbalance", the largest share times
            their number (1 where all are alike).
        losses: "dgr/GeneratorLosses", a figure of the generator's losses over its iterations of this experience, and
            "dgr/GeneratorLoss/<name>", the mean of each over the last tenth of them.
        distance: "dgr/ReplayDistance", the Frechet distance of replayed to real inputs of all experiences so far, in
            the features of a small classifier trained on these (costs seconds; the method itself sees no past data).
            Like `classes`, it is left out where targets are values.
        shape: (C, H, W) of an image, C being 1 or 3, where inputs are vectors.
        classifier: inputs -> logits or labels, to tell the replayed classes; None: the scholar's own solver.
        samples: how many inputs classes and distance are measured on.

    Returns:
        The metrics asked for, to be passed to `EvaluationPlugin`.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: An argument is out of range; at the start of a training, the strategy has no `DGRPlugin`, or inputs
            do not have as many numbers as `shape`.
    """
    flags = {"images": images, "classes": classes, "losses": losses, "distance": distance}
    for name, wanted in flags.items():
        check_flag(name, wanted)
    check_callable("classifier", classifier, "inputs -> logits or labels", none="the scholar's own solver")
    check_count("samples", samples, low=2)
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
        """Refuse a strategy that has no `DGRPlugin`."""
        find_plugin(strategy, DGRPlugin, "replay_metrics")

    def after_training_exp(self, strategy: Any) -> Any:
        """Measure the scholar, if a task has ended and there is one."""
        plugin = find_plugin(strategy, DGRPlugin, "replay_metrics")
        scholar = plugin.scholar if plugin.parts == 0 else None
        return None if scholar is None else self.measure(strategy, plugin, scholar)

    def measure(self, strategy: Any, plugin: DGRPlugin, scholar: Scholar) -> MetricValue | list[MetricValue] | None:
        """Return the metric's values of a scholar."""
        raise NotImplementedError

    def _log(self, strategy: Any, value: Any, name: str | None = None) -> MetricValue:
        full = get_metric_name(name or self.name, strategy, add_experience=False, add_task=False)
        return MetricValue(self, full, value, position(strategy))

    def __str__(self) -> str:
        return self.name


class ReplayImages(_AfterScholar):
    """A grid of 64 replayed inputs; see `replay_metrics`."""

    name = "dgr/ReplayImages"

    def __init__(self, *, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.shape = None if shape is None else _image_shape(shape)
        self.told = False
        """Whether the log says that there are no images."""

    def before_training_exp(self, strategy: Any) -> None:
        """Refuse a shape that inputs do not have."""
        super().before_training_exp(strategy)
        if self.shape is not None:
            with random_state_kept():
                x = torch.as_tensor(strategy.experience.dataset[0][0])
            if x.numel() != prod(self.shape):
                raise ValueError(
                    f"shape must have as many numbers as the inputs, of the shape {tuple(x.shape)}, got {self.shape}"
                )

    def measure(self, strategy: Any, plugin: DGRPlugin, scholar: Scholar) -> MetricValue | None:
        """Draw a grid of replayed inputs, if they are images."""
        x = scholar.source(64, _generator())
        x = x if self.shape is None else x.reshape(len(x), *self.shape)
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            if not self.told:
                self.told = True
                log.warning("no ReplayImages of inputs of the shape %s: pass shape=(C, H, W)", tuple(x.shape[1:]))
            return None
        self.value = make_grid(x.float(), nrow=8, normalize=True, padding=1, pad_value=0.5)
        return self._log(strategy, Picture(self.value))


class ReplayClasses(_AfterScholar):
    """Shares of classes among replayed inputs; see `replay_metrics`."""

    name = "dgr/ReplayImbalance"

    def __init__(self, *, classifier: Callable[[Tensor], Tensor] | None = None, samples: int = 1000) -> None:
        super().__init__()
        self.classifier, self.samples = classifier, samples

    def measure(self, strategy: Any, plugin: DGRPlugin, scholar: Scholar) -> list[MetricValue]:
        """Count the classes of replayed inputs."""
        answers = scholar.sample(self.samples, _generator(), device=strategy.device)
        found: Any = answers.classes() if self.classifier is None else self.classifier(answers.x)
        if found is None or not plugin.classes:  # values have no classes, and maps more than one
            return []
        labels = found.argmax(1) if found.dim() == 2 else found
        self.value = {c: float((labels == c).float().mean()) for c in plugin.classes}
        shares = [self._log(strategy, share, f"dgr/ReplayShare/class{c}") for c, share in self.value.items()]
        return [*shares, self._log(strategy, max(self.value.values()) * len(self.value))]


class GeneratorLosses(_AfterScholar):
    """The generator's losses; see `replay_metrics`.

    They are logged when they are known, all at once: as points over iterations of the generator's own they would be
    ahead of or behind everything else, and Weights & Biases drops what is behind.
    """

    name = "dgr/GeneratorLosses"

    def measure(self, strategy: Any, plugin: DGRPlugin, scholar: Scholar) -> list[MetricValue]:
        """Log the generator's losses of this experience."""
        self.value = losses = plugin.generator_losses
        if not losses:
            return []
        logged = [self._log(strategy, Picture(_losses_figure(losses)))]
        for name, values in losses.items():
            last = values[-max(1, len(values) // 10) :]
            logged.append(self._log(strategy, sum(last) / len(last), f"dgr/GeneratorLoss/{name}"))
        return logged


class ReplayDistance(_AfterScholar):
    """Frechet distance of replayed to real inputs; see `replay_metrics`."""

    name = "dgr/ReplayDistance"

    def __init__(self, *, samples: int = 1000) -> None:
        super().__init__()
        self.samples = samples

    def measure(self, strategy: Any, plugin: DGRPlugin, scholar: Scholar) -> MetricValue | list[MetricValue]:
        """Train the small classifier, and measure the distance in its features."""
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


def _image_shape(shape: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise TypeError(f"shape must be (C, H, W), or None where inputs are images, got {shape!r}")
    for name, size in zip(("channels", "height", "width"), shape, strict=True):
        check_count(f"{name} of shape", size)
    check_choice("channels of shape", int(shape[0]), (1, 3))
    return tuple(shape)


def _losses_figure(losses: dict[str, list[float]]) -> Figure:
    """Draw losses over iterations, each in a panel of its own, by at most 500 points."""
    figure = Figure(figsize=(3 * len(losses) + 0.5, 2.5), layout="constrained")
    for panel, (name, values) in zip(figure.subplots(1, len(losses), squeeze=False)[0], losses.items(), strict=True):
        step = max(1, len(values) // 500)
        panel.plot(range(0, len(values), step), values[::step], lw=1)
        panel.set(title=name, xlabel="iteration")
    return figure
