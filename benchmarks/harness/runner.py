"""Runs jobs, one after the other, side by side on this machine, or on a Ray cluster.

Results are written by the process that was started, as each job ends; jobs only hand them back, so that a cluster
needs no shared folder for them.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.harness.experiment import Context, Run, plain, plain_settings
from benchmarks.harness.files import remove_events, write_atomically
from benchmarks.harness.jobs import Failure, Job, Plan, versions
from benchmarks.harness.unfinished import Begun, read_seconds

log = logging.getLogger(__name__)


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
                result = _save(job, result)
            if isinstance(result, Run):
                job.clear_unfinished()
                runs.append(result)
            job.progress.unlink(missing_ok=True)
            report(job, result)
    return runs


def _save(job: Job, run: Run) -> Run | Failure:
    """Store a run; where that fails its unfinished work stays, which --resume goes on from."""
    try:
        run.save(job.result)
    except (OSError, ValueError) as error:
        return Failure(job, f"its result could not be stored: {error}", traceback.format_exc())
    return run


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
        parent = os.getpid() if configuration["backend"] == "loky" else None  # Ray ends its workers itself
        results = pool(delayed(_indexed)(index, job, parent) for index, job in enumerate(jobs))
        try:
            yield results
        finally:
            results.close()


def _indexed(index: int, job: Job, parent: int | None) -> tuple[int, Run | Failure]:
    if parent is not None:
        _end_with(parent)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that was started; it ends us
    return index, run_job(job)


@cache
def _end_with(parent: int) -> None:
    """End this worker within a second of the process that started it, which may be killed without a last word.

    On Windows, where a child never learns of it, the worker ends its job first.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_job(job: Job) -> Run | Failure:
    """Run one job here; an exception becomes a Failure."""
    plan = job.plan
    try:
        resume = plan.resume and job.checkpoint.exists()
        if not resume:
            job.clear_unfinished()
        device, device_name = _device(plan.device, job.threads)
        if resume and (begun := Begun.read(job.begun)):
            begun.check_device(device_name)
        else:
            Begun(job.threads, device_name).write(job.begun)
        _log_settings(job, resume)
        started = time.perf_counter() - (read_seconds(job.clock) if resume else 0.0)
        progress = ProgressFile(job, started)
        context = Context(
            device=device,
            threads=job.threads,
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
            threads=job.threads,
            seconds=round(seconds, 3),
            commit=plan.commit,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            measurements=plain(measurements),
        )
    except Exception as error:
        return Failure(replace(job, search=()), f"{type(error).__name__}: {error}", traceback.format_exc())


class ProgressFile:
    """A progress callback that leaves the latest state and the seconds so far in files, at most five times a second.

    They are not flushed to the disk, which is too slow for so often.
    """

    def __init__(self, job: Job, started: float) -> None:
        self.job, self.started = job, started
        self.next, self.ended, self.silent = 0.0, False, False

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Note that `done` of `total` steps are done."""
        now = time.monotonic()
        if now >= self.next or (done >= total and not self.ended):
            self.next, self.ended = now + 0.2, done >= total
            self._write(self.job.progress, json.dumps([done, total, text]))
            self.note_seconds()

    def note_seconds(self) -> float:
        """Seconds so far; stored once there is something to resume, as a killed job has no last word."""
        seconds = time.perf_counter() - self.started
        if self.job.checkpoint.exists():
            self._write(self.job.clock, repr(seconds))
        return seconds

    def _write(self, path: Path, text: str) -> None:
        """Write a file that is not worth ending a job for."""
        try:
            write_atomically(path, text.encode(), flush=False)
        except OSError as error:
            if not self.silent:
                log.warning("%s could not be written (%s); the job goes on", path, error)
            self.silent = True


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
        remove_events(job.logdir)
    shown = {"arm": job.arm, "seed": job.seed, "scale": job.plan.scale, **plain_settings(job.plan.settings)}
    lines = [f"| {name} | {value} |" for name, value in shown.items()]
    with SummaryWriter(str(job.logdir)) as writer:
        writer.add_text("settings", "\n".join(["| setting | value |", "| --- | --- |", *lines]))
