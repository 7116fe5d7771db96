"""The papers' experiments from the command line.

python -m benchmarks list [-v]       experiments, their arms, and the minutes they take
python -m benchmarks demo            EWC against plain training on permuted digits, in about a minute
python -m benchmarks run NAME        run an experiment; `run NAME --help` shows its settings
python -m benchmarks report          make RESULTS.md and the figures from all runs; --json prints every row
python -m benchmarks perf            speed, ours against Avalanche's and a bare PyTorch loop
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

BENCH = {"joblib", "matplotlib", "rich", "scipy", "sklearn", "tyro"}


def list_experiments(arguments: Sequence[str], console: Console) -> int:
    """Experiments with arms and estimated minutes."""
    from rich.table import Table

    from benchmarks.harness.experiment import SCALES
    from benchmarks.harness.registry import experiment_names, find_experiment

    parser = argparse.ArgumentParser(prog="python -m benchmarks list", description="List the experiments.")
    parser.add_argument("-v", "--verbose", action="store_true", help="also what each does and how it departs")
    options = parser.parse_args(arguments)
    table = Table(caption="Minutes: of one core, all arms of one seed.", caption_justify="left")
    for column in ("name", "what", "data", "arms", *SCALES):
        table.add_column(column, justify="right" if column in SCALES else "left", overflow="fold")
    experiments = [find_experiment(name) for name in experiment_names()]
    for one in experiments:
        arms = ", ".join(one.arm_names(one.scales["cpu"]))
        table.add_row(one.name, one.title, one.data, arms, *(f"{one.minutes[scale]:g}" for scale in SCALES))
    console.print(table)
    if options.verbose:
        for one in experiments:
            console.print(f"\n[bold]{one.name}[/bold]\n", highlight=False)
            console.print(one.description, markup=False, highlight=False)
    return 0


def report_results(arguments: Sequence[str], console: Console) -> int:
    """RESULTS.md and figures, or rows as JSON."""
    from benchmarks.harness.jobs import RESULTS
    from benchmarks.report.results import report

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report", description="Make RESULTS.md and the figures from the stored runs."
    )
    parser.add_argument("--json", action="store_true", help="print every row as JSON and write nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the runs (default: %(default)s)")
    options = parser.parse_args(arguments)
    return report(options.results, as_json=options.json, console=console)


def run_experiment(arguments: Sequence[str], console: Console) -> int:
    """Run an experiment."""
    from benchmarks.harness.run import run

    return run(arguments, console)


def run_demo(arguments: Sequence[str], console: Console) -> int:
    """The demonstration."""
    from benchmarks.demo import demo

    return demo(arguments, console)


def run_perf(arguments: Sequence[str], console: Console) -> int:
    """Speed."""
    from benchmarks.perf.ewc import main

    return main(list(arguments)) or 0


COMMANDS: dict[str, Callable[[Sequence[str], Console], int]] = {
    "list": list_experiments,
    "demo": run_demo,
    "run": run_experiment,
    "report": report_results,
    "perf": run_perf,
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status (1: a job failed, 2: wrong use, 130: interrupted)."""
    if not arguments or arguments[0] not in COMMANDS:
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        print(__doc__, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        from rich.console import Console

        from benchmarks.harness.jobs import Refused

        width = None if sys.stdout.isatty() else 160
        try:
            return COMMANDS[arguments[0]](arguments[1:], Console(width=width))
        except (Refused, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in BENCH | {"ray"}:
            raise
        extra = "ray" if missing == "ray" else "bench"
        print(f'error: {missing} is not installed: pip install -e ".[{extra}]"', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def main_or_closed_pipe() -> int:
    """`main` of the process's arguments; 1, quietly, where nobody reads its output any more."""
    try:
        return main(sys.argv[1:])
    except BrokenPipeError:
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:  # the interpreter flushes once more at its end, and would complain
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main_or_closed_pipe())
