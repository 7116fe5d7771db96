"""The results section of the README: rows that have a target, and speed, from the files in results/ alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.harness.experiment import Row
from benchmarks.harness.files import blaming
from benchmarks.report.table import measured, number

START = "<!-- results: written by `python -m benchmarks report` -->"
END = "<!-- end of results -->"


def summary(rows: Iterable[Row], perf: Path) -> str:
    """Return the section's Markdown.

    Args:
        rows: of all experiments; those with a target are shown.
        perf: the file that `python -m benchmarks perf` writes; left out where it is missing.
    """
    lines = [
        "| experiment | arm | metric | paper | measured | seeds | target | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if row.target:
            paper = "" if row.paper is None else number(row.paper)
            cells = (f"`{row.experiment}`", row.arm, row.metric, paper, measured(row), str(row.seeds), row.target)
            lines.append(f"| {' | '.join(cells)} | {_verdict(row.met)} |")
    if perf.exists():
        with blaming(perf, "is not what `python -m benchmarks perf` writes", "run that again, or remove it"):
            lines += _speed(json.loads(perf.read_text()))
    return "\n".join(lines)


def _speed(record: Any) -> list[str]:
    """Lines on speed, from what perf has written."""
    lines = [
        "",
        f"Speed in seconds, permuted MNIST, 784-400-400-10, batch 128, {record['threads']} threads, medians of "
        f"{record['rounds']} rounds in one run (`python -m benchmarks perf`):",
        "",
        "| what | measured | ratio | of | target | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for line in record["lines"]:
        ratio = "" if line["ratio"] is None else f"{line['ratio']:.2f}"
        verdict = _verdict({None: None, True: "met", False: "missed"}[line["met"]])
        fields = (line["what"], number(line["seconds"]), ratio, line["against"], line["target"], verdict)
        lines.append(f"| {' | '.join(fields)} |")
    return lines


def readme_with(readme: Path, text: str) -> str:
    """Return the README with the section between its two marks; a ValueError says when they are missing."""
    old = readme.read_text()
    before, start, rest = old.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{readme} lacks the lines {START!r} and {END!r}, between which the results go")
    return f"{before}{START}\n\n{text}\n\n{END}{after}"


def _verdict(met: str | None) -> str:
    return {None: "", "met": "met", "missed": "**missed**", "undecided": "undecided"}[met]
