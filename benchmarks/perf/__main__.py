"""`python -m benchmarks perf`: speed beside others', on the same data and sizes in one run.

Times are medians over rounds in which the alternatives take turns, so that a busy machine slows all of them; what
counts are the ratios.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.harness.experiment import Context, ImageData
from benchmarks.harness.files import check_target, write_atomically
from benchmarks.harness.jobs import RESULTS, commit, versions
from benchmarks.perf.den import selective
from benchmarks.perf.dgr import replay
from benchmarks.perf.ewc import epochs, fishers, steps
from benchmarks.perf.progressive import columns
from benchmarks.perf.rl import absent, reinforcement
from benchmarks.perf.timing import Line
from benchmarks.training.supervised import load_arrays

PARTS = {
    "epochs": epochs,
    "Fishers": fishers,
    "steps": steps,
    "columns": columns,
    "replay": replay,
    "selective retraining": selective,
    "agents": reinforcement,
}


@dataclass(frozen=True)
class Options:
    """Speed beside Avalanche's and beside a bare PyTorch loop."""

    data: ImageData = "mnist"
    """Data set, most usefully mnist or digits."""
    data_root: str | None = None
    """Folder of the data sets; else $AVL_DATA_ROOT, else ~/.cache/avl_plugins."""
    rounds: int = 3
    """Rounds in which the alternatives take turns."""
    threads: int = 0
    """Threads torch uses; 0 leaves its default."""
    out: Path | None = RESULTS / "perf.json"
    """File for the numbers; None for none."""


def main(arguments: Sequence[str], console: Console) -> int:
    """Measure, print a table and write the numbers; a ValueError names an option that cannot be, before all that."""
    options = tyro.cli(Options, args=list(arguments), prog="python -m benchmarks perf")
    for name, least in (("rounds", 1), ("threads", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(options, name)}")
    if options.out is not None:
        check_target(options.out, "--out")
    if options.threads:
        torch.set_num_threads(options.threads)
    arrays = load_arrays(options.data, Context(data_root_override=options.data_root))
    lines: list[Line] = []
    for title, part in PARTS.items():
        with console.status(f"measuring {title}"):
            lines += part(arrays, options.rounds)
    console.print(table(lines))
    for note in absent():
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    if options.out is not None:
        record = {"data": arrays.name, "threads": torch.get_num_threads(), "rounds": options.rounds}
        record |= {"versions": versions(), "commit": commit(), "lines": [asdict(line) for line in lines]}
        write_atomically(options.out, (json.dumps(record, indent=1) + "\n").encode())
        console.print(f"written to {options.out}")
    return 0


def table(lines: Sequence[Line]) -> Table:
    """All comparisons."""
    shown = Table("what", "measured", "ratio", "against", "target", "met", title=f"{torch.get_num_threads()} threads")
    for line in lines:
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
        met = {None: "", True: "yes", False: "no"}[line.met]
        shown.add_row(line.what, f"{line.seconds:.4g}", ratio, line.against, line.target, met)
    return shown


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Console()))
