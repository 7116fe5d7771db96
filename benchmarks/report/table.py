"""Rows of a table from runs: means with standard errors, paired comparisons, whether a target is met; their text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from benchmarks.harness.experiment import Row, Run

Target = tuple[str, float] | tuple[str, float, float]
"""(">=", x), ("<=", x) or ("within", centre, tolerance)."""


def mean_row(
    runs: Sequence[Run],
    arm: str,
    metric: str,
    *,
    value: Callable[[Run], float] | None = None,
    paper: float | None = None,
    target: Target | None = None,
    min_seeds: int = 3,
    note: str = "",
) -> Row:
    """Mean and standard error of one measurement of one arm over its seeds.

    The number of a run is `value(run)`, by default `run.measurements[metric]`. The target is met when the mean over
    at least `min_seeds` seeds reaches it; over fewer that is "undecided", while a miss is a miss. Without runs the row
    says so: `mean` None, `seeds` 0, `met` None.
    """
    read = value or (lambda run: run.measurements[metric])
    own = sorted((run for run in runs if run.arm == arm), key=lambda run: run.seed)
    numbers = [float(read(run)) for run in own]
    met = None
    if target is not None and numbers:
        mean = fmean(numbers)
        met = _judge(mean, mean, target)
        if met == "met" and len(numbers) < min_seeds:
            met = "undecided"
    return _row(runs, own, arm, metric, numbers, paper, target, met, note)


def paired_row(
    runs: Sequence[Run],
    arm_a: str,
    arm_b: str,
    metric: str,
    *,
    value: Callable[[Run], float] | None = None,
    paper: float | None = None,
    target: Target | None = None,
    note: str = "",
) -> Row:
    """Difference arm_a - arm_b over the seeds that both have.

    "met" and "missed" are by the 95 % t interval of the mean paired difference (degrees of freedom: pairs - 1);
    where the interval holds the target, or there is one pair only, "undecided".
    """
    read = value or (lambda run: run.measurements[metric])
    first = {run.seed: run for run in runs if run.arm == arm_a}
    second = {run.seed: run for run in runs if run.arm == arm_b}
    seeds = sorted(first.keys() & second.keys())
    numbers = [float(read(first[seed])) - float(read(second[seed])) for seed in seeds]
    met = None
    if target is not None and numbers:
        low, high = interval(numbers)
        met = _judge(low, high, target)
    own = [run[seed] for seed in seeds for run in (first, second)]
    return _row(runs, own, f"{arm_a} - {arm_b}", metric, numbers, paper, target, met, note)


def interval(numbers: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Two-sided t interval of the mean; infinite for a single number."""
    if len(numbers) < 2:
        return -math.inf, math.inf
    from scipy.stats import t

    half = t.ppf(0.5 + level / 2, len(numbers) - 1) * _deviation(numbers) / math.sqrt(len(numbers))
    return fmean(numbers) - half, fmean(numbers) + half


def target_text(target: Target) -> str:
    """A target as the tables print it."""
    if target[0] == "within":
        return f"{target[1]:g} ± {target[2]:g}"  # type: ignore[misc]
    return f"{'≥' if target[0] == '>=' else '≤'} {target[1]:g}"


def measured(row: Row) -> str:
    """Mean ± standard error, or that there is none."""
    if row.mean is None:
        return "not run"
    return number(row.mean) if row.stderr is None else f"{number(row.mean)} ± {row.stderr:.2g}"


def number(value: float) -> str:
    """Four digits; what is exactly nothing shows it."""
    return f"{value:.4g}" if value else "0.0000"


def verdict(met: str | None) -> str:
    """Whether a target is met, in Markdown: a miss is to be seen."""
    return "**missed**" if met == "missed" else met or ""


def _deviation(numbers: Sequence[float]) -> float:
    """Standard deviation; nan where a number is not finite, which `statistics` cannot take."""
    return stdev(numbers) if all(math.isfinite(number) for number in numbers) else math.nan


def _judge(low: float, high: float, target: Target) -> str:
    """Whether all, none or some of [low, high] reaches the target."""
    if target[0] == "within":
        floor, ceiling = target[1] - target[2], target[1] + target[2]  # type: ignore[misc]
    elif target[0] == ">=":
        floor, ceiling = target[1], math.inf
    elif target[0] == "<=":
        floor, ceiling = -math.inf, target[1]
    else:
        raise ValueError(f'target must start with ">=", "<=" or "within", got {target[0]!r}')
    if math.isnan(low) or math.isnan(high):  # a run has no such number
        return "undecided"
    if floor <= low and high <= ceiling:
        return "met"
    return "undecided" if low <= ceiling and high >= floor and low < high else "missed"


def _row(
    runs: Sequence[Run],
    own: Sequence[Run],
    arm: str,
    metric: str,
    numbers: Sequence[float],
    paper: float | None,
    target: Target | None,
    met: str | None,
    note: str,
) -> Row:
    if not runs:
        raise ValueError("rows need at least one run of the experiment")
    return Row(
        experiment=runs[0].experiment,
        arm=arm,
        metric=metric,
        paper=paper,
        target=None if target is None else target_text(target),
        mean=fmean(numbers) if numbers else None,
        stderr=_deviation(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else None,
        seeds=len(numbers),
        scale=runs[0].scale,
        data=(own or runs)[0].data,
        minutes=fmean(run.seconds for run in own) / 60 if own else None,
        met=met,
        note=note,
    )
