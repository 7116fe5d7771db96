"""Jobs: their files, what a command keeps or refuses, failures, resuming."""

import dataclasses
import json
import time

import pytest
import torch
from job_cases import Settings, experiment, make_plan, run_all

from benchmarks.harness.experiment import Run, file_name, plain_settings
from benchmarks.harness.jobs import Job, Refused, cores, open_jobs
from benchmarks.harness.papers import paper
from benchmarks.harness.registry import experiment_names, find_experiment
from benchmarks.harness.run import make_jobs, parse
from benchmarks.harness.runner import ProgressFile


def test_a_run_is_stored_whole_and_read_back(tmp_path):
    job = Job(make_plan(tmp_path), "good", 3)
    runs, failures = run_all([job])
    assert not failures
    assert job.result == tmp_path / "sums" / "cpu" / "good-seed3.json"
    stored = Run.load(job.result)
    assert stored.measurements == {"total": 18, "resumed": False, "array": [0, 1], "search": 0}
    assert stored.settings == {"steps": 4, "sizes": [1, 2]} == plain_settings(Settings())
    assert (stored.arm, stored.seed, stored.scale, stored.data, stored.device) == ("good", 3, "cpu", "none", "cpu")
    assert stored.threads == cores() == torch.get_num_threads()
    assert set(stored.versions) == {"python", "torch", "numpy", "avalanche-lib", "avl-plugins"}
    assert runs[0].seconds == stored.seconds
    left = [path.name for path in (tmp_path / "runs" / "unfinished").rglob("*") if path.is_file()]
    assert left == []
    assert list(job.logdir.glob("events.out.tfevents.*"))
    torch.set_num_threads(1)


def test_a_failing_job_leaves_the_others_alone(tmp_path):
    plan = make_plan(tmp_path, threads=1)
    runs, failures = run_all([Job(plan, arm, 0) for arm in ("fails", "good")])
    assert [run.arm for run in runs] == ["good"]
    assert [failure.job.name for failure in failures] == ["sums fails seed 0"]
    assert failures[0].error == "ValueError: it failed"
    assert "raise ValueError" in failures[0].trace
    assert not failures[0].job.result.exists()


def test_an_interrupted_job_goes_on_from_its_checkpoint(tmp_path):
    plan = make_plan(tmp_path, threads=1)
    jobs = [Job(plan, arm, 1) for arm in ("good", "stops")]
    with pytest.raises(KeyboardInterrupt):
        run_all(jobs)
    assert jobs[0].result.exists()
    assert jobs[1].checkpoint.exists()

    with pytest.raises(Refused, match="--resume"):
        open_jobs(jobs)
    resumed = dataclasses.replace(plan, resume=True)
    todo, kept = open_jobs([dataclasses.replace(job, plan=resumed) for job in jobs])
    assert [run.arm for run in kept] == ["good"]
    runs, failures = run_all(todo)
    assert not failures
    assert runs[0].measurements["resumed"] is True
    assert runs[0].measurements["total"] == 10
    assert not jobs[1].checkpoint.exists()


def test_the_seconds_of_a_killed_job_are_known_as_soon_as_it_can_be_resumed(tmp_path):
    job = Job(make_plan(tmp_path), "good", 0)
    job.checkpoint.parent.mkdir(parents=True)
    progress = ProgressFile(job, started=time.perf_counter() - 100)
    progress(1, 4)
    assert not job.clock.exists()  # nothing to resume
    job.checkpoint.write_text("[2, 1]")
    progress(2, 4)  # too soon after the last
    assert not job.clock.exists()
    progress.next = 0.0
    progress(2, 4)
    assert 100 <= float(job.clock.read_text()) < 160
    assert json.loads(job.progress.read_text()) == [2, 4, ""]
    for text in ("the end", "and again"):  # the end is noted at once, but not over and over
        progress(4, 4, text)
    assert json.loads(job.progress.read_text()) == [4, 4, "the end"]

    # Killed here, without a last word.
    resumed = dataclasses.replace(job, plan=make_plan(tmp_path, resume=True, threads=1))
    runs, _ = run_all([resumed])
    assert runs[0].measurements["resumed"] is True
    assert 100 <= runs[0].seconds < 160


def test_nothing_is_replaced_unless_told_to(tmp_path):
    plan = make_plan(tmp_path, threads=1)
    job = Job(plan, "good", 0)
    run_all([job])

    def opened(**changes):
        todo, kept = open_jobs([dataclasses.replace(job, plan=dataclasses.replace(plan, **changes))])
        return len(todo), len(kept)

    with pytest.raises(Refused, match=r"good-seed0.json exists. --resume"):
        opened()
    assert opened(resume=True) == (0, 1)
    assert opened(overwrite=True) == (1, 0)
    assert opened(resume=True, overwrite=True) == (0, 1)
    other = Settings(steps=5)
    with pytest.raises(Refused, match=r"other settings \(steps\)"):
        opened(resume=True, settings=other)
    assert opened(resume=True, overwrite=True, settings=other) == (1, 0)
    # Unfinished work under other settings is another file.
    assert dataclasses.replace(job, plan=dataclasses.replace(plan, settings=other)).checkpoint != job.checkpoint

    job.result.write_text("{}")
    with pytest.raises(ValueError, match=r"good-seed0.json does not hold a run"):
        opened(resume=True)


def test_results_that_would_share_a_table_have_the_same_settings(tmp_path):
    plan = make_plan(tmp_path, threads=1)
    old = [Job(plan, "good", seed) for seed in (0, 1)]
    run_all(old)

    def opened(*seeds, **changes):
        changed = dataclasses.replace(plan, **changes)
        todo, kept = open_jobs([Job(changed, "good", seed) for seed in seeds])
        return len(todo), len(kept)

    other = {"settings": Settings(steps=5)}
    assert opened(2) == (1, 0)
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(Refused, match=r"good-seed0.json .* other settings \(steps\) .*--out .*--overwrite"):
            opened(2, **other, **flags)
    with pytest.raises(Refused, match=r"good-seed1.json .* other settings \(steps\)"):
        opened(0, 2, overwrite=True, **other)  # seed 1 would stay as it is
    assert opened(0, 1, 2, overwrite=True, **other) == (3, 0)
    assert opened(2, out=tmp_path / "apart", **other) == (1, 0)
    with pytest.raises(Refused, match=r"other settings \(data\)"):
        opened(2, experiment=experiment(data="others"))


def test_arms_become_safe_file_names_and_may_not_clash(tmp_path):
    assert file_name("exact/lambda=1e+2", 7) == "exact_lambda=1e+2-seed7"
    with pytest.raises(ValueError, match="same file name"):
        open_jobs([Job(make_plan(tmp_path), arm, 0) for arm in ("a/b", "a_b")])


def test_search_jobs_come_first_and_patterns_choose_arms(tmp_path):
    searching = experiment(
        arms=lambda settings: ("exact", "sampled", "none"),
        search=lambda settings: [("exact/lambda=1", 100)],
        search_of=lambda arm: "exact" if arm == "sampled" else arm,
    )
    plan = make_plan(tmp_path, experiment=searching, threads=1)
    search, main = make_jobs(plan, (), range(2))
    assert [(job.arm, job.seed) for job in search] == [("exact/lambda=1", 100)]
    assert [(job.arm, job.seed) for job in main] == [
        (arm, seed) for seed in (0, 1) for arm in ("exact", "sampled", "none")
    ]
    search, main = make_jobs(plan, ("exact/*",), range(2))
    assert (len(search), len(main)) == (1, 0)
    search, main = make_jobs(plan, ("samp*",), range(1))
    assert ([job.arm for job in main], len(search)) == (["sampled"], 1)  # whose lambda is that of "exact"
    assert [len(jobs) for jobs in make_jobs(plan, ("none",), range(2))] == [0, 2]
    with pytest.raises(ValueError, match=r"no arm 'nothing'; there are: exact, sampled, none, exact/lambda=1"):
        make_jobs(plan, ("nothing",), range(1))

    found, _ = run_all(search)
    runs, _ = run_all([dataclasses.replace(main[0], search=tuple(found))])
    assert runs[0].measurements["search"] == 1


def test_threads_are_shared_out_among_the_jobs(tmp_path):
    assert make_plan(tmp_path, jobs=2 * cores()).threads_each == 1
    assert make_plan(tmp_path, jobs=1).threads_each == cores()
    assert make_plan(tmp_path, jobs=1, threads=3).threads_each == 3


def test_denormal_numbers_are_zero_in_a_job(tmp_path):
    def product():
        return float(torch.tensor(2e-38) * 0.1)

    torch.set_flush_denormal(False)
    assert product() > 0
    run_all([Job(make_plan(tmp_path, threads=1), "good", 0)])
    try:
        assert product() == 0
    finally:
        torch.set_flush_denormal(False)


def test_settings_become_options_with_the_scale_s_defaults():
    patterns = find_experiment("ewc-patterns")
    options = parse(patterns, ["--scale", "smoke", "--n", "60", "--arms", "ewc", "sgd", "--resume"])
    assert options.settings == dataclasses.replace(patterns.scales["smoke"], n=60)
    assert (options.arms, options.resume, options.overwrite) == (("ewc", "sgd"), True, False)
    assert parse(patterns, []).settings == patterns.scales["cpu"]
    with pytest.raises(ValueError, match="--scale must be one of smoke, cpu, paper"):
        parse(patterns, ["--scale", "huge"])
    clashing = experiment(scales={"cpu": dataclasses.make_dataclass("S", [("seeds", int, 1)], frozen=True)()})
    with pytest.raises(ValueError, match="named as options of `run`: seeds"):
        parse(clashing, [])


LONGER = ("ewc-atari", "progressive-pong-soup")
"""Their budget at cpu scale is what their games need, not the hour that the others keep to."""


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_follows_the_skeleton(name):
    found = find_experiment(name)
    assert found.name == name
    assert set(found.scales) == set(found.minutes) == {"smoke", "cpu", "paper"}
    assert found.minutes["cpu"] <= 60 or name in LONGER
    assert found.description
    for settings in found.scales.values():
        assert dataclasses.is_dataclass(settings)
        assert found.arm_names(settings)
        plain_settings(settings)


def test_unknown_experiments_and_papers_are_named():
    with pytest.raises(ValueError, match=r"no experiment 'nothing'; there are: .*ewc-patterns"):
        find_experiment("nothing")
    with pytest.raises(ValueError, match=r"no numbers for the paper 'nothing'; there are: .*ewc"):
        paper("nothing")


def test_the_paper_s_derived_numbers_follow_from_the_read_ones():
    numbers = paper("ewc")
    for arm in ("sgd", "l2", "ewc"):
        one = numbers["fig2a"][arm]
        assert one["mean"] == pytest.approx((one["a_c"] + one["b_c"] + one["c_c"]) / 3, abs=1e-3)
        assert one["drop_a"] == pytest.approx(one["a_a"] - one["a_c"], abs=1e-9)
    for table, keys in (("fig2b", ("ewc", "sgd_dropout")), ("fig2c", ("low", "high"))):
        for key in keys:
            assert len(numbers[table][key]) == len(numbers[table]["tasks" if table == "fig2b" else "layers"])
    assert numbers["fig3c"]["half_ratio"] == pytest.approx(5.4e-2 / 3.8e-3, abs=0.3)


def test_nothing_is_left_of_a_job_killed_in_the_middle_of_a_write(tmp_path):
    job = Job(make_plan(tmp_path), "good", 0)
    name = job.checkpoint.name
    job.checkpoint.parent.mkdir(parents=True)
    for written in (name, f".{name}.partial", f".{name}.7.tmp", ".other.pt.7.tmp"):
        (job.checkpoint.parent / written).write_text("half")
    job.clear_unfinished()
    assert [path.name for path in job.checkpoint.parent.iterdir()] == [".other.pt.7.tmp"]
