"""The figures of Pong Soup, on digits and on Pong, and panels of transfer for others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.harness.experiment import Run
from benchmarks.harness.papers import in_paper, paper
from benchmarks.progressive._transfer_cells import (
    ARMS,
    SOURCES,
    TARGETS,
    Pair,
    cells,
    mean_curve,
    mean_transfers,
    own_convolutions,
    scored,
    source_name,
    transfers,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHORT = {"baseline2": "B2", "baseline3": "B3", "baseline4": "B4"}
SHORT |= {"progressive2": "P2", "progressive3": "P3", "progressive4": "P4"}
COLOURS = dict(zip(ARMS, ("black", "tab:gray", "tab:blue", "tab:green", "tab:red", "tab:purple"), strict=True))
COLOURS["progressive4"] = "tab:orange"
CURVES = (("base", "white"), ("base", "hflip"))
"""The pairs of the paper's Fig. 4b."""
MAPPED = (("base", "hflip"), ("base", "zoom"), ("base", "noisy"), ("noisy", "base"))
"""The pairs that the paper speaks of with Fig. 5."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the figures of different experiments do not share."""

    x: str = "iterations"
    """Part of a cell that is a learning curve's x."""
    y: str = "accuracy"
    """Its y."""
    x_label: str = "iterations on the target"
    y_label: str = "test accuracy"
    y_range: tuple[float, float] = (0, 1)
    curves: Sequence[Pair] = CURVES
    """Pairs whose learning curves are shown."""
    mapped: Sequence[Pair] = MAPPED
    """Pairs whose sensitivities are shown."""
    perturbation: bool = True
    """Whether there is APS."""


def soup_figure(runs: Sequence[Run], look: Look = Look()) -> Figure:
    """Transfer matrices, ours and the paper's; learning curves; AFS against transfer and APS; AFS by layer."""
    from matplotlib.figure import Figure

    numbers = paper("progressive")["soup"]
    fig = Figure(figsize=(11, 12), layout="constrained")
    parts: Any = fig.subfigures(3, 1, height_ratios=(4.6, 3.4, 3))
    top, middle, bottom = parts
    ours, theirs = top.subplots(1, 2, sharey=True)
    matrix = {arm: mean_transfers(runs, arm) for arm in ARMS[1:]}
    printed = {
        arm: {
            (source, target): v for source, row in (in_paper(numbers, arm) or {}).items() for target, v in row.items()
        }
        for arm in ARMS[1:]
    }
    transfer_matrix(ours, matrix, "transfer, measured")
    image = transfer_matrix(theirs, printed, "transfer, paper", clipped_at=numbers["clipped_at"])
    top.colorbar(image, ax=[ours, theirs], label="transfer score, colours cut off at 0 and 2", shrink=0.8)

    panels = list(middle.subplots(1, len(look.curves) + 1 + look.perturbation))
    for panel, pair in zip(panels, look.curves, strict=False):
        learning_curves(panel, runs, pair, look)
    panels[0].set(ylabel=look.y_label)
    _legend(panels[len(look.curves) - 1], loc="lower right")
    fisher_and_transfer(panels[len(look.curves)], runs)
    if look.perturbation:
        _fisher_and_perturbation(panels[-1], runs)

    by_layer = bottom.subplots(1, len(look.mapped), sharey=True, squeeze=False)[0]
    for panel, pair in zip(by_layer, look.mapped, strict=True):
        _layers(panel, runs, pair)
    bottom.suptitle("Average Fisher Sensitivity of progressive2 by layer and column; bars: its maps", fontsize="medium")
    return fig


def _legend(panel: Any, loc: str = "best") -> None:
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize="x-small", loc=loc)


def transfer_matrix(
    panel: Any,
    scores: Mapping[str, Mapping[Pair, float]],
    title: str,
    *,
    clipped_at: float = math.inf,
    sources: Mapping[str, Sequence[tuple[str, ...]]] = SOURCES,
    targets: Sequence[str] = TARGETS,
) -> Any:
    """A row for each arm and source, a column for each target; a score cut off says so."""
    import numpy as np

    names = [(arm, source_name(source)) for arm in scores for source in sources[arm]]
    table = np.array([[scores[arm].get((source, t), math.nan) for t in targets] for arm, source in names])
    image = panel.imshow(table, vmin=0, vmax=2, cmap="RdBu", aspect="auto")
    for (y, x), value in np.ndenumerate(table):
        if not math.isnan(value):
            text = f"{value:.2f}" if value < clipped_at else f"≥ {clipped_at:g}"
            colour = "white" if value < 0.35 or value > 1.65 else "black"
            panel.text(x, y, text, ha="center", va="center", fontsize=7.5, color=colour)
    panel.set_xticks(range(len(targets)), targets, rotation=45)
    panel.set_yticks(range(len(names)), [f"{SHORT[arm]} {source}" for arm, source in names])
    panel.set_title(title, fontsize="medium")
    panel.set_facecolor("0.9")
    return image


def learning_curves(panel: Any, runs: Sequence[Run], pair: Pair, look: Look) -> None:
    """Learning curves of all arms that have run, mean over seeds."""
    for arm in [arm for arm in ARMS if any(run.arm == arm for run in runs)]:
        found = [
            cell
            for run in runs
            if run.arm == arm
            for (source, target), cell in cells(run)
            if target == pair[1] and source in (pair[0], "none", "random", "noisy+hflip")
        ]
        label = f"{arm} (noisy+hflip)" if arm == "progressive3" else arm
        x, y = mean_curve(found, look.x, look.y)
        panel.plot(x, y, color=COLOURS[arm], label=label, lw=1.3)  # an arm without curve here: for the legend
    panel.set(xlabel=look.x_label, ylim=look.y_range)
    panel.set_title(f"{pair[0]} to {pair[1]}", fontsize="medium")


def fisher_and_transfer(
    panel: Any, runs: Sequence[Run], arms: Sequence[str] = ("progressive2", "progressive3")
) -> None:
    """The paper's Fig. 7, a point for each pair and seed."""
    import numpy as np

    everything = []
    known = scored(runs)
    for arm in arms:
        points = [
            (own_convolutions(cell), transfers(run, runs)[pair])
            for run in known
            if run.arm == arm
            for pair, cell in cells(run)
        ]
        if points:
            panel.plot(*zip(*points, strict=True), "o", ms=3, color=COLOURS[arm], label=arm)
        everything += points
    if not everything:
        panel.axis("off")
        return
    x, y = np.array(everything).reshape(-1, 2).T
    if len(set(x[np.isfinite(y)])) > 3:
        line = np.linspace(x.min(), x.max(), 50)
        fit = np.polyfit(x[np.isfinite(y)], y[np.isfinite(y)], 2)
        panel.plot(line, np.polyval(fit, line), color="grey", lw=1, label="quadratic fit")
    panel.axhline(1, color="grey", lw=0.5)
    panel.set(xlabel="AFS of the new column's\nconvolutions (mean)", ylabel="transfer")
    _legend(panel)


def _fisher_and_perturbation(panel: Any, runs: Sequence[Run]) -> None:
    """Share of old features by either measure, a point for each pair, layer and seed."""
    names = ("conv 1", "conv 2", "fc")
    found = [cell for run in runs if run.arm == "progressive2" for _, cell in cells(run)]
    for depth, name in enumerate(names):
        points = [(sum(cell["afs"][depth][:-1]), sum(cell["aps"][depth][:-1])) for cell in found]
        if points:
            panel.plot(*zip(*points, strict=True), "o", ms=2.5, label=name)
    panel.plot([0, 1], [0, 1], color="grey", lw=0.5)
    panel.set(xlabel="share of old features, AFS", ylabel="share of old features, APS")
    _legend(panel)


def _layers(panel: Any, runs: Sequence[Run], pair: Pair) -> None:
    """The paper's Fig. 5: a cell for each layer and column, coloured by AFS, with a bar for each map."""
    import numpy as np

    found = [
        cell for run in runs if run.arm == "progressive2" for own, cell in cells(run) if own == pair and "afs" in cell
    ]
    panel.set_title(f"{pair[0]} to {pair[1]}", fontsize="medium")
    if not found:
        panel.axis("off")
        return
    layers = np.mean([cell["afs"] for cell in found], axis=0)
    panel.imshow(layers, vmin=0, vmax=1.6, cmap="Blues", aspect="auto")
    for depth, (old, new) in enumerate(layers):
        for column, value in enumerate((old, new)):
            panel.text(column + 0.45, depth - 0.42, f"{value:.2f}", ha="right", va="top", fontsize="small")
    maps = found[0]["afs_maps"]  # of one seed: maps of different nets have nothing to do with each other
    for depth, columns in enumerate(maps):
        largest = max(max(column) for column in columns) or 1.0
        for column, values in enumerate(columns):
            x = column - 0.45 + 0.9 * (np.arange(len(values)) + 0.5) / len(values)
            panel.bar(
                x,
                -0.6 * np.array(values) / largest,
                bottom=depth + 0.48,
                width=0.8 / len(values),
                color="tab:red",
            )
    panel.set_xticks((0, 1), (f"old: {pair[0]}", f"new: {pair[1]}"))
    panel.set_yticks(range(len(layers)), [*(f"conv {k + 1}" for k in range(len(layers) - 1)), "fc"])
