"""What lies beside a checkpoint: threads that are kept, damaged files that are named, work that a full disk keeps."""

import dataclasses
import errno
import json
import os

import pytest
import torch
from job_cases import make_plan, run_all

from benchmarks.harness import files
from benchmarks.harness.experiment import Context, Run
from benchmarks.harness.jobs import Job, Refused, clear, cores, open_jobs
from benchmarks.harness.registry import find_experiment
from benchmarks.harness.runner import ProgressFile, run_job
from benchmarks.harness.unfinished import Begun, read_found, read_seconds, readable


@pytest.fixture
def stopped(tmp_path):
    """A job that was interrupted half-way with one thread."""
    job = Job(make_plan(tmp_path, threads=1), "stops", 1)
    with pytest.raises(KeyboardInterrupt):
        run_all([job])
    assert job.checkpoint.exists()
    assert json.loads(job.begun.read_text()) == {"threads": 1, "device": "cpu"}
    return job


def resumed(job, **changes):
    return dataclasses.replace(job, plan=dataclasses.replace(job.plan, resume=True, **changes))


@pytest.mark.parametrize(("jobs", "threads"), [(1, 0), (64, 0), (1, 1)])
def test_a_job_goes_on_with_the_threads_that_it_was_begun_with(stopped, monkeypatch, jobs, threads):
    monkeypatch.setattr("benchmarks.harness.jobs.cores", lambda: 8)
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    (job,), _ = open_jobs([resumed(stopped, jobs=jobs, threads=threads)])
    (run,), failures = run_all([job])
    assert not failures
    assert (run.threads, used) == (1, [1])
    assert run.measurements["resumed"] is True
    assert Run.load(job.result).threads == 1
    assert not job.begun.exists()


def test_other_threads_are_refused_and_nothing_is_lost(stopped):
    before = {path: path.read_bytes() for path in stopped.checkpoint.parent.iterdir()}
    with pytest.raises(Refused, match=r"was begun with 1 thread, .* --threads out, or --threads 1, .* --overwrite"):
        open_jobs([resumed(stopped, threads=2)])
    assert {path: path.read_bytes() for path in stopped.checkpoint.parent.iterdir()} == before
    again = dataclasses.replace(stopped, plan=dataclasses.replace(stopped.plan, overwrite=True, threads=2))
    (job,), _ = open_jobs([again])
    assert (job.threads, job.begun_threads) == (2, 0)
    clear([job])
    assert not job.begun.exists()


def test_where_its_threads_are_not_known_the_log_says_so(stopped, caplog):
    stopped.begun.unlink()  # as of a version that did not note them
    (job,), _ = open_jobs([resumed(stopped, threads=3)])
    assert job.threads == 3
    assert "how it was begun is not known; it goes on with 3 threads" in caplog.text


def test_fresh_jobs_share_the_cores_out(stopped):
    fresh = Job(stopped.plan, "good", 0)
    todo, _ = open_jobs([resumed(stopped, threads=0), resumed(fresh, threads=0)])
    assert [job.threads for job in todo] == [1, cores()]


@pytest.mark.parametrize(("begun", "now"), [("cuda (a GPU)", "cpu"), ("cpu", "cuda:1 (a GPU)")])
def test_a_job_does_not_change_from_gpu_to_cpu(stopped, monkeypatch, begun, now):
    Begun(1, begun).write(stopped.begun)
    monkeypatch.setattr("benchmarks.harness.runner._device", lambda wanted, threads: (now.partition(" ")[0], now))
    failure = run_job(resumed(stopped))
    assert "the job was begun on" in failure.error
    assert f"{begun} and would go on on {now}" in failure.error
    assert stopped.checkpoint.exists()


DAMAGED = [b"", b"\0\0", b"half", b"{", b"[1]", b"nan", b"-1", b'{"threads": "1", "device": "cpu"}', b"[" * 100_000]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
@pytest.mark.parametrize("kind", ["clock", "begun"])
def test_a_damaged_side_file_is_named_before_anything_runs(stopped, kind, content):
    path = getattr(stopped, kind)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path} does not .*; remove it") as caught:
        open_jobs([resumed(stopped)])
    assert len(str(caught.value).splitlines()) == 1
    assert stopped.checkpoint.exists()
    path.unlink()  # what the message says
    (job,), _ = open_jobs([resumed(stopped)])
    (run,), failures = run_all([job])
    assert not failures
    assert run.measurements["resumed"] is True


def test_an_empty_checkpoint_is_named_before_anything_runs(stopped):
    stopped.checkpoint.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{stopped.checkpoint.name} is empty; remove it, and its job starts again"):
        open_jobs([resumed(stopped)])


def test_a_clock_that_is_not_there_has_counted_nothing(tmp_path):
    assert read_seconds(tmp_path / "none.seconds") == 0.0
    assert Begun.read(tmp_path / "none.begun") is None


@pytest.mark.parametrize("content", [b"", b"half", b"PK\3\4", b"[]", b"\x80\4."])
@pytest.mark.parametrize(
    ("name", "arm"),
    [("ewc-patterns", "ewc"), ("progressive-soup", "baseline1"), ("dgr-chain", "vae"), ("dgr-samples", "vae")],
)
def test_a_damaged_checkpoint_is_named_by_every_kind_of_experiment(tmp_path, name, arm, content):
    experiment = find_experiment(name)
    checkpoint = tmp_path / "job.pt"
    checkpoint.write_bytes(content)
    message = rf"^{checkpoint} does not fit its job \(.*\); remove it, and its job starts again with --resume$"
    with pytest.raises(ValueError, match=message):
        experiment.measure(experiment.scales["smoke"], arm, 0, Context(checkpoint=checkpoint, resume=True))


@pytest.mark.filterwarnings("ignore:No loggers specified")
@pytest.mark.parametrize("content", [b"", b"half", b"\x80\4."])
def test_a_damaged_checkpoint_of_a_strategy_is_named(tmp_path, content):
    experiment = find_experiment("ewc-fig2a")
    checkpoint = tmp_path / "job.pt"
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{checkpoint} does not fit its job \(.*\); remove it"):
        experiment.measure(experiment.scales["smoke"], "sgd", 0, Context(checkpoint=checkpoint, resume=True))


def test_what_a_job_had_found_is_read(tmp_path):
    path = tmp_path / "found.pt"
    path.write_text('{"base": {}}')
    assert read_found(path) == {"base": {}}
    with readable(path):
        pass


def test_a_result_that_cannot_be_stored_leaves_the_work_to_go_on_from(tmp_path, monkeypatch):
    jobs = [Job(make_plan(tmp_path, threads=1), "good", seed) for seed in (0, 1)]
    save = Run.save

    def full(run, path):
        if run.seed == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(run, path)

    monkeypatch.setattr(Run, "save", full)
    runs, failures = run_all(jobs)
    assert [run.seed for run in runs] == [1], "the others go on"
    assert (
        failures[0].error == f"its result could not be stored: [Errno 28] No space left on device: '{jobs[0].result}'"
    )
    assert jobs[0].checkpoint.exists()
    monkeypatch.setattr(Run, "save", save)
    todo, kept = open_jobs([resumed(job) for job in jobs])
    assert [run.seed for run in kept] == [1]
    (run,), _ = run_all(todo)
    assert run.measurements["resumed"] is True


def test_progress_that_cannot_be_written_does_not_end_a_job(tmp_path, monkeypatch, caplog):
    job = Job(make_plan(tmp_path), "good", 0)
    progress = ProgressFile(job, started=0.0)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("benchmarks.harness.runner.write_atomically", full)
    for done in (1, 4):
        progress.next = 0.0
        progress(done, 4)
    assert caplog.text.count("could not be written ([Errno 28] No space left on device); the job goes on") == 1


def test_two_processes_may_write_a_job_s_progress(tmp_path, monkeypatch):
    """Names of temporary files differ, so that neither takes the other's away."""
    job = Job(make_plan(tmp_path), "good", 0)
    one, other = (ProgressFile(job, started=0.0) for _ in range(2))
    replace = os.replace

    def both(temporary, target):
        monkeypatch.setattr(files.os, "replace", replace)
        other(2, 4, "other")
        replace(temporary, target)

    monkeypatch.setattr(files.os, "replace", both)
    one(1, 4, "one")
    assert json.loads(job.progress.read_text()) == [1, 4, "one"]
    assert [path.name for path in job.progress.parent.iterdir()] == [job.progress.name]
