"""What the runs of `progressive-soup` hold: a cell for each arm, source and target, and transfer scores from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.harness.experiment import Run

Pair = tuple[str, str]
"""Source and target."""
TARGETS = ("base", "black", "hflip", "hvflip", "noisy", "vflip", "white", "zoom")
"""Variants, in the order of the paper's Fig. 4."""
_EACH = (("base",), ("noisy",), ("hflip",))
SOURCES: Mapping[str, Sequence[tuple[str, ...]]] = {
    "baseline1": ((),),
    "baseline2": _EACH,
    "baseline3": _EACH,
    "baseline4": (("random",),),
    "progressive2": _EACH,
    "progressive3": (("noisy", "hflip"),),
}
"""What each arm has learnt before the target; "random" is a column that has learnt nothing."""
ARMS = tuple(SOURCES)
FLIPS: Mapping[str, tuple[bool, bool]] = {
    "hflip": (True, False),
    "vflip": (False, True),
    "hvflip": (True, True),
}
"""Whether a variant is mirrored left-right and upside down."""


def source_name(source: Sequence[str]) -> str:
    """Name of what was learnt before: "base", "noisy+hflip", "none"."""
    return "+".join(source) or "none"


def is_flipped(pair: Pair) -> bool:
    """Whether source and target are mirrored otherwise."""
    source, target = (FLIPS.get(variant, (False, False)) for variant in pair)
    return source != target


def cells(run: Run) -> Iterator[tuple[Pair, Mapping[str, Any]]]:
    """Pairs and what was measured for them."""
    for source, targets in run.measurements["cells"].items():
        for target, cell in targets.items():
            yield (source, target), cell


def baseline_areas(runs: Sequence[Run]) -> dict[int, dict[str, float]]:
    """Area under baseline 1's learning curve by seed and target."""
    return {
        run.seed: {target: cell["area"] for (_, target), cell in cells(run)} for run in runs if run.arm == "baseline1"
    }


def scored(runs: Sequence[Run]) -> list[Run]:
    """Runs that have a baseline 1 of the same seed; only they have transfer scores."""
    seeds = baseline_areas(runs).keys()
    return [run for run in runs if run.seed in seeds]


def transfers(run: Run, runs: Sequence[Run]) -> dict[Pair, float]:
    """Transfer scores of a run: areas relative to baseline 1's of the same seed; nan where that has learnt nothing."""
    areas = baseline_areas(runs)[run.seed]
    return {
        pair: cell["area"] / areas[pair[1]] if areas[pair[1]] > 0 else math.nan
        for pair, cell in cells(run)
        if pair[1] in areas
    }


def mean_transfers(runs: Sequence[Run], arm: str) -> dict[Pair, float]:
    """Mean transfer score of an arm over its seeds, by pair."""
    found: dict[Pair, list[float]] = {}
    for run in scored(runs):
        if run.arm == arm:
            for pair, score in transfers(run, runs).items():
                found.setdefault(pair, []).append(score)
    return {pair: fmean(scores) for pair, scores in found.items()}


def mean_curve(found: Sequence[Mapping[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    """Mean learning curve of cells, at the x that all of them have."""
    curves = [dict(zip(cell[x], cell[y], strict=True)) for cell in found]
    shared = [point for point in curves[0] if all(point in curve for curve in curves)] if curves else []
    return shared, [fmean(curve[point] for curve in curves) for point in shared]


def source_share(run: Run, pair: Pair, depth: int, measure: str = "afs") -> float:
    """Share of a depth that a target owes to the columns before its own, by AFS or APS; nan where not measured."""
    cell = run.measurements["cells"].get(pair[0], {}).get(pair[1], {})
    return sum(cell[measure][depth][:-1]) if measure in cell else math.nan


def own_convolutions(cell: Mapping[str, Any]) -> float:
    """Mean AFS of the newest column's convolutions: all layers but the fully connected one (Fig. 7)."""
    return fmean(layer[-1] for layer in cell["afs"][:-1])
