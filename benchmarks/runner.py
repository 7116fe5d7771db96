"""Runs jobs (experiment, arm, seed), one after the other, side by side on this machine, or on a Ray cluster.

Nothing that exists is thrown away silently: results and unfinished work stop a run unless `resume` keeps them or
`overwrite` gives them up. Results are written by the process that was started, as each job ends; jobs only hand
them back, so that a cluster needs no shared folder for them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.experiment import Context, Experiment, Run, file_name, plain_settings, write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "numpy", "avalanche-lib", "avl-plugins")


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
    result under other settings. `overwrite` alone starts all of them again.
    """
    files = [job.result for job in jobs]
    if len(set(files)) < len(files):
        raise ValueError("two arms have the same file name; rename one of them")
    todo, kept = [], []
    for job in jobs:
        plan = job.plan
        run = Run.load(job.result) if job.result.exists() else None
        if run is not None and plan.resume:
            wanted = plain_settings(plan.settings)
            if run.settings == wanted:
                kept.append(run)
                continue
            if not plan.overwrite:
                names = wanted.keys() | run.settings.keys()
                other = sorted(name for name in names if wanted.get(name) != run.settings.get(name))
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
    return todo, kept


def run_jobs(jobs: Sequence[Job], *, report: Callable[[Job, Run | Failure], None]) -> list[Run]:
    """Run jobs and save each run as it ends; `report` hears of each end, good or bad."""
    if not jobs:
        return []
    runs = []
    with _results(jobs) as results:
        for index, result in results:
            job = jobs[index]
            if isinstance(result, Run):
                result.save(job.result)
                job.checkpoint.unlink(missing_ok=True)
                runs.append(result)
            job.progress.unlink(missing_ok=True)
            report(job, result)
    return runs


@contextmanager
def _results(jobs: Sequence[Job]) -> Iterator[Iterator[tuple[int, Run | Failure]]]:
    """Results with the jobs' indices, in the order they end."""
    plan = jobs[0].plan
    if plan.jobs == 1 and plan.cluster == "local":
        yield ((index, run_job(job)) for index, job in enumerate(jobs))
        return
    from joblib import Parallel, delayed, parallel_config

    if plan.cluster == "ray":
        from benchmarks.cluster import ray_backend

        settings: dict[str, Any] = ray_backend(plan.jobs, plan.threads_each, plan.device)
    else:
        settings = {"backend": "loky", "inner_max_num_threads": plan.threads_each}
    with parallel_config(**settings):
        pool = Parallel(n_jobs=plan.jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="all")
        results = pool(delayed(_indexed)(index, job) for index, job in enumerate(jobs))
        try:
            yield results
        finally:
            results.close()


def _indexed(index: int, job: Job) -> tuple[int, Run | Failure]:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that was started; it ends us
    return index, run_job(job)


def run_job(job: Job) -> Run | Failure:
    """Run one job here; an exception becomes a Failure."""
    plan, started = job.plan, time.perf_counter()
    try:
        resume = plan.resume and job.checkpoint.exists()
        if not resume:
            job.checkpoint.unlink(missing_ok=True)
            _clock(job).unlink(missing_ok=True)
        device, device_name = _device(plan.device, plan.threads_each)
        _log_settings(job, resume)
        job.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        context = Context(
            device=device,
            threads=plan.threads_each,
            logdir=job.logdir,
            checkpoint=job.checkpoint,
            resume=resume,
            progress=ProgressFile(job.progress),
            search=job.search,
            data_root_override=plan.data_root,
        )
        before = _seconds_before(job) if resume else 0.0
        try:
            measurements = plan.experiment.measure(plan.settings, job.arm, job.seed, context)
        finally:
            seconds = before + time.perf_counter() - started
            if job.checkpoint.exists():
                write_atomically(_clock(job), repr(seconds).encode())
        _clock(job).unlink(missing_ok=True)
        settings = plain_settings(plan.settings)
        return Run(
            experiment=plan.experiment.name,
            scale=plan.scale,
            arm=job.arm,
            seed=job.seed,
            settings=settings,
            data=settings.get("data") or plan.experiment.data,
            versions={"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            device=device_name,
            threads=plan.threads_each,
            seconds=round(seconds, 3),
            commit=plan.commit,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            measurements=measurements,
        )
    except Exception as error:
        return Failure(replace(job, search=()), f"{type(error).__name__}: {error}", traceback.format_exc())


class ProgressFile:
    """A progress callback that leaves the latest state in a file, at most five times a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.next = 0.0

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Note that `done` of `total` steps are done."""
        now = time.monotonic()
        if now >= self.next or done >= total:
            self.next = now + 0.2
            temporary = self.path.with_suffix(".progress-new")
            temporary.write_text(json.dumps([done, total, text]))
            temporary.replace(self.path)


def _clock(job: Job) -> Path:
    return job.checkpoint.with_suffix(".seconds")


def _seconds_before(job: Job) -> float:
    """Seconds an interrupted job had already taken (0 where it was killed before it could say)."""
    return float(_clock(job).read_text()) if _clock(job).exists() else 0.0


def _device(wanted: str, threads: int) -> tuple[str, str]:
    """Device and its name for the record; sets torch's threads on the way."""
    import torch

    torch.set_num_threads(threads)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    return device, device if device == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})"


def _log_settings(job: Job, resume: bool) -> None:
    """Settings as a text table in the job's TensorBoard folder; a fresh start removes the job's old log."""
    from torch.utils.tensorboard import SummaryWriter

    if not resume:
        for old in job.logdir.glob("events.out.tfevents.*"):
            old.unlink()
    shown = {"arm": job.arm, "seed": job.seed, "scale": job.plan.scale, **plain_settings(job.plan.settings)}
    lines = [f"| {name} | {value} |" for name, value in shown.items()]
    with SummaryWriter(str(job.logdir)) as writer:
        writer.add_text("settings", "\n".join(["| setting | value |", "| --- | --- |", *lines]))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """Short hash of the commit that ran, with "+changes" where the code differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "avl_plugins", "benchmarks", ":!benchmarks/results")
        return git("rev-parse", "--short=10", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
