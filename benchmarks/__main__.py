"""The papers' experiments from the command line.

python -m benchmarks list [-v]       experiments, their arms, and the time they take
python -m benchmarks demo            what plain training forgets and each method keeps, on digits, in two minutes
python -m benchmarks run NAME        run an experiment; `run NAME --help` shows its settings
python -m benchmarks report          make RESULTS.md and the figures from all runs; --json, --csv and --latex print rows
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
    """Experiments with arms and estimated times."""
    from benchmarks.harness.listing import entry
    from benchmarks.harness.registry import experiment_names, find_experiment

    parser = argparse.ArgumentParser(prog="python -m benchmarks list", description="List the experiments.")
    parser.add_argument("-v", "--verbose", action="store_true", help="also what each does and how it departs")
    options = parser.parse_args(arguments)
    for experiment in map(find_experiment, experiment_names()):
        console.print(entry(experiment), markup=False, highlight=False, soft_wrap=True)
        if options.verbose:
            console.print(f"\n{experiment.description}\n", markup=False, highlight=False)
    console.print("\nTimes are estimates for one core, all arms of one seed.", highlight=False)
    return 0


def report_results(arguments: Sequence[str], console: Console) -> int:
    """RESULTS.md and figures, or rows as JSON, CSV or LaTeX."""
    from rich.console import Console

    from benchmarks.harness.jobs import RESULTS
    from benchmarks.report.formats import FORMS
    from benchmarks.report.results import print_rows, report

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report", description="Make RESULTS.md and the figures from the stored runs."
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the runs (default: %(default)s)")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--out", type=Path, help="folder for RESULTS.md and the figures; by default that of the runs")
    for form, what in zip(FORMS, ("JSON", "CSV", "LaTeX tables (booktabs)"), strict=True):
        text = f"print every row as {what} and write nothing"
        either.add_argument(f"--{form}", action="store_const", const=form, dest="form", help=text)
    options = parser.parse_args(arguments)
    if options.results.exists() and not options.results.is_dir():
        raise ValueError(f"--results must be a folder, got {options.results}")
    if options.form:
        return print_rows(options.results, options.form, Console(stderr=True))
    return report(options.results, out=options.out or options.results, console=console)


def run_experiment(arguments: Sequence[str], console: Console) -> int:
    """Run an experiment."""
    from benchmarks.harness.run import run
    from benchmarks.report.formats import rich_table

    return run(arguments, console, rich_table)


def run_demo(arguments: Sequence[str], console: Console) -> int:
    """The demonstration."""
    from benchmarks.demo import demo

    return demo(arguments, console)


def run_perf(arguments: Sequence[str], console: Console) -> int:
    """Speed."""
    from benchmarks.perf.__main__ import main

    return main(arguments, console)


COMMANDS: dict[str, Callable[[Sequence[str], Console], int]] = {
    "list": list_experiments,
    "demo": run_demo,
    "run": run_experiment,
    "report": report_results,
    "perf": run_perf,
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status (1: a job failed, 2: wrong use, 130: interrupted)."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    try:
        from rich.console import Console

        from benchmarks.harness.jobs import Refused
        from benchmarks.harness.names import no_such

        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
        try:
            if arguments[0] not in COMMANDS:
                raise no_such("command", arguments[0], COMMANDS)
            return COMMANDS[arguments[0]](arguments[1:], Console(width=width))
        except BrokenPipeError:
            raise
        except (Refused, ValueError, OSError) as error:
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
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
