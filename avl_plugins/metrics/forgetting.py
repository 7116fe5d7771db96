"""Forgetting as Chaudhry et al. define it (2018, Riemannian Walk, arXiv:1801.10112, section 3.1).

After experience k the model has forgotten, of an earlier experience j,

    f_j^k = max_{l < k} a_{l,j} - a_{k,j},        F_k = 1/(k-1) sum_{j < k} f_j^k

where a_{l,j} is the accuracy on experience j after training on experience l. Avalanche's forgetting is first minus
last: a_{j,j} in place of the maximum. The two differ where an experience got better after it was first learned, and
then worse. Both are negative where an experience is better than ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from avalanche.evaluation.metrics import Accuracy

from avl_plugins.metrics._plugins import position
from avl_plugins.tasks.arguments import check_flag


def forgetting(accuracies: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return f_j^k for each experience j of the last row that an earlier row knows too.

    Args:
        accuracies: row l is the accuracy on each experience (by number) after the l-th training; the last row is a_k.
    """
    *history, last = accuracies
    best: dict[int, float] = {}
    for row in history:
        for j, accuracy in row.items():
            best[j] = max(accuracy, best.get(j, accuracy))
    return {j: best[j] - accuracy for j, accuracy in last.items() if j in best}


def chaudhry_forgetting_metrics(*, experience: bool = False, stream: bool = False) -> list[PluginMetric]:
    """Make metrics of forgetting as max over history minus last, logged in evaluation.

    a_{l,j} is taken from the last evaluation before the next training begins (or, in a periodic evaluation, from the
    latest one so far). Values from before the first training do not count. An experience counts as earlier if it was
    trained on before the latest one; those are told apart by their number in the stream, as Avalanche does it, and
    training on one twice in a row counts as one training.

    Args:
        experience: "forgetting/ExperienceMaxForgetting", f_j^k after evaluating each earlier experience j.
        stream: "forgetting/StreamMaxForgetting", F_k over the earlier experiences in the evaluated stream; 0 if there
            are none.

    Returns:
        The metrics asked for, to be passed to `EvaluationPlugin`.

    Raises:
        TypeError: An argument is not True or False.
    """
    check_flag("experience", experience)
    check_flag("stream", stream)
    metrics: list[PluginMetric] = []
    if experience:
        metrics.append(MaxForgetting(per_experience=True))
    if stream:
        metrics.append(MaxForgetting(per_experience=False))
    return metrics


class MaxForgetting(PluginMetric[dict[int, float]]):
    """Max over history minus last; see `chaudhry_forgetting_metrics`.

    Args:
        per_experience: log f_j^k after each experience; else their mean F_k after the stream.
    """

    def __init__(self, *, per_experience: bool) -> None:
        super().__init__()
        check_flag("per_experience", per_experience)
        self.per_experience = per_experience
        self.trained: list[int] = []
        """Number of the experience of each training so far."""
        self.accuracies: dict[str, list[dict[int, float]]] = {}
        """By stream, and for each training: accuracy on each experience."""
        self.current: dict[int, float] = {}
        """Forgetting of the earlier experiences that the latest evaluation has come by."""
        self.accuracy = Accuracy()

    def reset(self) -> None:
        """Forget all trainings and evaluations."""
        self.trained, self.accuracies, self.current = [], {}, {}
        self.accuracy.reset()

    def result(self) -> dict[int, float]:
        """Return f_j^k by the number j of the earlier experience, as of the latest evaluation."""
        return self.current

    def before_training_exp(self, strategy: Any) -> None:
        """Begin the next row of accuracies."""
        number = strategy.experience.current_experience
        if self.trained[-1:] != [number]:  # a run that is resumed inside an experience comes by here again
            self.trained.append(number)

    def before_eval(self, strategy: Any) -> None:
        """Begin an evaluation."""
        self.current = {}

    def before_eval_exp(self, strategy: Any) -> None:
        """Begin an experience."""
        self.accuracy.reset()

    def after_eval_iteration(self, strategy: Any) -> None:
        """Count correct answers."""
        self.accuracy.update(strategy.mb_output, strategy.mb_y)

    def after_eval_exp(self, strategy: Any) -> MetricValue | None:
        """Take down the accuracy, and log f_j^k where it is asked for and the experience is an earlier one."""
        if not self.trained:
            return None
        number = strategy.experience.current_experience
        rows = self.accuracies.setdefault(strategy.experience.origin_stream.name, [])
        rows.extend({} for _ in range(len(self.trained) - len(rows)))
        rows[-1][number] = float(self.accuracy.result())
        forgotten = forgetting(rows).get(number)
        if number == self.trained[-1] or number not in self.trained or forgotten is None:
            return None
        self.current[number] = forgotten
        return self._value(strategy, forgotten) if self.per_experience else None

    def after_eval(self, strategy: Any) -> MetricValue | None:
        """Log F_k where it is asked for."""
        if self.per_experience or not self.trained:
            return None
        return self._value(strategy, sum(self.current.values()) / max(len(self.current), 1))

    def _value(self, strategy: Any, value: float) -> MetricValue:
        if self.per_experience:
            name = get_metric_name(self, strategy, add_experience=True)
        else:  # without a task: Avalanche would put that of the last experience
            name = get_metric_name(self, strategy, add_experience=False, add_task=False)
        return MetricValue(self, name, value, position(strategy))

    def __str__(self) -> str:
        return "forgetting/ExperienceMaxForgetting" if self.per_experience else "forgetting/StreamMaxForgetting"
