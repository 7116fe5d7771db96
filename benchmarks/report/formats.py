"""Rows in the forms in which they are shown: cells of text, a table on the terminal, JSON, CSV and LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from rich.markup import escape
from rich.table import Table

from benchmarks.harness.experiment import Row
from benchmarks.report.table import measured, number

COLUMNS = ("arm", "metric", "paper", "measured", "seeds", "target", "met", "minutes")


def cells(row: Row) -> list[str]:
    """A row as text, in the order of `COLUMNS`, and its note."""
    return [
        row.arm,
        row.metric,
        "" if row.paper is None else number(row.paper),
        measured(row),
        str(row.seeds),
        row.target or "",
        row.met or "",
        "" if row.minutes is None else f"{row.minutes:.1f}",
        row.note,
    ]


def rich_table(rows: Sequence[Row], title: str) -> Table:
    """Rows for the terminal."""
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in COLUMNS[:2] else "right", overflow="fold")
    colours = {"met": "green", "missed": "red", "undecided": "yellow"}
    for row in rows:
        texts = [escape(text) for text in cells(row)[: len(COLUMNS)]]
        if row.met:
            texts[COLUMNS.index("met")] = f"[{colours[row.met]}]{row.met}[/]"
        table.add_row(*texts)
    return table


def as_json(rows: Sequence[Row]) -> str:
    """All fields of all rows; null for a number that there is none of, or that is not finite."""
    return json.dumps([_fields(row) for row in rows], indent=1, allow_nan=False)


def as_csv(rows: Sequence[Row]) -> str:
    """All fields of all rows under their names; empty where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_fields, rows))
    return text.getvalue().rstrip("\n")


def as_latex(rows: Sequence[Row]) -> str:
    """A table for each experiment and scale, with the rules of the package booktabs."""
    tables = []
    for (name, scale), own in groupby(rows, key=lambda row: (row.experiment, row.scale)):
        lines = [
            f"% {name}, {scale}",
            r"\begin{tabular}{llrrrlrr}",
            r"\toprule",
            f"{' & '.join(COLUMNS)} \\\\",
            r"\midrule",
            *(f"{' & '.join(_latex(text) for text in cells(row)[: len(COLUMNS)])} \\\\" for row in own),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


FORMS: dict[str, Callable[[Sequence[Row]], str]] = {"json": as_json, "csv": as_csv, "latex": as_latex}


def _fields(row: Row) -> dict[str, Any]:
    """A row's fields by name, None where a number is not finite."""
    fields = dataclasses.asdict(row)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
}


def _latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)
