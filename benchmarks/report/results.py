"""`python -m benchmarks report`: RESULTS.md and the figures, made from the stored runs and nothing else."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks.harness.experiment import Row, Run
from benchmarks.harness.files import check_folder, write_atomically
from benchmarks.harness.jobs import RESULTS, ROOT
from benchmarks.harness.names import counted, did_you_mean
from benchmarks.harness.registry import experiment_names, find_experiment
from benchmarks.harness.stored import load_runs, made_of, rows_of, smoke_only, strangers
from benchmarks.report.formats import COLUMNS, FORMS, cells, rich_table
from benchmarks.report.overview import PANELS, overview
from benchmarks.report.readme import readme_with, summary
from benchmarks.report.speed import speed
from benchmarks.report.table import measured, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

README = ROOT / "README.md"
HEADER = """# Results

Made by `python -m benchmarks report` from the runs in this folder (one JSON file each); do not edit. A run is measured
by `python -m benchmarks run NAME --scale SCALE --seeds N`.

*measured* is the mean over seeds ± its standard error; *minutes* is the mean wall time of one run. A target for a
single arm is met when the mean over at least 3 seeds reaches it, and undecided while fewer seeds do. A difference of
two arms, over the seeds both have, is met or missed when its 95 % t interval says so and else undecided. Accuracies are
fractions of the test set unless a row says otherwise.
"""


def results_text(found: dict[tuple[str, str], list[Run]], perf: Path | None = None) -> str:
    """RESULTS.md, the same for the same runs; with the table of speed where the file `perf` is there."""
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
    if perf is not None and perf.exists():
        parts.append(f"\n{speed(perf)}")
    return "\n".join(parts).rstrip() + "\n"


def _section(name: str, scale: str, runs: Sequence[Run], rows: Sequence[Row]) -> str:
    lines = [f"\n## {find_experiment(name).title}\n", f"`{name}`, scale `{scale}`, data: {_all(runs, 'data')}\n"]
    lines.append("| arm | metric | paper | measured | seeds | target | met | minutes | deviation |")
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        texts = [text.replace("|", "\\|") for text in cells(row)]
        texts[COLUMNS.index("met")] = verdict(row.met)
        lines.append(f"| {' | '.join(texts)} |")
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


def figure_name(name: str, scale: str) -> str:
    """File of an experiment's figure; the cpu scale has the plain name."""
    return f"{name}.png" if scale == "cpu" else f"{name}-{scale}.png"


def report(results: Path, *, out: Path, console: Console) -> int:
    """Print every row, and write RESULTS.md and the figures into `out`; nothing where anything is wrong."""
    found = load_runs(results)
    for line in remarks(results, found):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if not found:
        return 0
    check_folder(out, "--out")
    files: dict[Path, bytes] = {}
    for (name, scale), runs in found.items():
        draw = partial(_png, find_experiment(name).figure)
        files[out / figure_name(name, scale)] = made_of(runs, results, "the figure", draw)
    for panel in PANELS:
        if shown := found.get((panel.experiment, "cpu")):
            made_of(shown, results, "the overview", panel.curves)
    if picture := _png(overview, found):
        files[out / "overview.png"] = picture
    rows = {key: rows_of(runs, results) for key, runs in found.items()}
    files[out / "RESULTS.md"] = results_text(found, results / "perf.json").encode()
    if out.resolve() == results.resolve() == RESULTS.resolve():
        every = (row for some in rows.values() for row in some)
        files[README] = readme_with(README, summary(every)).encode()
    for (name, scale), some in rows.items():
        console.print(rich_table(some, f"{name}, {scale} ({found[name, scale][0].data})"))
    for path, content in files.items():
        write_atomically(path, content)
    figures = counted(sum(path.suffix == ".png" for path in files), "figure")
    console.print(f"Wrote {out / 'RESULTS.md'} and {figures}.", highlight=False, soft_wrap=True)
    if README in files:
        console.print("Wrote the results section of README.md.", highlight=False)
    return 0


def print_rows(results: Path, form: str, console: Console) -> int:
    """Print every row in one of `FORMS`, and write nothing; remarks go to `console`."""
    found = load_runs(results)
    for line in remarks(results, found):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    print(FORMS[form]([row for runs in found.values() for row in rows_of(runs, results)]))
    return 0


def remarks(results: Path, found: Mapping[tuple[str, str], Sequence[Run]]) -> list[str]:
    """Say what is in the folder and not in the report, or that nothing is."""
    smoke = smoke_only(results)
    names = experiment_names()
    lines = [
        f"{results / own} is left out: no experiment has that name{did_you_mean(own, names)}"
        for own in strangers(results)
    ]
    if smoke:
        lines.append(f"Only smoke runs found in {results} of {', '.join(smoke)}, which are no results.")
    elif not found:
        lines.append(f"No runs in {results}; `python -m benchmarks run NAME` makes some.")
    return lines


def _png(figure: Callable[[Any], Figure | None], runs: Any) -> bytes:
    content = io.BytesIO()
    if drawn := figure(runs):
        drawn.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()


def _all(runs: Sequence[Run], field: str) -> str:
    return ", ".join(sorted({str(getattr(run, field)) for run in runs}))


def _settings(run: Run) -> str:
    return ", ".join(f"`{name} {json.dumps(value)}`" for name, value in run.settings.items())
