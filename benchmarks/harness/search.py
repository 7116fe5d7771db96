"""Settings chosen on held-out data: the names of search jobs, and the best value among their runs.

The search job of an arm with a setting at a value is called "arm/setting=value", for example "ewc/lambda=100".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from benchmarks.harness.experiment import Run

SEARCH_SEED = 1000
"""First of the validation seeds, which no measurement uses."""


def search_jobs(arm: str, setting: str, values: Iterable[float], seeds: int = 1) -> list[tuple[str, int]]:
    """Search jobs of an arm: every value on every validation seed."""
    return [(f"{arm}/{setting}={value:g}", SEARCH_SEED + k) for value in values for k in range(seeds)]


def split_name(name: str) -> tuple[str, float | None]:
    """Arm and value of a search job; for any other job its arm, and None."""
    arm, _, setting = name.partition("/")
    return arm, float(setting.partition("=")[2]) if setting else None


def tried(runs: Sequence[Run], arm: str, score: Callable[[Run], float]) -> dict[float, float]:
    """Mean score over validation seeds by the value searched, in order of the values."""
    found: dict[float, list[float]] = {}
    for run in runs:
        own, value = split_name(run.arm)
        if own == arm and value is not None:
            found.setdefault(value, []).append(score(run))
    return {value: fmean(found[value]) for value in sorted(found)}


def best(runs: Sequence[Run], arm: str, score: Callable[[Run], float]) -> float:
    """Value with the largest mean score, the smallest one of equals; a ValueError says that nothing was searched."""
    scores = tried(runs, arm, score)
    if not scores:
        raise ValueError(f"no search run of {arm!r}: run the experiment without --arms once")
    return max(scores, key=scores.__getitem__)


def edge_note(value: float, scores: dict[float, float]) -> str:
    """Say so where a chosen value is the smallest or largest of several that were searched."""
    return " (edge of the search)" if len(scores) > 1 and value in (min(scores), max(scores)) else ""
