"""Returns, scores, speed and pictures of reinforcement learning, as Avalanche's evaluator logs them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from PIL import Image
from torch import Tensor

from avl_plugins.tasks.arguments import check_count, check_flag, check_kind, check_number

__all__ = ["normalised_score", "return_metrics", "rollout_metrics"]

log = logging.getLogger(__name__)


def normalised_score(score: float, reference: tuple[float, float], *, clip: bool = True) -> float:
    """Return (score - low) / (high - low) for reference = (low, high), and 1 where it is more, unless `clip` is False.

    With a random player's and a person's score it is the score of Kirkpatrick et al. 2017 (arXiv:1612.00796, sec. 2.2),
    clipped above and not below.

    Raises:
        TypeError: a number is none.
        ValueError: a number is not finite, or high is not above low.
    """
    check_number("score", score)
    check_flag("clip", clip)
    low, high = _checked_reference("reference", reference)
    value = (float(score) - low) / (high - low)
    return min(value, 1.0) if clip else value


def return_metrics(
    *,
    returns: bool = True,
    lengths: bool = True,
    speed: bool = True,
    references: Mapping[str, tuple[float, float]] | None = None,
) -> list[PluginMetric]:
    """Make metrics of episodes. x is the number of agent steps taken in training.

    Args:
        returns: "Return", the mean over the episodes that ended in a training epoch, by task, and over those of an
            evaluation, by experience. It is the sum of rewards as the environment gives them.
        lengths: "EpisodeLength", the same of agent steps.
        speed: "StepsPerSecond", agent steps a second of a training epoch, all told.
        references: by the task's name a low and a high return, a random player's and a person's for example.
            "NormalisedReturn" of each experience of an evaluation is then logged (see `normalised_score`), and the sum
            over the stream, "TotalScore": the score of Kirkpatrick et al. 2017, fig. 3. Where a task that is trained
            has none, a warning in the log says so.

    Returns:
        The metrics asked for, to be passed to `EvaluationPlugin`.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a reference is not higher than its low value. In an evaluation, a task has none; nothing of it has
            been played then.
    """
    for name, wanted in (("returns", returns), ("lengths", lengths), ("speed", speed)):
        check_flag(name, wanted)
    metrics: list[PluginMetric] = []
    if returns:
        metrics.append(EpisodeMean("Return", "total"))
    if lengths:
        metrics.append(EpisodeMean("EpisodeLength", "length"))
    if speed:
        metrics.append(StepsPerSecond())
    if references is not None:
        metrics.append(TotalScore(references))
    return metrics


def _checked_reference(name: str, reference: Any) -> tuple[float, float]:
    """Return (low, high), or refuse it."""
    if not isinstance(reference, tuple | list) or len(reference) != 2:
        raise TypeError(f"{name} must be a pair (low, high), got {reference!r}")
    low, high = reference
    check_number(f"low of {name}", low)
    check_number(f"high of {name}", high)
    if not high > low:
        raise ValueError(f"{name} must be (low, high) with high > low, got {(low, high)}")
    return float(low), float(high)


class EpisodeMean(PluginMetric[dict[int, float]]):
    """Mean of an attribute of episodes; see `return_metrics`.

    Args:
        name: of the metric.
        attribute: "total" or "length".

    Attributes:
        curves: learning curve by task label: points (agent steps in the task, mean of the epoch), where any ended.
        evaluated: mean of the latest evaluation by task label.
    """

    def __init__(self, name: str, attribute: str) -> None:
        super().__init__()
        self.name, self.attribute = name, attribute
        self.reset()

    def reset(self) -> None:
        """Forget curves and evaluations."""
        self.curves: dict[int, list[tuple[int, float]]] = {}
        self.evaluated: dict[int, float] = {}
        self.steps: dict[int, int] = {}
        self.started = 0

    def result(self) -> dict[int, float]:
        """Return the means of the latest evaluation by task label."""
        return self.evaluated

    def before_training_epoch(self, strategy: Any) -> None:
        """Begin to count."""
        self.started = strategy.steps

    def after_training_epoch(self, strategy: Any) -> MetricValue | None:
        """Log the mean over the epoch, where an episode has ended in it."""
        label = strategy.experience.task_label
        self.steps[label] = self.steps.get(label, 0) + strategy.steps - self.started
        if not strategy.episodes:
            return None
        mean = self._mean(strategy)
        self.curves.setdefault(label, []).append((self.steps[label], mean))
        return MetricValue(self, get_metric_name(self, strategy), mean, strategy.steps)

    def after_eval_exp(self, strategy: Any) -> MetricValue:
        """Log the mean over the evaluation."""
        mean = self.evaluated[strategy.experience.task_label] = self._mean(strategy)
        return MetricValue(self, get_metric_name(self, strategy, add_experience=True), mean, strategy.steps)

    def _mean(self, strategy: Any) -> float:
        return sum(getattr(episode, self.attribute) for episode in strategy.episodes) / len(strategy.episodes)

    def __str__(self) -> str:
        return self.name


class StepsPerSecond(PluginMetric[float | None]):
    """Agent steps a second of the latest training epoch: environments, acting and learning."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget the latest epoch."""
        self.value: float | None = None
        self.started: tuple[float, int] | None = None

    def result(self) -> float | None:
        """Return the latest epoch's."""
        return self.value

    def before_training_epoch(self, strategy: Any) -> None:
        """Start the clock."""
        self.started = (perf_counter(), strategy.steps)

    def after_training_epoch(self, strategy: Any) -> MetricValue | None:
        """Log the epoch's speed."""
        if self.started is None:
            return None
        seconds, steps = perf_counter() - self.started[0], strategy.steps - self.started[1]
        self.value = steps / max(seconds, 1e-9)
        self.started = None
        return MetricValue(self, get_metric_name(self, strategy, add_task=False), self.value, strategy.steps)

    def __str__(self) -> str:
        return "StepsPerSecond"


class TotalScore(PluginMetric[float | None]):
    """Normalised returns of an evaluation and their sum; see `return_metrics`.

    Attributes:
        scores: normalised return of the latest evaluation by the task's name.
    """

    def __init__(self, references: Mapping[str, tuple[float, float]]) -> None:
        super().__init__()
        check_kind("references", references, Mapping, "a dict of (low, high) by the task's name")
        self.references = {
            name: _checked_reference(f"references[{name!r}]", reference) for name, reference in references.items()
        }
        self.reset()

    def reset(self) -> None:
        """Forget the latest evaluation."""
        self.scores: dict[str, float] = {}

    def result(self) -> float | None:
        """Return the sum over the latest evaluation."""
        return sum(self.scores.values()) if self.scores else None

    def before_training_exp(self, strategy: Any) -> None:
        """Say of a task that is trained if it cannot be scored in an evaluation."""
        if lacking := self._lacking(strategy.experience.name):
            log.warning("%s: an evaluation of it will be refused", lacking)

    def before_eval(self, strategy: Any) -> None:
        """Begin an evaluation."""
        self.scores = {}

    def before_eval_exp(self, strategy: Any) -> None:
        """Refuse a task that cannot be scored, before it is played."""
        if lacking := self._lacking(strategy.experience.name):
            raise ValueError(lacking)

    def _lacking(self, name: str) -> str | None:
        if name in self.references:
            return None
        return f"references: there is none for {name!r}; those given are {sorted(self.references)}"

    def after_eval_exp(self, strategy: Any) -> MetricValue:
        """Log an experience's score."""
        name = strategy.experience.name
        mean = sum(episode.total for episode in strategy.episodes) / len(strategy.episodes)
        self.scores[name] = normalised_score(mean, self.references[name])
        where = get_metric_name("NormalisedReturn", strategy, add_experience=True)
        return MetricValue(self, where, self.scores[name], strategy.steps)

    def after_eval(self, strategy: Any) -> MetricValue:
        """Log the sum of the scores."""
        total = float(sum(self.scores.values()))
        return MetricValue(self, get_metric_name(self, strategy, add_task=False), total, strategy.steps)

    def __str__(self) -> str:
        return "TotalScore"


def rollout_metrics(*, frames: int = 16, every: int = 8, scale: int = 1) -> list[PluginMetric]:
    """Make the metric "Rollout": a picture of the first environment in each experience of an evaluation.

    Args:
        frames: how many observations are shown, side by side in rows of 8.
        every: agent steps between them.
        scale: each pixel is shown as so many in width and height.

    Returns:
        The metric, in a list. Of observations (C, H, W) the last channel is shown, or where there are more than four
        the brightest at each place; observations that are no images give no picture.

    Raises:
        TypeError: an argument is no integer.
        ValueError: an argument is below 1.
    """
    for name, value in (("frames", frames), ("every", every), ("scale", scale)):
        check_count(name, value)
    return [Rollout(frames, every, scale)]


class Rollout(PluginMetric[Tensor | None]):
    """A picture of what the agent sees; see `rollout_metrics`."""

    def __init__(self, frames: int, every: int, scale: int) -> None:
        super().__init__()
        self.frames, self.every, self.scale = frames, every, scale
        self.reset()

    def reset(self) -> None:
        """Forget the frames."""
        self.seen: list[Tensor] = []
        self.step = 0

    def result(self) -> Tensor | None:
        """Return the picture (1, H, W), values 0 to 1; None where there is none."""
        if not self.seen:
            return None
        rows = [self.seen[start : start + 8] for start in range(0, len(self.seen), 8)]
        blank = torch.zeros_like(self.seen[0])
        lines = [torch.cat([*row, *[blank] * (min(8, len(self.seen)) - len(row))], dim=1) for row in rows]
        picture = torch.cat(lines, dim=0)
        return picture.repeat_interleave(self.scale, 0).repeat_interleave(self.scale, 1)[None]

    def before_eval_exp(self, strategy: Any) -> None:
        """Begin an experience."""
        self.reset()

    def after_eval_iteration(self, strategy: Any) -> None:
        """Keep the frame, where its turn has come."""
        first = strategy.mb_x[0]
        if first.ndim == 3 and self.step % self.every == 0 and len(self.seen) < self.frames:
            self.seen.append((first[-1] if len(first) <= 4 else first.amax(0)).float().cpu().clamp(0, 1))
        self.step += 1

    def after_eval_exp(self, strategy: Any) -> MetricValue | None:
        """Log the picture."""
        picture = self.result()
        if picture is None:
            return None
        name = get_metric_name(self, strategy, add_experience=True)
        pixels = (picture[0] * 255).round().to(torch.uint8).numpy()
        return MetricValue(self, name, Image.fromarray(pixels), strategy.steps)  # W&B takes no channels in front

    def __str__(self) -> str:
        return "Rollout"
