"""The results section of the README: a few rows that say how the reproduction went, misses included."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.harness.experiment import Row
from benchmarks.report.table import measured, number, verdict

START = "<!-- results: written by `python -m benchmarks report` -->"
END = "<!-- end of results -->"

HEADLINES = {
    ("ewc-fig2b", "ewc", "mean after 10 tasks"): ("EWC, Fig. 2B", "accuracy on ten permutations of MNIST"),
    ("ewc-fig2b", "ewc - sgd", "mean after 10 tasks"): ("EWC, Fig. 2B", "the same, above plain training's"),
    ("ewc-atari", "oracle - none", "score a game at the end"): (
        "EWC, Fig. 3A",
        "score a game above plain training's (1: an agent of its own); MinAtar, not Atari",
    ),
    ("rl-classic", "ewc - finetune", "return at the end"): (
        "ours",
        "EWC on three CartPoles: return above plain training's, of 500",
    ),
    ("progressive-split-cifar100", "progressive", "forgetting"): (
        "Progressive",
        "Progressive Networks on Split CIFAR-100: accuracy lost",
    ),
    ("progressive-split-cifar100", "progressive - independent", "mean accuracy at the end"): (
        "ours",
        "the same: accuracy above that of a net a task",
    ),
    ("progressive-soup", "baseline4 - baseline1", "mean transfer"): (
        "Progressive, Table 1",
        "transfer from a random frozen column; variants of digits, not of Pong",
    ),
    ("dgr-classes", "gr", "accuracy after 5 tasks"): ("DGR, Fig. 6", "accuracy on ten digits, two new ones a task"),
    ("dgr-chain", "gr", "solver 5"): (
        "DGR, Table 1",
        "accuracy of the fifth solver of a chain",
    ),
    ("den-mnist-variation", "den - stl", "AUROC"): ("DEN, Fig. 3", "AUROC above that of a net a task"),
    ("den-mnist-variation", "selective", "times faster than plain"): (
        "DEN, Fig. 4",
        "selective retraining: times faster than full retraining",
    ),
}
"""(experiment, arm, metric) of the rows to show, at scale cpu -> the paper's figure, and what was measured."""


def summary(rows: Iterable[Row]) -> str:
    """Return the section's Markdown.

    Args:
        rows: of all experiments and scales.

    Raises:
        ValueError: A headline's row is not among them.
    """
    found = {(row.experiment, row.arm, row.metric): row for row in rows if row.scale == "cpu"}
    lines = ["| figure | what | paper | measured | seeds | target |", "| --- | --- | --- | --- | --- | --- |"]
    for key, (figure, what) in HEADLINES.items():
        if key not in found:
            name, arm, metric = key
            raise ValueError(
                f"the README shows the row {arm!r}, {metric!r} of {name}, which is not there: run "
                f"`python -m benchmarks run {name} --scale cpu`, or change HEADLINES in benchmarks/report/readme.py"
            )
        row = found[key]
        paper = "" if row.paper is None else number(row.paper)
        judged = f"{row.target}: {verdict(row.met)}" if row.met else ""
        cells = (figure, what, paper, measured(row), str(row.seeds), judged)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def readme_with(readme: Path, text: str) -> str:
    """Return the README with the section between its two marks; a ValueError says when they are missing."""
    old = readme.read_text()
    before, start, rest = old.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{readme} lacks the lines {START!r} and {END!r}, between which the results go")
    return f"{before}{START}\n\n{text}\n\n{END}{after}"
