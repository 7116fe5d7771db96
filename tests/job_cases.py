"""An experiment that adds up numbers, and its jobs."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness.experiment import Context, Experiment, Run
from benchmarks.harness.jobs import Failure, Job, Plan
from benchmarks.harness.runner import run_jobs


@dataclass(frozen=True)
class Settings:
    """Adds up numbers."""

    steps: int = 4
    """Numbers."""
    sizes: tuple[int, ...] = (1, 2)
    """A sequence, which JSON turns into a list."""


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict:
    """Sum of steps; the arm "stops" is killed once half-way, the arm "fails" always raises."""
    if arm == "fails":
        raise ValueError("it failed")
    start, total = 0, 0
    if context.resume:
        start, total = json.loads(context.checkpoint.read_text())
    for step in range(start, settings.steps):
        if arm == "stops" and step == settings.steps // 2 and not context.resume:
            raise KeyboardInterrupt
        total += step + seed
        context.checkpoint.write_text(json.dumps([step + 1, total]))
        context.progress(step + 1, settings.steps, "")
    return {"total": total, "resumed": context.resume, "array": np.arange(2), "search": len(context.search)}


def experiment(**changes) -> Experiment:
    given = {
        "name": "sums",
        "title": "sums",
        "data": "none",
        "arms": ("good", "fails"),
        "scales": {"cpu": Settings()},
        "minutes": {"cpu": 1},
        "measure": measure,
        "rows": lambda runs: [],
        "figure": lambda runs: None,
    }
    return Experiment(**{**given, **changes})


def make_plan(folder: Path, **changes) -> Plan:
    given = {"experiment": experiment(), "scale": "cpu", "settings": Settings(), "out": folder, "runs": folder / "runs"}
    return Plan(**{**given, **changes})


def run_all(jobs: list[Job]) -> tuple[list[Run], list[Failure]]:
    ends = []
    runs = run_jobs(jobs, report=lambda job, result: ends.append(result))
    return runs, [end for end in ends if isinstance(end, Failure)]
