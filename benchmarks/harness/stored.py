"""Runs as they are stored. Each is checked against its file's place and against its experiment before it counts.

Errors are ValueErrors with a line for each file that is wrong: its name, what is wrong, and what to do.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.harness.experiment import SCALES, Experiment, Row, Run, differing, file_name
from benchmarks.harness.names import no_such
from benchmarks.harness.registry import experiment_names, find_experiment

Made = TypeVar("Made")


def path_of(results: Path, run: Run) -> Path:
    """File that a run belongs in."""
    return results / run.experiment / run.scale / f"{file_name(run.arm, run.seed)}.json"


def read_run(path: Path, experiment: Experiment) -> Run:
    """Read the run of a file in the folder of an experiment and scale.

    Raises:
        ValueError: It holds no run, or one that belongs in another place, or that the experiment cannot have.
    """
    run = Run.load(path)
    scale = path.parent.name
    own = path_of(path.parents[2], run)
    if (run.experiment, run.scale) != (experiment.name, scale):
        raise ValueError(
            f"{path} is a run of {run.experiment}, scale {run.scale}, in the folder of {experiment.name}, scale "
            f"{scale}; move it to {own} or remove it"
        )
    if path.name != own.name:
        raise ValueError(
            f"{path} holds arm {run.arm!r}, seed {run.seed}, whose file is {own.name}; remove it if it is a copy, "
            "rename it if it is not"
        )
    if scale not in experiment.scales:
        raise ValueError(f"{path}: {no_such('scale', scale, experiment.scales)}; remove it, or add the scale")
    try:
        arms = arms_of(experiment, scale, run.settings)
    except Exception as error:
        raise ValueError(
            f"{path}: its settings are not those of {experiment.name} ({_what(error)}); remove it and run the job again"
        ) from error
    if run.arm not in arms:
        raise ValueError(f"{path}: {no_such('arm', run.arm, arms)}; remove it, or add the arm to {experiment.name}")
    return run


def arms_of(experiment: Experiment, scale: str, settings: Mapping[str, Any]) -> list[str]:
    """Names of the arms and search jobs that an experiment has under stored settings."""
    usual = experiment.scales[scale]
    known = {field.name for field in dataclasses.fields(usual)} & settings.keys()
    own = dataclasses.replace(usual, **{name: settings[name] for name in known})
    search = experiment.search(own) if experiment.search else ()
    return [*experiment.arm_names(own), *dict.fromkeys(arm for arm, _ in search)]


def read_all(paths: Iterable[Path], experiment: Experiment) -> list[Run]:
    """Read the runs of files in one folder; one error for all files that are wrong."""
    runs, wrong = [], []
    for path in paths:
        try:
            runs.append(read_run(path, experiment))
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("\n".join(wrong))
    return runs


def load_scale(results: Path, experiment: Experiment, scale: str) -> list[Run]:
    """Runs of an experiment at one scale, by arm and seed.

    Raises:
        ValueError: A file is wrong, or two were measured with different settings, which one table must not mix.
    """
    paths = sorted((results / experiment.name / scale).glob("*.json"))
    runs = read_all(paths, experiment)
    wrong = [
        f"{path} and {paths[0].name} were measured with different settings ({', '.join(other)}), which one table must "
        "not mix; measure one of them again with --overwrite, or keep them apart with --out"
        for path, run in zip(paths, runs, strict=True)
        if (other := differing(run.conditions, runs[0].conditions))
    ]
    if wrong:
        raise ValueError("\n".join(wrong))
    return sorted(runs, key=lambda run: (run.arm, run.seed))


def load_runs(results: Path) -> dict[tuple[str, str], list[Run]]:
    """All runs below a folder by experiment and scale, without smoke runs; one error for all files that are wrong."""
    found: dict[tuple[str, str], list[Run]] = {}
    wrong = []
    for name in experiment_names():
        scales = _scales(results, name) - {"smoke"}
        for scale in (*(own for own in SCALES if own in scales), *sorted(scales - {*SCALES})):
            try:
                found[name, scale] = load_scale(results, find_experiment(name), scale)
            except ValueError as error:
                wrong.append(str(error))
    if wrong:
        raise ValueError("\n".join(wrong))
    return found


def smoke_only(results: Path) -> list[str]:
    """Experiments of which a folder has smoke runs and no others."""
    return [name for name in experiment_names() if _scales(results, name) == {"smoke"}]


def strangers(results: Path) -> list[str]:
    """Folders with runs in them that no experiment has."""
    return sorted({path.parents[1].name for path in results.glob("*/*/*.json")} - set(experiment_names()))


def rows_of(runs: Sequence[Run], results: Path = Path()) -> list[Row]:
    """Rows of the runs of one experiment at one scale, stored below `results`."""
    return made_of(runs, results, "rows", find_experiment(runs[0].experiment).rows)


def made_of(runs: Sequence[Run], results: Path, what: str, make: Callable[[Sequence[Run]], Made]) -> Made:
    """What an experiment makes of its runs.

    Args:
        runs: Of one experiment at one scale.
        results: Folder below which they are stored.
        what: What is made, for the error.
        make: Makes it.

    Raises:
        ValueError: It cannot; names the runs of which alone it cannot, or else their folder.
    """
    try:
        return make(runs)
    except Exception as error:
        wrong = []
        for run in runs:
            try:
                make([run])
            except Exception as own:
                wrong.append(
                    f"{path_of(results, run)}: its measurements do not make {what} ({_what(own)}); measure it "
                    "again with --overwrite, or remove it"
                )
        folder = path_of(results, runs[0]).parent
        raise ValueError("\n".join(wrong) or f"{folder}: the runs do not make {what} ({_what(error)})") from error


def _scales(results: Path, name: str) -> set[str]:
    """Folders in which an experiment has runs."""
    return {path.parent.name for path in (results / name).glob("*/*.json")}


def _what(error: Exception) -> str:
    """Kind, text and place of an error, in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())}, {Path(place.filename).name}:{place.lineno}"
