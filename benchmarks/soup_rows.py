"""Rows of the table of `progressive-soup`: transfer beside the paper's, its order, and which features are reused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean, median

from benchmarks.experiment import Row, Run
from benchmarks.papers import paper
from benchmarks.soup_cells import (
    ARMS,
    SOURCES,
    cells,
    is_flipped,
    mean_transfers,
    scored,
    source_name,
    source_share,
    transfers,
)
from benchmarks.table import mean_row, paired_row

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
        return _sensitivity_rows(runs)

    def mean(run: Run) -> float:
        return fmean(transfers(run, runs).values())

    def shared(run: Run) -> float:
        """Mean over the pairs that progressive3 has, too: targets other than its two sources."""
        return fmean(v for (_, target), v in transfers(run, runs).items() if target not in ("noisy", "hflip"))

    table = []
    for arm in ARMS:
        printed = numbers["table1"]["soup"][arm]
        table.append(mean_row(known, arm, "mean transfer", value=mean, paper=printed["mean"]))
        table.append(
            mean_row(
                known,
                arm,
                "median transfer",
                value=lambda run: median(transfers(run, runs).values()),
                paper=printed["median"],
            )
        )
    for better, worse in ORDER:
        difference = numbers["table1"]["soup"][better]["mean"] - numbers["table1"]["soup"][worse]["mean"]
        table.append(
            paired_row(
                known, better, worse, "mean transfer", value=mean, paper=round(difference, 2), target=(">=", 0.0)
            )
        )
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
    for arm in ARMS[1:]:
        table += [_matrix_row(known, arm, source_name(source)) for source in SOURCES[arm]]
    return table + _sensitivity_rows(runs)


def _matrix_row(runs: Sequence[Run], arm: str, source: str) -> Row:
    """Mean over targets of one row of the transfer matrix; its cells in the note."""
    printed = paper("progressive")["soup"][arm][source]
    found = {target: score for (s, target), score in mean_transfers(runs, arm).items() if s == source}
    cells_text = ", ".join(f"{t} {v:.2f} ({printed[t]:.2f})" for t, v in found.items())
    return mean_row(
        runs,
        arm,
        f"transfer from {source}",
        value=lambda run: fmean(v for (s, _), v in transfers(run, runs).items() if s == source),
        paper=round(fmean(printed.values()), 2),
        note=f"ours (paper, clipped at 2): {cells_text}" if cells_text else "",
    )


def _sensitivity_rows(runs: Sequence[Run]) -> list[Row]:
    """The paper's findings on which features are reused (Fig. 5), and AFS beside APS (Fig. 9)."""

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
