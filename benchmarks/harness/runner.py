"""Runs jobs, one after the other, side by side on this machine, or on a Ray cluster.

Results are written by the process that was started, as each job ends; jobs only hand them back, so that a cluster
needs no shared folder for them.
"""

from __future__ import annotations

import json
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness.experiment import Context, Run, plain, plain_settings
from benchmarks.harness.jobs import Failure, Job, Plan, versions


def backend(plan: Plan) -> dict[str, Any] | None:
    """Joblib's configuration for the plan's jobs, connected to the cluster if there is one; None: in this process."""
    if plan.cluster == "ray":
        from benchmarks.harness.ray import ray_backend

        return ray_backend(plan.jobs, plan.threads_each, plan.device)
    return None if plan.jobs == 1 else {"backend": "loky", "inner_max_num_threads": plan.threads_each}


def run_jobs(
    jobs: Sequence[Job],
    *,
    report: Callable[[Job, Run | Failure], None],
    configuration: dict[str, Any] | None = None,
) -> list[Run]:
    """Run jobs and save each run as it ends; `report` hears of each end, good or bad.

    `configuration` is what `backend` returned.
    """
    if not jobs:
        return []
    runs = []
    with _results(jobs, configuration) as results:
        for index, result in results:
            job = jobs[index]
            if isinstance(result, Run):
                result.save(job.result)
                job.clear_unfinished()
                runs.append(result)
            job.progress.unlink(missing_ok=True)
            report(job, result)
    return runs


@contextmanager
def _results(
    jobs: Sequence[Job], configuration: dict[str, Any] | None
) -> Iterator[Iterator[tuple[int, Run | Failure]]]:
    """Results with the jobs' indices, in the order they end."""
    if configuration is None:
        yield ((index, run_job(job)) for index, job in enumerate(jobs))
        return
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(**configuration):
        pool = Parallel(n_jobs=jobs[0].plan.jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="all")
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
    plan = job.plan
    try:
        resume = plan.resume and job.checkpoint.exists()
        if not resume:
            job.clear_unfinished()
        device, device_name = _device(plan.device, plan.threads_each)
        _log_settings(job, resume)
        job.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter() - (_seconds_before(job) if resume else 0.0)
        progress = ProgressFile(job, started)
        context = Context(
            device=device,
            threads=plan.threads_each,
            logdir=job.logdir,
            checkpoint=job.checkpoint,
            resume=resume,
            progress=progress,
            search=job.search,
            data_root_override=plan.data_root,
        )
        try:
            measurements = plan.experiment.measure(plan.settings, job.arm, job.seed, context)
        finally:
            seconds = progress.note_seconds()
        return Run(
            experiment=plan.experiment.name,
            scale=plan.scale,
            arm=job.arm,
            seed=job.seed,
            settings=plain_settings(plan.settings),
            data=plan.conditions["data"],
            versions=versions(),
            device=device_name,
            threads=plan.threads_each,
            seconds=round(seconds, 3),
            commit=plan.commit,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            measurements=plain(measurements),
        )
    except Exception as error:
        return Failure(replace(job, search=()), f"{type(error).__name__}: {error}", traceback.format_exc())


class ProgressFile:
    """A progress callback that leaves the latest state and the seconds so far in files, at most five times a second."""

    def __init__(self, job: Job, started: float) -> None:
        self.job, self.started = job, started
        self.next, self.ended = 0.0, False

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Note that `done` of `total` steps are done."""
        now = time.monotonic()
        if now >= self.next or (done >= total and not self.ended):
            self.next, self.ended = now + 0.2, done >= total
            _replace(self.job.progress, json.dumps([done, total, text]))
            self.note_seconds()

    def note_seconds(self) -> float:
        """Seconds so far; stored once there is something to resume, as a killed job has no last word."""
        seconds = time.perf_counter() - self.started
        if self.job.checkpoint.exists():
            _replace(self.job.clock, repr(seconds))
        return seconds


def _replace(path: Path, text: str) -> None:
    """Readers find the old text or the new; not flushed to disk, which is too slow for so often."""
    temporary = path.with_name(f"{path.name}-new")
    temporary.write_text(text)
    temporary.replace(path)


def _seconds_before(job: Job) -> float:
    """Seconds an interrupted job had already taken (0 where it was killed before it could say)."""
    return float(job.clock.read_text()) if job.clock.exists() else 0.0


def _device(wanted: str, threads: int) -> tuple[str, str]:
    """Device and its name for the record; sets torch's threads on the way, and denormal numbers to zero."""
    import torch

    torch.set_num_threads(threads)
    # Weight decay takes the weights of dead units there, with which a CPU's products are ten times slower.
    torch.set_flush_denormal(True)
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
