"""Times side by side: alternatives that take turns, medians, ratios with their targets, and what is measured on."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from avalanche.core import SupervisedPlugin

from benchmarks.data.arrays import Arrays


@dataclass(frozen=True)
class Line:
    """One comparison: a time (seconds) or another number, and its ratio to another."""

    what: str
    seconds: float
    ratio: float | None = None
    against: str = ""
    target: str = ""
    met: bool | None = None


def compare(what: str, seconds: float, other: float, against: str, target: tuple[str, float] | None = None) -> Line:
    """Compare with another time; a target ("<=", r) bounds time / other, (">=", r) bounds other / time."""
    if target is None:
        return Line(what, seconds, seconds / other, against)
    sign, bound = target
    if sign == "<=":
        return Line(what, seconds, seconds / other, against, f"<= {bound:g}", seconds / other <= bound)
    return Line(what, seconds, other / seconds, f"{against} / this", f">= {bound:g}", other / seconds >= bound)


def compare_rates(what: str, rate: float, other: float, against: str, least: float) -> Line:
    """Compare with another number a second; their ratio has to be `least`."""
    return Line(what, rate, rate / other, against, f">= {least:g}", rate / other >= least)


def rotate(rounds: int, alternatives: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Let the alternatives take turns; the median of each."""
    found: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(rounds):
        for name, run in alternatives.items():
            found[name].append(run())
    return {name: statistics.median(seconds) for name, seconds in found.items()}


class EpochTimer(SupervisedPlugin):
    """Seconds of every training epoch, without what comes before and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Start."""
        self.started = perf_counter()

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Stop."""
        self.seconds.append(perf_counter() - self.started)


def few(arrays: Arrays, images: int = 1000) -> Arrays:
    """The first training images only."""
    return Arrays(arrays.x_train[:images], arrays.y_train[:images], arrays.x_test, arrays.y_test, arrays.name)
