"""Figures that several experiments share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    left.set(xlabel="task", ylabel="test accuracy after the last task")
    left.legend(fontsize="small")
    right.set(xlabel="million parameters", ylabel="mean test accuracy", xlim=(0, None), ylim=left.get_ylim())
    return fig


def replay_figure(
    runs: Sequence[Run],
    arms: Sequence[str],
    paper_curves: dict[str, Sequence[float]],
    *,
    ylabel: str,
    grid_arm: str = "gr",
) -> Figure:
    """Accuracy over the tasks so far after each (the paper's dashed), and what `grid_arm` replays after each task."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    grids: Sequence[str] = next((run.measurements["grids"] for run in runs if run.arm == grid_arm), [])
    fig = Figure(figsize=(9, 6.2) if grids else (6, 4), layout="constrained")
    parts: Any = fig.subfigures(2, 1, height_ratios=(3, 2)) if grids else (fig, None)
    top, bottom = parts
    panel = top.subplots()
    for index, arm in enumerate(arms):
        found = np.array([run.measurements["so_far"] for run in runs if run.arm == arm])
        if len(found):
            tasks = np.arange(1, found.shape[1] + 1)
            panel.errorbar(tasks, found.mean(0), yerr=found.std(0), fmt="-o", ms=4, color=f"C{index}", label=arm)
        if arm in paper_curves:
            values = paper_curves[arm]
            panel.plot(range(1, len(values) + 1), values, "--x", lw=1, color=f"C{index}", label=f"{arm}, paper")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlabel="tasks learnt", ylabel=ylabel, ylim=(0, 1.02))
    panel.legend(fontsize="small", ncols=2)
    if bottom is not None:
        draw_grids(bottom, grids, "replayed after task {}")
    return fig


def draw_grids(figure: Any, grids: Sequence[str], title: str) -> None:
    """Draw images that `benchmarks.replay.png` made, side by side; `title` takes their number."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    for k, (axes, text) in enumerate(
        zip(figure.subplots(1, len(grids), squeeze=False)[0], grids, strict=True), start=1
    ):
        axes.imshow(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))), cmap="gray")
        axes.set_title(title.format(k), fontsize="small")
        axes.axis("off")
