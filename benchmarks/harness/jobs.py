"""Jobs (one arm of an experiment under one seed), their files, and which of them are still to run.

Nothing that exists is thrown away silently: results and unfinished work stop a command unless `resume` keeps them or
`overwrite` gives them up.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import platform
import subprocess
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.harness.experiment import Experiment, Run, differing, file_name, plain_settings
from benchmarks.harness.names import counted
from benchmarks.harness.stored import read_run
from benchmarks.harness.unfinished import Begun, read_seconds

log = logging.getLogger(__name__)

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
    begun_threads: int = 0
    """Threads that an unfinished job was begun with; 0: the plan's."""

    @property
    def name(self) -> str:
        """What messages call the job."""
        return f"{self.plan.experiment.name} {self.arm} seed {self.seed}"

    @property
    def threads(self) -> int:
        """Threads this job may use."""
        return self.begun_threads or self.plan.threads_each

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

    @property
    def begun(self) -> Path:
        """File that says how an unfinished job was begun."""
        return self.checkpoint.with_suffix(".begun")

    def clear_unfinished(self) -> None:
        """Forget unfinished work, and what a kill in the middle of writing it left behind."""
        own = (self.checkpoint, self.clock, self.begun, self.progress)
        half_written = [path for file in own for path in file.parent.glob(f".{glob.escape(file.name)}.*")]
        for path in (self.checkpoint, self.clock, self.begun, *half_written):
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

    Those that go on get the threads that they were begun with.

    Raises Refused where that would discard something: without `resume`, any result or unfinished work; with it, a
    result under other settings, or work begun with other threads than are asked for. `overwrite` alone starts all of
    them again. Raises it, too, where a result that none of the jobs replaces has other settings and would share a table
    with them. A ValueError has a line for each file that is damaged or does not belong where it is.
    """
    files = [job.result for job in jobs]
    if len(set(files)) < len(files):
        raise ValueError("two arms have the same file name; rename one of them")
    todo, kept, wrong = [], [], []
    for job in jobs:
        try:
            run = _finished(job)
            if run is None:
                todo.append(_as_begun(job))
            else:
                kept.append(run)
        except ValueError as error:
            wrong.append(str(error))
    for folder in {file.parent for file in files}:
        for path in sorted(set(folder.glob("*.json")) - set(files)):
            try:
                other = differing(read_run(path, jobs[0].plan.experiment).conditions, jobs[0].plan.conditions)
            except ValueError as error:
                wrong.append(str(error))
                continue
            if other:
                raise Refused(
                    f"{path} was measured with other settings ({', '.join(other)}) and would share a table with these "
                    "jobs. --out keeps them apart; --overwrite with its arm and seed among the jobs measures it again; "
                    "or remove it."
                )
    if wrong:
        raise ValueError("\n".join(wrong))
    return todo, kept


def _finished(job: Job) -> Run | None:
    """The run of a job that need not be run again."""
    plan = job.plan
    if not plan.resume:
        there = [path for path in (job.result, job.checkpoint) if path.exists()]
        if there and not plan.overwrite:
            raise Refused(
                f"{there[0]} exists. --resume keeps finished jobs and goes on with unfinished ones, "
                "--overwrite measures again."
            )
        return None
    if not job.result.exists():
        return None
    try:
        run = read_run(job.result, plan.experiment)
    except ValueError:
        if plan.overwrite:
            return None
        raise
    other = differing(run.conditions, plan.conditions)
    if other and not plan.overwrite:
        raise Refused(
            f"{job.result} was measured with other settings ({', '.join(other)}). "
            "--overwrite measures it again, --out keeps both."
        )
    return None if other else run


def _as_begun(job: Job) -> Job:
    """Return the job with the threads that it was begun with, where it goes on; its files are looked at."""
    if not (job.plan.resume and job.checkpoint.exists()):
        return job
    if not job.checkpoint.stat().st_size:
        raise ValueError(f"{job.checkpoint} is empty; remove it, and its job starts again")
    read_seconds(job.clock)
    begun = Begun.read(job.begun)
    if begun is None:
        threads = counted(job.threads, "thread")
        log.warning("%s: how it was begun is not known; it goes on with %s", job.name, threads)
        return job
    if job.plan.threads not in (0, begun.threads):
        raise Refused(
            f"{job.checkpoint} was begun with {counted(begun.threads, 'thread')}, and its last bits depend on that. "
            f"Leave --threads out, or --threads {begun.threads}, and it goes on; --overwrite starts it again."
        )
    return replace(job, begun_threads=begun.threads)


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
