"""The skeleton every experiment file follows, and what passes between an experiment and the runner.

An experiment is one file in the folder of its method, `benchmarks/<method>/`, read top to bottom: docstring,
`Settings`, `measure`, `rows`, `figure`, `EXPERIMENT`. Such a file imports torch, Avalanche and `avl_plugins` inside its
functions, so that `python -m benchmarks list` and `report` need none of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.harness.files import blaming, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALES = ("smoke", "cpu", "paper")
ImageData = Literal["mnist", "mnist-like", "svhn", "cifar100", "digits"]
"""Data sets that `benchmarks.training.supervised.load_arrays` reads, as a type for a setting `data`."""
EXTRAS = {"rl": ("gymnasium", "ale_py"), "minatar": ("minatar",)}
"""Packages of the extras that some experiments need."""


def _no_progress(done: int, total: int, text: str = "") -> None:
    pass


@dataclass(frozen=True)
class Context:
    """What a job may use besides its settings.

    Attributes:
        device: "cpu", "cuda" or "cuda:1".
        threads: threads this job may use; torch is already set to it.
        logdir: TensorBoard folder of this job, or None for no log. The settings are already in it.
        checkpoint: file this job may save its state in; removed by the runner once the job has ended.
        resume: True when `checkpoint` exists and the job should go on from it.
        progress: `progress(done, total, text)` moves the job's bar; cheap enough to call every iteration.
        search: finished runs of the experiment's search jobs (see `Experiment.search`), same scale and settings.
        data_root_override: `--data-root`, or None.
    """

    device: str = "cpu"
    threads: int = 1
    logdir: Path | None = None
    checkpoint: Path | None = None
    resume: bool = False
    progress: Callable[[int, int, str], None] = _no_progress
    search: Sequence[Run] = ()
    data_root_override: str | None = None

    @property
    def data_root(self) -> Path:
        """Folder of the data sets: `--data-root`, else `$AVL_DATA_ROOT`, else `~/.cache/avl_plugins`."""
        return Path(self.data_root_override or os.environ.get("AVL_DATA_ROOT") or "~/.cache/avl_plugins").expanduser()


@dataclass(frozen=True)
class Run:
    """One finished job, as it is stored in `<results>/<experiment>/<scale>/<arm>-seed<k>.json`."""

    experiment: str
    scale: str
    arm: str
    seed: int
    settings: Mapping[str, Any]
    data: str
    versions: Mapping[str, str]
    device: str
    threads: int
    seconds: float
    commit: str
    date: str
    measurements: Mapping[str, Any]

    @property
    def conditions(self) -> dict[str, Any]:
        """Settings and data: what runs of one table have in common."""
        return {**self.settings, "data": self.data}

    def save(self, path: Path) -> None:
        """Write the run to `path`, whole or not at all."""
        text = json.dumps(dataclasses.asdict(self), indent=1, default=_plain) + "\n"
        write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read a run; a ValueError names a file that does not hold one.

        Whether it is the run that belongs there is for `benchmarks.harness.stored` to say.
        """
        with blaming(path, "does not hold a run", "remove it and run the job again"):
            run = cls(**json.loads(path.read_text()))
            run._check()
        return run

    def _check(self) -> None:
        """Raise a ValueError that names the first field of a wrong kind."""
        texts = dict.fromkeys(("experiment", "scale", "arm", "data", "device", "commit", "date"), str)
        kinds: dict[str, Any] = texts | {"seed": int, "threads": int, "seconds": (int, float)}
        kinds |= dict.fromkeys(("settings", "versions", "measurements"), dict)
        words = {str: "a text", int: "an integer", dict: "an object"}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{name} must be {words.get(kind, 'a number')}, got {reprlib.repr(value)}")
        for name, least in (("seed", 0), ("threads", 1), ("seconds", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number from {least} on, got {getattr(self, name)}")
        if not all(isinstance(version, str) for version in self.versions.values()):
            raise ValueError(f"versions must be texts, got {reprlib.repr(self.versions)}")


@dataclass(frozen=True)
class Row:
    """One line of a table: a number of the paper beside ours.

    `mean` and `stderr` are over `seeds` runs (None where there are none, or one), `minutes` is the mean wall time of
    one run, `target` is readable text and `met` is "met", "missed", "undecided" (a comparison whose 95 % interval
    holds the target, or a mean that reaches it over too few seeds) or None (no target, or nothing measured yet). `note`
    says what departs from the paper.
    """

    experiment: str
    arm: str
    metric: str
    paper: float | None
    target: str | None
    mean: float | None
    stderr: float | None
    seeds: int
    scale: str
    data: str
    minutes: float | None
    met: str | None
    note: str = ""


@dataclass(frozen=True)
class Experiment:
    """A figure or table of a paper.

    Attributes:
        name: `ewc-fig2a`; its file is `ewc/fig2a.py`.
        title: one line for `list` and the report.
        data: name of the data set, for the record; a field `data` of the settings is preferred.
        arms: names of the things compared, or a function settings -> names.
        scales: "smoke" (seconds), "cpu" (<= 60 core-minutes a seed), "paper" -> settings; some of them will do.
        minutes: scale -> core-minutes of all arms of one seed, where they are estimated.
        measure: `measure(settings, arm, seed, context) -> dict` runs one job; the dict must fit into JSON.
        rows: `rows(runs) -> list[Row]` from all runs of one scale, search runs included; any of them may be missing.
        figure: `figure(runs) -> Figure`, likewise, with the paper's values in it.
        search: optional `search(settings) -> [(arm, seed), ...]`: jobs that run before all others; the others find
            their runs in `context.search`. For choosing lambda on validation seeds. `measure` sees their arm names as
            any other's.
        search_of: arm -> the arm whose search jobs it needs; itself where not given. With `--arms`, searches that no
            chosen arm needs are left out.
        extras: extras of pyproject.toml that its jobs need besides "bench".
    """

    name: str
    title: str
    data: str
    arms: Sequence[str] | Callable[[Any], Sequence[str]]
    scales: Mapping[str, Any]
    minutes: Mapping[str, float]
    measure: Callable[[Any, str, int, Context], Mapping[str, Any]]
    rows: Callable[[Sequence[Run]], list[Row]]
    figure: Callable[[Sequence[Run]], Figure]
    search: Callable[[Any], Sequence[tuple[str, int]]] | None = field(default=None)
    search_of: Callable[[str], str] = str
    extras: Sequence[str] = ()

    def arm_names(self, settings: Any) -> tuple[str, ...]:
        """Names of the arms under these settings."""
        return tuple(self.arms(settings) if callable(self.arms) else self.arms)

    @property
    def description(self) -> str:
        """The docstring of the experiment's file."""
        return (sys.modules[self.measure.__module__].__doc__ or "").strip()


def plain_settings(settings: Any) -> dict[str, Any]:
    """Settings as JSON gives them back, for comparing and storing."""
    return plain(dataclasses.asdict(settings))


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Mapping as JSON gives it back; a TypeError names what does not fit."""
    return json.loads(json.dumps(value, default=_plain))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the settings that are not the same in both, sorted."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def file_name(arm: str, seed: int) -> str:
    """Name of a job's files, without suffix: the arm with everything unusual replaced, and the seed."""
    return f"{re.sub(r'[^A-Za-z0-9.=+-]+', '_', arm)}-seed{seed}"


def check_extras(experiment: Experiment) -> None:
    """Raise a ValueError that says what to install, where an experiment needs a package that is not."""
    missing = [name for extra in experiment.extras for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        extras = ",".join(("bench", *experiment.extras))
        raise ValueError(f'{experiment.name} needs {" and ".join(missing)}: pip install -e ".[{extras}]"')


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy and torch, scalars and arrays
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not fit into JSON")
