"""Which experiments there are: the files of the methods' folders, by name."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from benchmarks.harness.experiment import Experiment
from benchmarks.harness.names import no_such

METHODS = ("ewc", "progressive", "dgr", "den", "rl")
"""Folders of experiments; what several experiments share is in files that begin with an underscore."""


def experiment_names() -> list[str]:
    """Names of all experiments, sorted: `ewc-fig2a` is `benchmarks/ewc/fig2a.py`."""
    folder = Path(__file__).parent.parent
    return sorted(
        f"{method}-{module.name.replace('_', '-')}"
        for method in METHODS
        for module in pkgutil.iter_modules([str(folder / method)])
        if not module.name.startswith("_")
    )


def find_experiment(name: str) -> Experiment:
    """Experiment of this name; a ValueError lists the names there are."""
    if name not in experiment_names():
        raise no_such("experiment", name, experiment_names())
    method, _, file = name.partition("-")
    return importlib.import_module(f"benchmarks.{method}.{file.replace('-', '_')}").EXPERIMENT
