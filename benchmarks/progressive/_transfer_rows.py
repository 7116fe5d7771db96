"""Rows of the tables of Pong Soup, on digits and on Pong: transfer beside the paper's, and reused features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean, median
from typing import Any

from benchmarks.harness.experiment import Row, Run
from benchmarks.harness.papers import in_paper, paper
from benchmarks.progressive._transfer_cells import (
    SOURCES,
    TARGETS,
    Pair,
    cells,
    is_flipped,
    mean_transfers,
    scored,
    source_name,
    source_share,
    transfers,
)
from benchmarks.report.table import mean_row, paired_row

ORDER = (
    ("progressive2", "baseline3"),
    ("baseline3", "baseline4"),
    ("baseline4", "baseline1"),
    ("baseline1", "baseline2"),
)
"""Expected order of mean transfer, the better one first."""


def soup_rows(runs: Sequence[Run]) -> list[Row]:
    """Transfer beside Table 1, the expected order, the matrix of Fig. 4, and what the sensitivities say."""
    numbers = paper("progressive")
    known = scored(runs)
    if not known:
        return sensitivity_rows(runs)

    def shared(run: Run) -> float:
        """Mean over the pairs that progressive3 has, too: targets other than its two sources."""
        return fmean(v for (_, target), v in transfers(run, runs).items() if target not in ("noisy", "hflip"))

    table = [*table1_rows(known, numbers["table1"]["soup"]), *order_rows(known, ORDER)]
    table.append(
        paired_row(
            known,
            "progressive3",
            "progressive2",
            "mean transfer to the targets of both",
            value=shared,
            paper=None,
            target=(">=", 0.0),
            note="the paper's figure is clipped; unclipped over different targets it is 0.13",
        )
    )
    flipped = [
        v for s, targets in numbers["soup"]["baseline2"].items() for t, v in targets.items() if is_flipped((s, t))
    ]
    table.append(
        mean_row(
            known,
            "baseline2",
            "mean transfer where source and target are mirrored otherwise",
            value=lambda run: fmean(v for pair, v in transfers(run, runs).items() if is_flipped(pair)),
            paper=round(fmean(flipped), 3),
            target=("<=", 0.5),
        )
    )
    return [*table, *matrix_rows(known, SOURCES), *sensitivity_rows(runs)]


def table1_rows(
    runs: Sequence[Run],
    printed: Mapping[str, Mapping[str, float]],
    *,
    sources: Mapping[str, Sequence[tuple[str, ...]]] = SOURCES,
    targets: Sequence[str] = TARGETS,
) -> list[Row]:
    """Mean and median transfer of each arm over its pairs, beside Table 1; none without runs of baseline 1.

    Args:
        runs: All of them.
        printed: The paper's "mean" and "median" by arm; the arms to show.
        sources: The paper's, of each arm; the note says how many of the pairs were measured where not all are.
        targets: The paper's.
    """
    known = scored(runs)
    if not known:
        return []
    table = []
    for arm, numbers in printed.items():
        whole = sum(target not in source for source in sources[arm] for target in targets)
        measured = len(mean_transfers(known, arm))
        note = f"{measured} of the paper's {whole} pairs" if 0 < measured < whole else ""
        for name, middle in (("mean", fmean), ("median", median)):
            value = partial(_over_pairs, runs=known, middle=middle)
            table.append(mean_row(known, arm, f"{name} transfer", value=value, paper=numbers[name], note=note))
    return table


def order_rows(runs: Sequence[Run], order: Sequence[tuple[str, str]]) -> list[Row]:
    """Differences of mean transfer that the paper has a sign for, the better arm first.

    The paper's are from Table 1 or, where not all pairs were measured, from Fig. 4a's cells of those that were.
    """
    known = scored(runs)
    if not known:
        return []
    return [
        paired_row(
            known,
            better,
            worse,
            "mean transfer",
            value=partial(_over_pairs, runs=known, middle=fmean),
            paper=round(_printed_mean(known, better) - _printed_mean(known, worse), 2),
            target=(">=", 0.0),
        )
        for better, worse in order
    ]


def matrix_rows(runs: Sequence[Run], sources: Mapping[str, Sequence[tuple[str, ...]]]) -> list[Row]:
    """A row for each arm and source of Fig. 4a."""
    known = scored(runs)
    shown = [(arm, source_name(source)) for arm in sources if arm != "baseline1" for source in sources[arm]]
    return [_matrix_row(known, arm, source) for arm, source in shown] if known else []


def _over_pairs(run: Run, runs: Sequence[Run], middle: Any) -> float:
    return middle(transfers(run, runs).values())


def _printed_mean(runs: Sequence[Run], arm: str) -> float:
    """The paper's mean transfer of an arm over the pairs that were measured."""
    numbers = paper("progressive")
    printed: dict[Pair, float] = {}
    for source, row in numbers["soup"].get(arm, {}).items():
        printed |= {(source, target): score for target, score in row.items()}
    measured = mean_transfers(runs, arm).keys() & printed.keys()
    if not measured or len(measured) == len(printed):
        return numbers["table1"]["soup"][arm]["mean"]
    return fmean(printed[pair] for pair in measured)


def _matrix_row(runs: Sequence[Run], arm: str, source: str) -> Row:
    """Mean over targets of one row of the transfer matrix; its cells in the note."""
    theirs = in_paper(paper("progressive"), "soup", arm, source) or {}
    found = {target: score for (s, target), score in mean_transfers(runs, arm).items() if s == source}
    cells_text = ", ".join(f"{t} {v:.2f}" + (f" ({theirs[t]:.2f})" if t in theirs else "") for t, v in found.items())
    shown = [score for target, score in theirs.items() if not found or target in found]
    return mean_row(
        runs,
        arm,
        f"transfer from {source}",
        value=lambda run: fmean(v for (s, _), v in transfers(run, runs).items() if s == source),
        paper=round(fmean(shown), 2) if shown else None,
        note=f"ours (paper, clipped at 2): {cells_text}" if cells_text else "",
    )


def sensitivity_rows(runs: Sequence[Run], *, perturbation: bool = True) -> list[Row]:
    """The paper's findings on which features are reused (Fig. 5), and, if measured, AFS beside APS (Fig. 9)."""

    def reuse(run: Run, pair: tuple[str, str], depth: int, less: tuple[tuple[str, str], int]) -> float:
        return source_share(run, pair, depth) - source_share(run, *less)

    def agreement(run: Run) -> float:
        from scipy.stats import spearmanr

        both = [(sum(f[:-1]), sum(p[:-1])) for _, c in cells(run) for f, p in zip(c["afs"], c["aps"], strict=True)]
        return float(spearmanr(*zip(*both, strict=True)).statistic)

    measured = {pair for run in runs if run.arm == "progressive2" for pair, _ in cells(run)}
    findings = {
        "conv 2 minus fc, base to hflip": (("base", "hflip"), 1, (("base", "hflip"), 2)),
        "conv 1 minus conv 2, base to zoom": (("base", "zoom"), 0, (("base", "zoom"), 1)),
        "conv 1, noisy to base minus base to noisy": (("noisy", "base"), 0, (("base", "noisy"), 0)),
    }
    table = [
        mean_row(
            runs,
            "progressive2",
            f"share of old features (AFS): {what}",
            value=partial(reuse, pair=pair, depth=depth, less=less),
            target=(">=", 0.0),
        )
        for what, (pair, depth, less) in findings.items()
        if not measured or {pair, less[0]} <= measured
    ]
    if not perturbation:
        return table
    table.append(
        mean_row(
            runs,
            "progressive2",
            "rank correlation of AFS and APS over pairs and layers",
            value=agreement,
            target=(">=", 0.8),
            note="Spearman, shares of old features; the paper says that the two agree",
        )
    )
    return table
