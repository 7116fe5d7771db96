"""Normalised scores of agents that learn games in turn (Kirkpatrick et al. 2017), and `ewc-atari`'s table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchmarks.harness.experiment import Row, Run
from benchmarks.harness.papers import paper
from benchmarks.harness.search import best, edge_note, tried
from benchmarks.report.table import mean_row, paired_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("inferred", "oracle", "none", "separate")


def last_round(run: Run, game: str) -> float:
    """Mean return on a game over the evaluations after the visits of the last round."""
    values = run.measurements["returns"][game]
    return fmean(values[-len(run.measurements["returns"]) :])


def references(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    """By game what is 0, random play, and what is 1: a person's score, or for MinAtar what separate agents reach.

    A game that separate agents have not learnt, or that none has been trained on, has none.
    """
    printed: dict[str, tuple[float, float]] = {}
    for run in runs:
        printed |= {game: (low, high) for game, (low, high) in run.measurements["printed"].items()}
    if printed:
        return printed
    found: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        if run.arm == "separate":
            for game, low in run.measurements["random"].items():
                found.setdefault(game, []).append((low, last_round(run, game)))
    means = {game: (fmean(low for low, _ in both), fmean(high for _, high in both)) for game, both in found.items()}
    return {game: (low, high) for game, (low, high) in means.items() if high > low}


def scores(run: Run, scale: Mapping[str, tuple[float, float]]) -> list[float]:
    """Total score after each visit, divided by the number of games; each game's score is clipped above at 1."""
    games = [game for game in run.measurements["returns"] if game in scale]
    each = [
        [min(1.0, (value - scale[game][0]) / (scale[game][1] - scale[game][0])) for value in values]
        for game, values in run.measurements["returns"].items()
        if game in games
    ]
    return [fmean(values) for values in zip(*each, strict=True)]


def final_score(run: Run, scale: Mapping[str, tuple[float, float]]) -> float:
    """Mean over the last round."""
    return fmean(scores(run, scale)[-len(run.measurements["returns"]) :])


def final_total(run: Run) -> float:
    """Sum over games of the last round's returns above random play, each relative to it: for choosing lambda."""
    random = run.measurements["random"]
    return sum(last_round(run, game) / max(abs(low), 0.5) for game, low in random.items())


def game_rows(runs: Sequence[Run]) -> list[Row]:
    """Scores at the end and what EWC adds; then returns by game, and how games were recognised."""
    printed = paper("ewc")["fig3b"]
    scale = references(runs)
    found = tried(runs, "oracle", final_total)
    note = ""
    if found:
        chosen = best(runs, "oracle", final_total)
        note = f"lambda {chosen:g}, searched: {', '.join(f'{v:g}' for v in found)}{edge_note(chosen, found)}"
    own = [run for run in runs if run.arm in ARMS]
    table = []
    if scale:
        score = partial(final_score, scale=scale)
        for arm in ARMS:
            ends = printed["end"].get(arm)
            table.append(
                mean_row(
                    runs,
                    arm,
                    "score a game at the end",
                    value=score,
                    paper=None if ends is None else round(ends / printed["games"], 3),
                    note=note if arm == "oracle" else "",
                )
            )
        for better, worse in (("oracle", "none"), ("inferred", "none"), ("oracle", "inferred"), ("separate", "oracle")):
            target = (">=", 0.0) if worse == "none" else None
            table.append(paired_row(own, better, worse, "score a game at the end", value=score, target=target))
    for name in ("contexts", "purity"):
        table.append(mean_row(runs, "inferred", name))
    games = sorted({game for run in own for game in run.measurements["returns"]})
    for game in games:
        for arm in ARMS:
            with_game = [run for run in runs if game in run.measurements["returns"]]
            table.append(mean_row(with_game or runs, arm, f"return, {game}", value=partial(last_round, game=game)))
    return table


def game_figure(runs: Sequence[Run]) -> Figure:
    """Score over visits beside the paper's Fig. 3B, and the returns on each game."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    printed, scale = paper("ewc")["fig3b"], references(runs)
    own = [run for run in runs if run.arm in ARMS]
    games = sorted({game for run in own for game in run.measurements["returns"]})[:4]
    fig = Figure(figsize=(3.4 * max(2, len(games)), 6), layout="constrained")
    parts: Any = fig.subfigures(2, 1)
    top, bottom = parts
    ours, theirs = top.subplots(1, 2, sharey=True)
    panels = bottom.subplots(1, max(1, len(games)), squeeze=False)[0]
    for color, arm in enumerate(ARMS):
        seeds = [run for run in own if run.arm == arm]
        if scale and seeds:
            curve = [fmean(values) for values in zip(*(scores(run, scale) for run in seeds), strict=False)]
            ours.plot(range(1, len(curve) + 1), curve, "o-", color=f"C{color}")
        if arm in printed:
            heights = [value / printed["games"] for value in printed[arm]]
            theirs.plot([x / 1e6 for x in printed["frames"]], heights, "o-", color=f"C{color}")
        for panel, game in zip(panels, games, strict=False):
            lines = [run.measurements["returns"][game] for run in seeds if game in run.measurements["returns"]]
            if lines:
                means = [fmean(values) for values in zip(*lines, strict=False)]
                panel.plot(range(1, len(means) + 1), means, "o-", color=f"C{color}")
    ours.set(xlabel="visits so far", ylabel="score a game", title=f"measured, {runs[0].settings['data']}")
    theirs.set(xlabel="million frames", title="paper, Atari")
    theirs.legend(handles=[Line2D([], [], marker="o", color=f"C{k}", label=arm) for k, arm in enumerate(ARMS)])
    for panel, game in zip(panels, games, strict=False):
        panel.set(xlabel="visits so far", title=game)
    panels[0].set_ylabel("return in evaluation")
    return fig
