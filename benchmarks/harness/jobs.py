"""Jobs (one arm of an experiment under one seed), their files, and which of them are still to run.

Nothing that exists is thrown away silently: results and unfinished work stop a command unless `resume` keeps them or
`overwrite` gives them up.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.harness.experiment import Experiment, Run, differing, file_name, plain_settings

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "numpy", "avalanche-lib", "avl-plugins")
RESULTS = ROOT / "benchmarks" / "results"


class Refused(Exception):
    """A run that would throw away results or unfinished work, with what to do about it."""


@dataclass(frozen=True)
class Plan:
    """What all jobs of one command share.

    Attributes:
        experiment, scale, settings: what is run.
        out: folder of the results (`<out>/<experiment>/<scale>/`).
        runs: folder of the TensorBoard logs; unfinished jobs keep their state in its subfolder `unfinished`.
        jobs: how many run at the same time.
        threads: threads of each; 0 shares the cores out.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        data_root: `--data-root`, or None.
        resume, overwrite: what to do with what is there.
        commit: the code's version, for the record.
        cluster: "local" (loky) or "ray".
    """

    experiment: Experiment
    scale: str
    settings: Any
    out: Path
    runs: Path
    jobs: int = 1
    threads: int = 0
    device: str = "auto"
    data_root: str | None = None
    resume: bool = False
    overwrite: bool = False
    commit: str = "unknown"
    cluster: str = "local"

    @property
    def threads_each(self) -> int:
        """Threads of one job."""
        return self.threads or max(1, cores() // self.jobs)

    @property
    def conditions(self) -> dict[str, Any]:
        """What the runs' `conditions` will be."""
        return {"data": self.experiment.data} | plain_settings(self.settings)


@dataclass(frozen=True)
class Job:
    """One arm under one seed."""

    plan: Plan
    arm: str
    seed: int
    search: tuple[Run, ...] = ()

    @property
    def name(self) -> str:
        """What messages call the job."""
        return f"{self.plan.experiment.name} {self.arm} seed {self.seed}"

    def _path(self, root: Path, suffix: str) -> Path:
        folder = root / self.plan.experiment.name / self.plan.scale
        return folder / (file_name(self.arm, self.seed) + suffix)

    @property
    def result(self) -> Path:
        """File of the job's run."""
        return self._path(self.plan.out, ".json")

    @property
    def logdir(self) -> Path:
        """TensorBoard folder."""
        return self._path(self.plan.runs, "")

    @property
    def checkpoint(self) -> Path:
        """File of the unfinished job; other settings have another file."""
        text = json.dumps(plain_settings(self.plan.settings), sort_keys=True)
        return self._path(self.plan.runs / "unfinished", f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}.pt")

    @property
    def clock(self) -> Path:
        """File with the seconds an unfinished job has taken."""
        return self.checkpoint.with_suffix(".seconds")

    def clear_unfinished(self) -> None:
        """Forget unfinished work, and what a kill in the middle of writing it left behind."""
        half_written = self.checkpoint.parent.glob(f".{self.checkpoint.name}.*")
        for path in (self.checkpoint, self.clock, *half_written):
            path.unlink(missing_ok=True)

    @property
    def progress(self) -> Path:
        """File through which a job, in whatever process, tells how far it is."""
        return self.checkpoint.with_suffix(".progress")


@dataclass(frozen=True)
class Failure:
    """A job that raised."""

    job: Job
    error: str
    trace: str


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_jobs(jobs: Sequence[Job]) -> tuple[list[Job], list[Run]]:
    """Split jobs into those still to run and the runs of those that have ended.

    Raises Refused where that would discard something: without `resume`, any result or unfinished work; with it, a
    result under other settings. `overwrite` alone starts all of them again. Raises it, too, where a result that none of
    the jobs replaces has other settings and would share a table with them.
    """
    files = [job.result for job in jobs]
    if len(set(files)) < len(files):
        raise ValueError("two arms have the same file name; rename one of them")
    todo, kept = [], []
    for job in jobs:
        plan = job.plan
        run = Run.load(job.result) if job.result.exists() else None
        if run is not None and plan.resume:
            other = differing(run.conditions, plan.conditions)
            if not other:
                kept.append(run)
                continue
            if not plan.overwrite:
                raise Refused(
                    f"{job.result} was measured with other settings ({', '.join(other)}). "
                    "--overwrite measures it again, --out keeps both."
                )
        elif not plan.overwrite and not plan.resume and (run is not None or job.checkpoint.exists()):
            what = job.result if run is not None else job.checkpoint
            raise Refused(
                f"{what} exists. --resume keeps finished jobs and goes on with unfinished ones, "
                "--overwrite measures again."
            )
        todo.append(job)
    for folder in {file.parent for file in files}:
        for path in sorted(set(folder.glob("*.json")) - set(files)):
            if other := differing(Run.load(path).conditions, jobs[0].plan.conditions):
                raise Refused(
                    f"{path} was measured with other settings ({', '.join(other)}) and would share a table with these "
                    "jobs. --out keeps them apart; --overwrite with its arm and seed among the jobs measures it again; "
                    "or remove it."
                )
    return todo, kept


def clear(todo: Sequence[Job]) -> int:
    """Remove what `open_jobs` allowed to remove, before anything runs; returns the number of results among it.

    At the start and not as each job ends, so that an interrupted command with `overwrite` can go on with `resume`.
    """
    old = [job for job in todo if job.result.exists()]
    for job in old:
        job.result.unlink()
    for job in todo:
        job.progress.unlink(missing_ok=True)  # of an interrupted run: the job has yet to start in this one
        if not job.plan.resume:
            job.clear_unfinished()
    return len(old)


def commit() -> str:
    """Short hash of the commit that ran, with "+changes" where the code differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "avl_plugins", "benchmarks", ":!benchmarks/results")
        return git("rev-parse", "--short=10", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        if package != "avl-plugins":
            return "not installed"
        return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
