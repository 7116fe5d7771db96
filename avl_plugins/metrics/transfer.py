"""Transfer by the area under the learning curve (Rusu et al. 2016), as Avalanche's evaluator logs it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from avalanche.evaluation.metrics import Accuracy
from avalanche.training.templates.base_sgd import PeriodicEval

from avl_plugins.metrics._plugins import position
from avl_plugins.metrics.learning_curve import Curve, curve_points, positive_area, transfer_score
from avl_plugins.tasks.arguments import check_choice, check_number
from avl_plugins.tasks.labels import check_labels_differ, experience_labels, task_label

log = logging.getLogger(__name__)


def transfer_metrics(
    *,
    baseline: Mapping[int, Curve] | None = None,
    floor: float | Mapping[int, float] = 0.0,
    phase: Literal["eval", "train"] = "eval",
    stream_name: str | None = None,
) -> list[PluginMetric]:
    """Make the metric of transfer, "TransferScore", logged once for each task when its training is complete.

        single, = transfer_metrics()                               # in a run on the target alone
        metrics = transfer_metrics(baseline=single.curves, floor=0.1)   # in the run that is judged

    It records the learning curve of each task in `curves[label]`, whether or not there is a baseline for it; iterations
    are counted within the experience. Tasks are told apart by their label. Where one is trained on more than once,
    the first time counts.

    Args:
        baseline: learning curves of a single column by task label, `curves` of another run's metric for example. Only
            labels in it are scored. Copied.
        floor: what an untrained learner has, chance for example; one number, or one by task label.
        phase: "eval": accuracy on the experience of the same number in periodic evaluations, the one before training,
            at iteration 0, included. It needs `eval_every >= 0` and the experience among the `eval_streams`. "train":
            accuracy of the mini-batches, each before its own update, so that n iterations end at n - 1.
        stream_name: with "eval", the stream whose accuracy counts ("test"); None where only one is evaluated.

    Returns:
        The metric, in a list, to be passed to `EvaluationPlugin`.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: An argument is out of range, `floor` lacks a label of `baseline`, or a baseline's area above the
            floor is not positive; in training, if there are no evaluations to record, or experiences have several task
            labels or all the same one. A curve with another budget than its baseline's, or of fewer than two points, is
            not scored, and a warning in the log says so.
    """
    return [Transfer(baseline=baseline, floor=floor, phase=phase, stream_name=stream_name)]


class Transfer(PluginMetric[dict[int, float]]):
    """Area under the learning curve relative to a baseline's; see `transfer_metrics`.

    Attributes:
        curves: learning curve by task label, as far as it has come: points (iterations, accuracy).
        scores: transfer score by task label.
    """

    def __init__(
        self,
        *,
        baseline: Mapping[int, Curve] | None = None,
        floor: float | Mapping[int, float] = 0.0,
        phase: Literal["eval", "train"] = "eval",
        stream_name: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("phase", phase, ("eval", "train"))
        if not isinstance(stream_name, str | None):
            raise TypeError(f"stream_name must be a stream's name, or None, got {stream_name!r}")
        if not isinstance(baseline, Mapping | None):
            raise TypeError(f"baseline must be a dict of learning curves by task label, or None, got {baseline!r}")
        self.phase, self.stream_name = phase, stream_name
        given = {task_label(label): curve for label, curve in (baseline or {}).items()}
        self.baseline = {label: curve_points(curve, f"baseline[{label}]") for label, curve in given.items()}
        if not isinstance(floor, Mapping):
            check_number("floor", floor)
            floor = dict.fromkeys(self.baseline, floor)
        for label, value in floor.items():
            check_number(f"floor[{label}]", value)
        if absent := sorted(self.baseline.keys() - floor.keys()):
            raise ValueError(f"floor must have a value for the task labels {absent} of the baseline, got {dict(floor)}")
        self.floors = {label: float(floor[label]) for label in self.baseline}
        for label, curve in self.baseline.items():
            positive_area(curve, self.floors[label], f"baseline[{label}]")
        self.accuracy = Accuracy()
        self.reset()

    def reset(self) -> None:
        """Forget all tasks."""
        self.curves: dict[int, list[tuple[int, float]]] = {}
        self.scores: dict[int, float] = {}
        self.numbers: dict[int, int] = {}
        """Number of the experience by task label."""
        self.iterations = 0
        """Training iterations within the experience. The clock lags behind in evaluations after an iteration."""
        self.label: int | None = None
        """Task whose curve is being recorded."""
        self.complete = False
        """Whether its training is; the last periodic evaluation may still come."""
        self.done: list[int] = []
        """Tasks whose curve is complete."""
        self.latest: dict[str, dict[int, float]] = {}
        """By stream and number of the experience: accuracy since the last training iteration."""
        self.evaluated: dict[str, list[int]] = {}
        """By stream: numbers of the experiences evaluated since the call of train()."""
        self.accuracy.reset()

    def result(self) -> dict[int, float]:
        """Return the transfer scores by task label."""
        return self.scores

    def before_training(self, strategy: Any) -> None:
        """Forget evaluations outside of training, and what an interrupted training has left."""
        self.latest, self.evaluated, self.label, self.complete = {}, {}, None, False

    def before_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Score the task before, and begin a curve with the accuracy before training."""
        scores = self._score(strategy)
        number, label = strategy.experience.current_experience, _task_label(strategy.experience)
        if self.numbers.setdefault(label, number) != number:
            check_labels_differ(strategy.experience)
        self.iterations = 0
        if label in self.done:
            return scores  # learned before: the first time counts
        if self.phase == "eval":
            self._check_evaluations(strategy, number)
        self.label, self.numbers[label], self.curves[label] = label, number, []
        for stream, accuracies in self.latest.items():
            if number in accuracies:
                self._record(label, stream, accuracies[number])
        return scores

    def after_training_iteration(self, strategy: Any) -> None:
        """Count, and record the mini-batch's accuracy where that is asked for."""
        if self.phase == "train" and self.label is not None:
            accuracy = Accuracy()
            accuracy.update(strategy.mb_output, strategy.mb_y)
            self.curves[self.label].append((self.iterations, float(accuracy.result())))
        self.iterations += 1
        self.latest = {}

    def after_training_exp(self, strategy: Any) -> None:
        """Note that only an evaluation can follow; the periodic one of this hook comes after the metrics."""
        self.complete = True

    def after_training(self, strategy: Any) -> list[MetricValue]:
        """Score the last task."""
        return self._score(strategy)

    def before_eval_exp(self, strategy: Any) -> None:
        """Begin an experience."""
        self.accuracy.reset()

    def after_eval_iteration(self, strategy: Any) -> None:
        """Count correct answers."""
        if self.phase == "eval":
            self.accuracy.update(strategy.mb_output, strategy.mb_y)

    def after_eval_exp(self, strategy: Any) -> None:
        """Keep the accuracy, as the next point of the curve if it is that of the experience being trained on."""
        if self.phase != "eval":
            return
        number, stream = strategy.experience.current_experience, strategy.experience.origin_stream.name
        accuracy = float(self.accuracy.result())
        self.latest.setdefault(stream, {})[number] = accuracy
        self.evaluated.setdefault(stream, []).append(number)
        if self.label is not None and self.numbers[self.label] == number:
            self._record(self.label, stream, accuracy)

    def _record(self, label: int, stream: str, accuracy: float) -> None:
        if self.stream_name in (None, stream):
            self.curves[label].append((self.iterations, accuracy))

    def _score(self, strategy: Any) -> list[MetricValue]:
        """Close the curve of the task whose training is complete."""
        label = self.label
        if label is None or not self.complete:
            return []
        self.label, self.complete = None, False
        self.done.append(label)
        if label not in self.baseline:
            return []
        try:
            score = transfer_score(self.curves[label], self.baseline[label], self.floors[label])
        except ValueError as error:  # the training is done: it must not be lost by this
            log.warning("transfer_metrics: task %s gets no score: %s", label, error)
            return []
        self.scores[label] = score
        name = get_metric_name(self, strategy, add_task=label)
        return [MetricValue(self, name, score, position(strategy))]

    def _check_evaluations(self, strategy: Any, number: int) -> None:
        """Raise, before the training, where nothing would be recorded."""
        if not any(isinstance(p, PeriodicEval) and p.eval_every >= 0 for p in strategy.plugins):
            raise ValueError(
                "transfer_metrics: there are no evaluations to record a learning curve from; build the strategy with "
                "eval_every=1 and pass train(..., eval_streams=[...]), or take phase='train'"
            )
        streams = [s for s, found in self.evaluated.items() if number in found and self.stream_name in (None, s)]
        if not streams:
            where = "" if self.stream_name is None else f" of the stream {self.stream_name!r}"
            raise ValueError(
                f"transfer_metrics: experience {number}{where} is not among those that are evaluated; put it into "
                "train(..., eval_streams=[...])"
            )
        if len(streams) > 1:
            raise ValueError(f"stream_name: the streams {streams} are evaluated; name the one that counts")

    def __str__(self) -> str:
        return "TransferScore"


def _task_label(experience: Any) -> int:
    labels = experience_labels(experience)
    if len(labels) != 1:
        raise ValueError(
            f"transfer_metrics: a learning curve is one task's, and the experience has the labels {labels}"
        )
    return labels[0]
