"""The figure of the DEN experiments: AUROC over tasks and against capacity, single tasks, and units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.den._rows import auroc_at_end
from benchmarks.harness.experiment import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = ("stl", "plain", "l2", "ewc", "progressive", "den")
DRIFT = ("den", "no-stamp", "progressive", "ewc", "l2")


def den_figure(runs: Sequence[Run], arms: Sequence[str], numbers: Mapping[str, Any], *, tasks: Sequence[int]) -> Figure:
    """Draw four panels: AUROC so far, AUROC against capacity, single tasks as others follow, and units a task.

    Args:
        runs: With measurements "matrix", "capacity" and "growth".
        arms: In the order of the legend.
        numbers: The paper's, drawn dashed or as crosses: "curves", AUROC over tasks by arm (at the tasks "after", if
            given), "points", capacity in % and AUROC by arm, and "drift", AUROC of a task by its number and arm.
        tasks: Numbers, from 1, of the tasks of the third panel.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    fig = Figure(figsize=(11, 8), layout="constrained")
    (over, against), (single, units) = fig.subplots(2, 2)
    palette = [*colormaps["tab10"].colors, *colormaps["Dark2"].colors]  # type: ignore[attr-defined]
    colours = dict(zip(dict.fromkeys((*CURVES, *arms)), palette, strict=False))
    by_arm = {arm: [run for run in runs if run.arm == arm] for arm in arms}
    for arm in CURVES:
        matrices = [run.measurements["matrix"] for run in by_arm.get(arm, [])]
        if matrices:
            means = np.array([[np.mean(row) for row in matrix] for matrix in matrices])
            x, deviation = np.arange(1, means.shape[1] + 1), means.std(0)
            over.errorbar(x, means.mean(0), deviation, fmt="-o", ms=3, color=colours[arm], label=arm)
        if values := numbers.get("curves", {}).get(arm):
            x = numbers.get("after", range(1, len(values) + 1))
            over.plot(x, values, "--x", ms=4, lw=0.8, color=colours[arm])
    over.set(xlabel="tasks learnt", ylabel="AUROC, tasks so far", title="dashed: the paper")
    if over.has_data():
        over.legend(fontsize="small", ncols=2)
    ends: dict[str, tuple[float, float]] = {}
    for arm, own in by_arm.items():
        if own:
            size = 100 * float(np.mean([run.measurements["capacity"] for run in own]))
            y = [auroc_at_end(run) for run in own]
            against.errorbar(size, np.mean(y), np.std(y), fmt="o", ms=4, color=colours[arm])
            ends[arm] = (size, float(np.mean(y)))
        for size, y in numbers.get("points", {}).get(arm, []):
            against.plot(size, y, "x", ms=5, color=colours[arm])
    against.set(
        xlabel="capacity (% of one network)", ylabel="AUROC at the end", xscale="log", title="crosses: the paper"
    )
    _names(against, ends, colours)
    for arm in DRIFT:
        own = by_arm.get(arm, [])
        for task in tasks:
            curves = [[row[task - 1] for row in run.measurements["matrix"][task - 1 :]] for run in own]
            if curves and curves[0]:
                mean = np.array(curves).mean(0)
                label = arm if task == tasks[0] else None
                single.plot(np.arange(task, task + len(mean)), mean, "-o", ms=3, color=colours[arm], label=label)
            if values := numbers.get("drift", {}).get(str(task), {}).get(arm):
                single.plot(np.arange(task, task + len(values)), values, "--", lw=0.8, color=colours[arm])
    single.set(xlabel="tasks learnt", ylabel="AUROC of one task", title="tasks " + ", ".join(map(str, tasks)))
    if single.has_data():
        single.legend(fontsize="small")
    _units(units, by_arm.get("den", []))
    return fig


def _names(axes: Any, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, Any]) -> None:
    """Write each arm's name beside its point, above another's that it would cover."""
    low, high = axes.get_ylim()
    line = (high - low) / 32
    taken: list[tuple[float, float]] = []
    for arm, (size, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        below = [other for near, other in taken if 1 / 1.3 < size / near < 1.3 and other > y - line]
        place = max(below, default=y - line) + line
        taken.append((size, place))
        axes.text(1.03 * size, place, arm, fontsize=7, color=colours[arm], clip_on=False)


def _units(axes: Any, runs: Sequence[Run]) -> None:
    """Draw units selected, added and split by task, the mean over runs, one colour a layer."""
    import numpy as np

    rows = [row for run in runs for row in run.measurements["growth"]]
    numbers = {task: number for number, task in enumerate(dict.fromkeys(row["task"] for row in rows), start=2)}
    for layer in sorted({row["layer"] for row in rows}):
        for kind, style in (("selected", "-"), ("added", "--"), ("split", ":")):
            by_task: dict[Any, list[float]] = {}
            for row in rows:
                if row["layer"] == layer and row[kind] is not None:
                    by_task.setdefault(row["task"], []).append(row[kind])
            means = [np.mean(values) for values in by_task.values()]
            label = f"layer {layer}" if kind == "selected" else None
            axes.plot([numbers[task] for task in by_task], means, style, color=f"C{layer - 1}", label=label)
    axes.set(xlabel="task", ylabel="units", title="DEN: selected, added (dashed), split (dotted)", yscale="symlog")
    if rows:
        # Below: lines are everywhere, at 0, at the few units that are added and at the many that are selected.
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=5)
