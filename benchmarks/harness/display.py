"""Progress of running jobs: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

from benchmarks.harness.experiment import Run
from benchmarks.harness.jobs import Failure, Job
from benchmarks.harness.names import counted

QUIET_SECONDS = 60.0


class Display:
    """Shows jobs from the files they leave their progress in, so it does not matter where they run.

    Use as a context manager around `run_jobs(..., report=display.ended)`.
    """

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self.console = console
        self.running = list(jobs)
        self.failed: list[Failure] = []
        self._bars: dict[str, TaskID] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._next_line = time.monotonic() + QUIET_SECONDS
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TimeElapsedColumn(),
            Remaining(),
            console=console,
            disable=not console.is_terminal,
        )
        self._ended, self._whole = 0, counted(len(jobs), "job")
        self._all = self._progress.add_task(f"0 of {self._whole}", total=len(jobs))
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Display:
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._progress.stop()

    def ended(self, job: Job, result: Run | Failure) -> None:
        """Note the end of a job and say so."""
        with self._lock:
            self.running = [other for other in self.running if other.name != job.name]
            bar = self._bars.pop(job.name, None)
            if bar is not None:
                self._progress.remove_task(bar)
            self._ended += 1
            self._progress.update(self._all, completed=self._ended, description=f"{self._ended} of {self._whole}")
        if isinstance(result, Failure):
            self.failed.append(result)
            self.console.print(escape(result.trace), style="dim", highlight=False)
            self.console.print(f"[red]failed[/red] {escape(job.name)}: {escape(result.error)}", highlight=False)
        else:
            self.console.print(f"[green]done[/green] {escape(job.name)}: {result.seconds:.1f} s", highlight=False)

    def _watch(self) -> None:
        while not self._stop.wait(0.3):
            with self._lock:
                states = [(job, state) for job in self.running if (state := _read(job)) is not None]
                for job, (done, total, text) in states:
                    if job.name not in self._bars:
                        self._bars[job.name] = self._progress.add_task(job.name)
                    label = escape(f"{job.name} {text}".strip())
                    self._progress.update(self._bars[job.name], completed=done, total=total, description=label)
            if not self.console.is_terminal and time.monotonic() > self._next_line:
                self._next_line = time.monotonic() + QUIET_SECONDS
                for job, (done, total, text) in states:
                    self.console.print(
                        escape(f"{job.name}: {100 * done / max(total, 1):.0f} % {text}".strip()), highlight=False
                    )


def _read(job: Job) -> tuple[int, int, str] | None:
    """What a job has last said of itself; None where it has not, or its file is damaged."""
    try:
        done, total, text = json.loads(job.progress.read_text())
        return int(done), int(total), str(text)
    except (OSError, RecursionError, TypeError, ValueError, OverflowError):
        return None
