"""Rows of the tables that compare methods with one head a task (`_arms.py`); needs neither torch nor Avalanche."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks.harness.experiment import Row, Run
from benchmarks.harness.search import best, edge_note, tried
from benchmarks.report.table import mean_row, paired_row


def final(run: Run) -> float:
    """Mean accuracy over tasks at the end."""
    return fmean(run.measurements["final"])


def best_lambda(runs: Sequence[Run]) -> float:
    """Lambda of EWC with the best mean accuracy on held-out images among the search runs."""
    return best(runs, "ewc", final)


def method_rows(runs: Sequence[Run], arms: Sequence[str]) -> list[Row]:
    """Accuracy, forgetting and size of every arm, and progressive beside independent columns."""
    accuracy = "mean accuracy at the end"
    table = [mean_row(runs, arm, accuracy, value=final, note=_note(runs, arm)) for arm in arms]
    table += [
        mean_row(
            runs,
            arm,
            "forgetting",
            value=lambda run: run.measurements["forgetting"],
            paper=0.0 if arm in ("progressive", "linear") else None,
            target=("within", 0.0, 0.0) if arm == "progressive" else None,
        )
        for arm in arms
    ]
    sizes = [run.measurements["parameters"] for run in runs if run.arm == "independent"]
    if sizes:
        table += [
            mean_row(
                runs,
                arm,
                "parameters / independent nets'",
                value=lambda run: run.measurements["parameters"] / sizes[0],
                target=("<=", 1.6) if arm == "progressive" else None,
            )
            for arm in arms
        ]
    table.append(paired_row(runs, "progressive", "independent", accuracy, value=final, target=(">=", -0.005)))
    if "avalanche-pnn" in arms:
        table.append(paired_row(runs, "progressive", "avalanche-pnn", accuracy, value=final, target=(">=", 0.03)))
    return table


def _note(runs: Sequence[Run], arm: str) -> str:
    scores = tried(runs, "ewc", final)
    if arm != "ewc" or not scores:
        return ""
    chosen = best_lambda(runs)
    return f"lambda {chosen:g}, chosen on held-out images{edge_note(chosen, scores)}"
