"""Figures that several experiments share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.harness.experiment import Run

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
        draw_grids(bottom, grids, [f"replayed after task {k + 1}" for k in range(len(grids))])
    return fig


def domain_figure(
    runs: Sequence[Run],
    parts: Sequence[tuple[str, Mapping[str, str], Mapping[str, Mapping[str, float]]]],
) -> Figure:
    """Accuracy on two domains learnt in turn, after every epoch, and what is replayed.

    Args:
        runs: With measurements "accuracy" (by domain, then time), "domains" (their names) and "grids".
        parts: One a row: its title, arms by their labels, and the paper's numbers by labels: "old" and "new" at the
            end, "before" on the old domain when it has been learnt, drawn as short bars. The first arm's replayed
            images are shown.
    """
    import numpy as np
    from matplotlib.figure import Figure

    fig = Figure(figsize=(10, 3.4 * len(parts)), layout="constrained")
    rows: Any = fig.subfigures(len(parts), 1, squeeze=False)[:, 0]
    for row, (title, arms, numbers) in zip(rows, parts, strict=True):
        row.suptitle(title)
        left, right = row.subfigures(1, 2, width_ratios=(5, 2))
        panels = left.subplots(1, 2, sharey=True)
        for index, (label, arm) in enumerate(arms.items()):
            own = [run for run in runs if run.arm == arm]
            for domain, panel in enumerate(panels):
                if own:
                    curve = np.array([run.measurements["accuracy"][domain] for run in own]).mean(0)
                    panel.plot(np.linspace(0, 2, len(curve)), curve, "-o", ms=3, color=f"C{index}", label=label)
                    panel.set_title(own[0].measurements["domains"][domain], fontsize="medium")
            for part, value in numbers.get(label, {}).items():
                panel, x = panels[int(part == "new")], 1 if part == "before" else 2
                panel.plot(x, value, "_", ms=14, mew=2, color=f"C{index}", zorder=3)
        if numbers:
            panels[1].plot([], [], "_", ms=14, mew=2, color="black", label="paper, with SVHN")
        for panel in panels:
            panel.axvline(1, color="black", lw=0.8, ls=":")
            panel.set(xlabel="tasks learnt", ylim=(0, 1.02))
        panels[0].set(ylabel="test accuracy")
        panels[1].legend(fontsize="small", loc="upper left")  # there the second domain has not been learnt yet
        shown, arm = next(iter(arms.items()))
        grids: Sequence[str] = next((run.measurements["grids"] for run in runs if run.arm == arm), [])
        if grids:
            draw_grids(right, grids, [f"replayed, {shown}"])
    return fig


def draw_grids(figure: Any, grids: Sequence[str], titles: Sequence[str]) -> None:
    """Draw images that `benchmarks.dgr._arms.png` made, side by side."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    for axes, text, title in zip(figure.subplots(1, len(grids), squeeze=False)[0], grids, titles, strict=True):
        axes.imshow(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))), cmap="gray")
        axes.set_title(title, fontsize="small")
        axes.axis("off")
