"""Figures that several experiments share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.experiment import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tasks_and_size(runs: Sequence[Run], arms: Sequence[str]) -> Figure:
    """Accuracy on each task at the end (mean over seeds), and their mean against the number of parameters."""
    import numpy as np
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=(3, 2))
    for index, arm in enumerate(arms):
        own = [run for run in runs if run.arm == arm]
        if not own:
            continue
        final = np.array([run.measurements["final"] for run in own])
        size = own[0].measurements["parameters"] / 1e6
        tasks = np.arange(1, final.shape[1] + 1)
        left.plot(tasks, final.mean(0), "-o", ms=4, color=f"C{index}", label=arm)
        right.errorbar(size, final.mean(), yerr=final.mean(1).std(), fmt="o", color=f"C{index}", label=arm)
        right.annotate(arm, (size, final.mean()), xytext=(4, 4), textcoords="offset points", fontsize="small")
    left.set(xlabel="task", ylabel="test accuracy after the last task")
    left.legend(fontsize="small")
    right.set(xlabel="million parameters", ylabel="mean test accuracy")
    right.margins(x=0.25)
    return fig
