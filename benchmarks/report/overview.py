"""The picture at the top of the README: what plain training forgets, and what each method keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.harness.experiment import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAIN, METHOD = "0.45", "C0"


@dataclass(frozen=True)
class Panel:
    """One panel: two arms of an experiment at scale cpu.

    Attributes:
        experiment: its name.
        title: the method's.
        setting: what is learnt, below the title.
        arms: the arm of plain training and the method's.
        plain: where "plain training" is written, beside its line.
        curve: measurements -> a value for each number of tasks learnt, or for each task.
        xlabel: what the values go by.
        ylabel: what they are.
    """

    experiment: str
    title: str
    setting: str
    arms: tuple[str, str]
    plain: tuple[float, float]
    curve: Callable[[Mapping[str, Any]], Sequence[float]]
    xlabel: str = "tasks learnt"
    ylabel: str = ""

    def curves(self, runs: Sequence[Run]) -> list[list[Sequence[float]]]:
        """Return each arm's curves, one a run."""
        return [[self.curve(run.measurements) for run in runs if run.arm == arm] for arm in self.arms]


def _mean_so_far(measurements: Mapping[str, Any]) -> list[float]:
    return [sum(row[: k + 1]) / (k + 1) for k, row in enumerate(measurements["matrix"])]


PANELS = (
    Panel(
        "ewc-fig2b",
        "EWC",
        "permuted MNIST",
        ("sgd", "ewc"),
        (5.5, 0.6),
        lambda m: m["mean"],
        ylabel="mean test accuracy so far",
    ),
    Panel(
        "progressive-split-cifar100",
        "Progressive Networks",
        "CIFAR-100, ten classes a task",
        ("finetune", "progressive"),
        (7.5, 0.12),
        lambda m: m["final"],
        xlabel="task",
        ylabel="test accuracy after the last task",
    ),
    Panel(
        "dgr-classes",
        "Deep Generative Replay",
        "MNIST, two new classes a task",
        ("none", "gr"),
        (3.9, 0.37),
        lambda m: m["so_far"],
        ylabel="test accuracy on classes so far",
    ),
    Panel(
        "den-mnist-variation",
        "DEN",
        "MNIST-Variation",
        ("plain", "den"),
        (5.5, 0.5),
        _mean_so_far,
        ylabel="mean AUROC so far",
    ),
)


def overview(found: Mapping[tuple[str, str], Sequence[Run]]) -> Figure | None:
    """Draw the panels, mean over seeds; None where an arm of one has not been run at scale cpu."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    drawn = {panel: panel.curves(found.get((panel.experiment, "cpu"), ())) for panel in PANELS}
    if not all(map(all, drawn.values())):
        return None
    fig = Figure(figsize=(13, 3.6), layout=ConstrainedLayoutEngine(wspace=0.06))
    for axes, (panel, arms) in zip(fig.subplots(1, len(PANELS)), drawn.items(), strict=True):
        for curves, colour in zip(map(np.array, arms), (PLAIN, METHOD), strict=True):
            tasks = np.arange(1, curves.shape[1] + 1)
            axes.plot(tasks, curves.mean(0), "-o", ms=3.5, lw=2, color=colour)
            axes.fill_between(tasks, curves.min(0), curves.max(0), color=colour, alpha=0.2, lw=0)
        axes.text(*panel.plain, "plain training", color=PLAIN, ha="center", weight="bold")
        axes.set_title(f"{panel.setting}\n", fontsize="medium")
        axes.text(0.5, 1.02, panel.title, transform=axes.transAxes, color=METHOD, ha="center", weight="bold")
        axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel, ylim=(0, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    return fig
