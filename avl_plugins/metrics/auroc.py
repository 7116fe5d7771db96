"""Area under the ROC curve, one class against the rest, as Yoon et al. 2018 measure it."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from avl_plugins.metrics._plugins import position
from avl_plugins.tasks.arguments import check_choice, check_flag

log = logging.getLogger(__name__)

_NAMES = {"auroc": ("AUROC_Exp", "AUROC_Stream"), "accuracy": ("ThresholdAcc_Exp", "ThresholdAcc_Stream")}


def mean_auroc(scores: Tensor, y: Tensor) -> float:
    """Return the mean over classes of the AUROC of one class against the rest.

    Args:
        scores: (N, C) logits, larger where the class is more likely; (N, 1) or (N,): of class 1 against class 0.
        y: (N,) or (N, 1) classes. Those that do not occur, and those that are alone, are left out.

    Raises:
        ValueError: Shapes do not fit, scores are not finite, or there is no class to tell from the rest.
    """
    scores, y = _columns(scores, y)
    if not scores.isfinite().all():
        raise ValueError("scores must be finite to be ranked, got NaN or infinite ones")
    if scores.shape[1] == 1:
        pairs = [(scores[:, 0], y == 1)]
    else:
        pairs = [(scores[:, c] - _others(scores, c), y == c) for c in range(scores.shape[1])]
    # Ranks are all that counts; torchmetrics would take values outside [0, 1] as logits and lose some to rounding.
    values = [binary_auroc(_ranks(score), own.long()) for score, own in pairs if 0 < int(own.sum()) < len(own)]
    if not values:
        raise ValueError("y: there is no class with samples in it and samples outside of it")
    return float(torch.stack(values).mean())


def auroc_metrics(*, experience: bool = True, stream: bool = True, accuracy: bool = False) -> list[PluginMetric]:
    """Make metrics of one-vs-rest AUROC, logged in evaluation.

    Avalanche's accuracy reads an output of one logit as always class 0; these take it as that of class 1.

    Args:
        experience: "AUROC_Exp" after each experience. One that has none, as there is a single class or outputs are not
            finite, is left out, and a warning in the log says so.
        stream: "AUROC_Stream", the mean over the evaluated experiences, as the paper averages it over tasks.
        accuracy: the same of accuracy, "ThresholdAcc_Exp" and "ThresholdAcc_Stream": the class with the largest logit,
            and for one logit whether it is positive.

    Returns:
        The metrics asked for, to be passed to `EvaluationPlugin`.

    Raises:
        TypeError: An argument is not True or False.
        ValueError: In an evaluation's first mini-batch, if its outputs are not (N, C) or its targets not classes (N,).
    """
    for name, wanted in (("experience", experience), ("stream", stream), ("accuracy", accuracy)):
        check_flag(name, wanted)
    kinds: list[Literal["auroc", "accuracy"]] = ["auroc", "accuracy"] if accuracy else ["auroc"]
    return [
        ScoreMetric(kind=kind, per_experience=each)
        for kind in kinds
        for each, wanted in ((True, experience), (False, stream))
        if wanted
    ]


class ScoreMetric(PluginMetric[float | None]):
    """AUROC or accuracy of an experience, or the mean over experiences; see `auroc_metrics`."""

    def __init__(self, *, kind: Literal["auroc", "accuracy"], per_experience: bool) -> None:
        super().__init__()
        check_choice("kind", kind, tuple(_NAMES))
        check_flag("per_experience", per_experience)
        self.kind, self.per_experience = kind, per_experience
        self.value: float | None = None
        self.outputs: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.values: list[float] = []

    def reset(self) -> None:
        """Forget everything."""
        self.value, self.outputs, self.targets, self.values = None, [], [], []

    def result(self) -> float | None:
        """Return the latest value; None before the first."""
        return self.value

    def before_eval(self, strategy: Any) -> None:
        """Begin an evaluation."""
        self.values = []

    def before_eval_exp(self, strategy: Any) -> None:
        """Begin an experience."""
        self.outputs, self.targets = [], []

    def after_eval_iteration(self, strategy: Any) -> None:
        """Keep scores and classes."""
        outputs, targets = _columns(strategy.mb_output.detach().cpu(), strategy.mb_y.cpu())
        self.outputs.append(outputs)
        self.targets.append(targets)

    def after_eval_exp(self, strategy: Any) -> MetricValue | None:
        """Measure the experience."""
        outputs, targets = torch.cat(self.outputs), torch.cat(self.targets)
        self.outputs, self.targets = [], []
        if self.kind == "accuracy":
            answers = (outputs[:, 0] > 0).long() if outputs.shape[1] == 1 else outputs.argmax(1)
            measured = float((answers == targets).float().mean())
        else:
            try:
                measured = mean_auroc(outputs, targets)
            except ValueError as why:
                log.warning("no AUROC of experience %s: %s", strategy.experience.current_experience, why)
                return None
        self.values.append(measured)
        return self._log(strategy, measured) if self.per_experience else None

    def after_eval(self, strategy: Any) -> MetricValue | None:
        """Average over the experiences."""
        if self.per_experience or not self.values:
            return None
        return self._log(strategy, sum(self.values) / len(self.values))

    def _log(self, strategy: Any, value: float) -> MetricValue:
        self.value = value
        each = self.per_experience
        name = get_metric_name(str(self), strategy, add_experience=each, add_task=each)
        return MetricValue(self, name, value, position(strategy))

    def __str__(self) -> str:
        return _NAMES[self.kind][0 if self.per_experience else 1]


def _columns(scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores (N, C) and classes (N,), or refuse what are none."""
    scores = scores[:, None] if scores.dim() == 1 else scores
    y = y[:, 0] if y.dim() == 2 and y.shape[1] == 1 else y
    if scores.dim() != 2 or y.dim() != 1 or len(scores) != len(y):
        raise ValueError(
            f"scores and y must be logits (N, C) and classes (N,), got the shapes {tuple(scores.shape)} and "
            f"{tuple(y.shape)}"
        )
    return scores, y


def _others(scores: Tensor, c: int) -> Tensor:
    """Return what a class's score is compared with: the other one of two, else nothing."""
    return scores[:, 1 - c] if scores.shape[1] == 2 else scores.new_zeros(len(scores))


def _ranks(scores: Tensor) -> Tensor:
    """Return ranks from 0 to 1, equal ones for equal scores."""
    _, order = scores.unique(return_inverse=True)
    return order.double() / max(int(order.max()), 1)
