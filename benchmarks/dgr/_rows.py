"""Rows of the Deep Generative Replay tables; needs neither torch nor Avalanche."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from benchmarks.harness.experiment import Row, Run
from benchmarks.harness.papers import in_paper
from benchmarks.report.table import mean_row


def accuracy_after(run: Run, tasks: int) -> float:
    """Accuracy over all tasks so far after so many."""
    return run.measurements["so_far"][tasks - 1]


def at_end(run: Run) -> float:
    """Accuracy over all tasks after the last."""
    return run.measurements["so_far"][-1]


def domain_names(domain: str) -> tuple[str, str]:
    """Names of the plain digits and of the other domain, of `benchmarks.data.domains.domain_pair`."""
    return "digits" if domain == "digits-negative" else "mnist", domain


def old_before(run: Run) -> float:
    """Accuracy on the first of two domains when it has been learnt."""
    curve = run.measurements["accuracy"][0]
    return curve[len(curve) // 2]


def domain_at_end(run: Run, domain: int) -> float:
    """Accuracy on a domain, 0 or 1, when both have been learnt."""
    return run.measurements["accuracy"][domain][-1]


def old_lost(run: Run) -> float:
    """What learning the second domain costs on the first."""
    return old_before(run) - domain_at_end(run, 0)


def earlier_rows(
    runs: Sequence[Run], arms: Sequence[str], numbers: Mapping[str, Sequence[float]], metric: str
) -> list[Row]:
    """Accuracy after each task but the last, beside the paper's `numbers` by arm."""
    return [
        mean_row(
            runs,
            arm,
            f"{metric} after {k} task{'s' if k > 1 else ''}",
            value=partial(accuracy_after, tasks=k),
            paper=in_paper(numbers, arm, k - 1),
        )
        for arm in arms
        for k in range(1, runs[0].settings["tasks"])
    ]
