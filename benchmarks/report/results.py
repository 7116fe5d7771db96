"""`python -m benchmarks report`: RESULTS.md and the figures, made from the stored runs and nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.harness.experiment import (
    SCALES,
    Row,
    Run,
    differing,
    write_atomically,
)
from benchmarks.harness.jobs import RESULTS, ROOT
from benchmarks.harness.registry import experiment_names, find_experiment
from benchmarks.report.readme import summary, write_readme

README = ROOT / "README.md"
HEADER = """# Results

Made by `python -m benchmarks report` from the runs in this folder (one JSON file each); do not edit. A run is measured
by `python -m benchmarks run NAME --scale SCALE --seeds N`.

*measured* is the mean over seeds ± its standard error; *minutes* is the mean wall time of one run. A target for a
single arm is met when the mean over at least 3 seeds reaches it, and undecided while fewer seeds do. A difference of
two arms, over the seeds both have, is met or missed when its 95 % t interval says so and else undecided. Accuracies are
fractions of the test set unless a row says otherwise.
"""


def load_runs(results: Path) -> dict[tuple[str, str], list[Run]]:
    """All runs below `results` by experiment and scale (without smoke runs), arms and seeds in order."""
    found: dict[tuple[str, str], list[Run]] = {}
    for name in experiment_names():
        for scale in SCALES[1:]:
            runs = load_scale(results, name, scale)
            if runs:
                found[name, scale] = runs
    return found


def load_scale(results: Path, name: str, scale: str) -> list[Run]:
    """Runs of one experiment at one scale, by arm and seed; a ValueError names settings in which they differ."""
    paths = sorted((results / name / scale).glob("*.json"))
    runs = [Run.load(path) for path in paths]
    for path, run in zip(paths, runs, strict=True):
        if other := differing(run.conditions, runs[0].conditions):
            raise ValueError(
                f"{path} and {paths[0].name} were measured with different settings ({', '.join(other)}), which one "
                "table must not mix; measure one of them again with --overwrite, or keep them apart with --out"
            )
    return sorted(runs, key=lambda run: (run.arm, run.seed))


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Rows of the runs of one experiment at one scale."""
    return find_experiment(runs[0].experiment).rows(runs)


def results_text(found: dict[tuple[str, str], list[Run]]) -> str:
    """RESULTS.md, the same for the same runs."""
    rows = {key: rows_of(runs) for key, runs in found.items()}
    judged = [row for some in rows.values() for row in some if row.met]
    count = Counter(row.met for row in judged)
    parts = [HEADER]
    parts.append(
        f"Targets: {len(judged)}; met {count['met']}, missed {count['missed']}, undecided {count['undecided']}.\n"
    )
    parts += [
        f"- {row.met}: {row.experiment} ({row.scale}), {row.arm}, {row.metric}: {measured(row)}, target {row.target}"
        for row in judged
        if row.met != "met"
    ]
    without = [name for name in experiment_names() if not any(name == key[0] for key in found)]
    if without:
        parts.append(f"\nNot measured yet: {', '.join(without)}.")
    for (name, scale), runs in found.items():
        parts.append(_section(name, scale, runs, rows[name, scale]))
    return "\n".join(parts).rstrip() + "\n"


def _section(name: str, scale: str, runs: Sequence[Run], rows: Sequence[Row]) -> str:
    lines = [f"\n## {find_experiment(name).title}\n", f"`{name}`, scale `{scale}`, data: {_all(runs, 'data')}\n"]
    lines.append("| arm | metric | paper | measured | seeds | target | met | minutes | deviation |")
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row)) + " |" for row in rows]
    lines.append(f"\n![{name}]({figure_name(name, scale)})\n")
    lines.append(f"{_method(find_experiment(name).description)}\n")
    lines.append(f"Settings: {_settings(runs[0])}.\n")
    packages = sorted({package for run in runs for package in run.versions})
    versions = ", ".join(
        f"{package} {'/'.join(sorted({run.versions.get(package, 'unknown') for run in runs}))}" for package in packages
    )
    dates = sorted({run.date[:10] for run in runs})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    lines.append(
        f"{len(runs)} runs, {when}, {sum(run.seconds for run in runs) / 60:.1f} minutes in all; "
        f"device {_all(runs, 'device')}, threads {_all(runs, 'threads')}; {versions}; commit {_all(runs, 'commit')}."
    )
    return "\n".join(lines)


def _method(description: str) -> str:
    """What we do and how it departs from the paper: the description from there on, each part a paragraph."""
    text = description[max(0, description.find("What we do:")) :]
    return " ".join(text.split()).replace(" Deviations:", "\n\nDeviations:")


def cells(row: Row) -> list[str]:
    """A row as text: arm, metric, paper, measured, seeds, target, met, minutes, deviation."""
    return [
        row.arm,
        row.metric,
        "" if row.paper is None else number(row.paper),
        measured(row),
        str(row.seeds),
        row.target or "",
        f"**{row.met}**" if row.met == "missed" else row.met or "",
        "" if row.minutes is None else f"{row.minutes:.1f}",
        row.note,
    ]


def measured(row: Row) -> str:
    """Mean ± standard error, or that there is none."""
    if row.mean is None:
        return "not run"
    return number(row.mean) if row.stderr is None else f"{number(row.mean)} ± {row.stderr:.2g}"


def number(value: float) -> str:
    """Four digits; what is exactly nothing shows it."""
    return f"{value:.4g}" if value else "0.0000"


def figure_name(name: str, scale: str) -> str:
    """File of an experiment's figure; the cpu scale has the plain name."""
    return f"{name}.png" if scale == "cpu" else f"{name}-{scale}.png"


def rich_table(rows: Sequence[Row], title: str) -> Table:
    """Rows for the terminal."""
    table = Table(title=title, title_justify="left")
    for column in ("arm", "metric", "paper", "measured", "seeds", "target", "met", "minutes"):
        table.add_column(column, justify="left" if column in ("arm", "metric") else "right", overflow="fold")
    colours = {"met": "green", "missed": "red", "undecided": "yellow"}
    for row in rows:
        texts = cells(row)[:8]
        if row.met:
            texts[6] = f"[{colours[row.met]}]{row.met}[/]"
        table.add_row(*texts)
    return table


def report(results: Path, *, as_json: bool, console: Console) -> int:
    """Print every row; unless `as_json`, also write RESULTS.md and the figures into `results`."""
    found = load_runs(results)
    if as_json:
        rows = [dataclasses.asdict(row) for runs in found.values() for row in rows_of(runs)]
        print(json.dumps(rows, indent=1))
        return 0
    if not found:
        console.print(f"No runs in {results}; `python -m benchmarks run NAME` makes some.", highlight=False)
        return 0
    for (name, scale), runs in found.items():
        console.print(rich_table(rows_of(runs), f"{name}, {scale} ({runs[0].data})"))
        figure = find_experiment(name).figure(runs)
        figure.savefig(results / figure_name(name, scale), dpi=120, metadata={"Software": None})
    write_atomically(results / "RESULTS.md", results_text(found).encode())
    console.print(f"Wrote {results / 'RESULTS.md'} and {len(found)} figures.", highlight=False)
    if results.resolve() == RESULTS.resolve():
        write_readme(README, summary((row for runs in found.values() for row in rows_of(runs)), RESULTS / "perf.json"))
        console.print("Wrote the results section of README.md.", highlight=False)
    return 0


def _all(runs: Sequence[Run], field: str) -> str:
    return ", ".join(sorted({str(getattr(run, field)) for run in runs}))


def _settings(run: Run) -> str:
    return ", ".join(f"`{name} {json.dumps(value)}`" for name, value in run.settings.items())
