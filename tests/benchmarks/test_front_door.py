"""What the commands say before any work: lists, counts, misspelt names, folders that cannot be written to."""

import io

import pytest
from job_cases import Settings, experiment, make_plan
from rich.console import Console

from benchmarks.__main__ import COMMANDS, main
from benchmarks.harness.display import Display, _read
from benchmarks.harness.experiment import Run
from benchmarks.harness.jobs import Job
from benchmarks.harness.listing import WIDTH, duration, entry
from benchmarks.harness.names import counted, did_you_mean, no_such
from benchmarks.harness.registry import experiment_names, find_experiment
from benchmarks.harness.run import parse, run


def test_the_list_fits_80_columns(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert WIDTH == 80
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line in experiment_names()] == experiment_names()
    assert "    time: smoke 0.1 min, cpu 12 min, paper 12 min" in lines


def test_an_experiment_needs_neither_every_scale_nor_every_estimate():
    own = experiment(scales={"smoke": Settings(), "mine": Settings()}, minutes={"smoke": 0.5})
    assert (
        entry(own) == "sums\n    sums\n    data: none; arms: good, fails\n    time: smoke 0.5 min, mine not estimated"
    )


def test_long_texts_are_wrapped_between_words():
    own = experiment(title="word " * 40, arms=tuple(f"arm-with-a-long-name-{k}" for k in range(9)))
    lines = entry(own).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.startswith("    ") for line in lines[1:])
    assert [name for line in lines for name in line.split() if name.startswith("arm-")] == [
        f"arm-with-a-long-name-{k}{',' * (k < 8)}" for k in range(9)
    ]


@pytest.mark.parametrize(
    ("minutes", "text"),
    [
        (None, "not estimated"),
        (0.02, "0.02 min"),
        (119, "119 min"),
        (145, "2.42 h"),
        (1500, "25 h"),
        (160_000, "111 days"),
    ],
)
def test_durations_have_units(minutes, text):
    assert duration(minutes) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 jobs"), (1, "1 job"), (2, "2 jobs")])
def test_counts_have_units(number, text):
    assert counted(number, "job") == text


@pytest.mark.parametrize(
    ("name", "hint"),
    [("papr", " (did you mean 'paper'?)"), ("CPU", " (did you mean 'cpu'?)"), ("nothing", ""), ("", "")],
)
def test_names_that_are_like_a_wrong_one_are_proposed(name, hint):
    assert did_you_mean(name, ("smoke", "cpu", "paper")) == hint
    assert (
        str(no_such("scale", name, ("smoke", "cpu", "paper")))
        == f"no scale {name!r}{hint}; there are: smoke, cpu, paper"
    )


MISSPELT = [
    (("run", "ewc-fig2"), "no experiment 'ewc-fig2' (did you mean"),
    (("run", "ewc_fig2b"), "no experiment 'ewc_fig2b' (did you mean 'ewc-fig2b'"),
    (("run", "EWC-fig2b"), "no experiment 'EWC-fig2b' (did you mean 'ewc-fig2b'"),
    (
        ("run", "ewc-fig2b", "--arms", "single", "egc"),
        "no arm 'egc' (did you mean 'ewc'?); there are: ewc, sgd, single",
    ),
    (("run", "ewc-fisher-labels", "--arms", "exact/lamda=*"), "no arm 'exact/lamda=*' (did you mean 'exact/lambda="),
    (
        ("run", "ewc-fig2b", "--scale", "papr"),
        "--scale must be one of smoke, cpu, paper, got 'papr' (did you mean 'paper'?)",
    ),
    (("raport",), "no command 'raport' (did you mean 'report'?); there are: list, demo, run, report, perf"),
    (("run", "ewc-fig2b", "--seeds", "0"), "--seeds must be at least 1, got 0"),
    (("perf", "--rounds", "0"), "--rounds must be at least 1, got 0"),
    (("perf", "--threads", "-1"), "--threads must be at least 0, got -1"),
]


@pytest.mark.parametrize(("arguments", "message"), MISSPELT, ids=range(len(MISSPELT)))
def test_a_wrong_name_or_number_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}")
    assert len(printed.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", experiment_names())
def test_choices_of_every_experiment_are_checked_before_its_jobs(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    settings = find_experiment(name).scales["cpu"]
    for setting in ("data", "domain", "evaluate", "optimizer", "drift_step"):
        if hasattr(settings, setting):
            with pytest.raises(SystemExit) as ended:
                main(["run", name, f"--{setting.replace('_', '-')}", "nothing"])
            assert ended.value.code == 2
            shown = " ".join(capsys.readouterr().err.split())
            assert "invalid choice 'nothing'" in shown
            assert getattr(settings, setting) in shown, "the right ones are listed"
    assert list(tmp_path.iterdir()) == []


def test_a_scale_that_an_experiment_has_not_is_refused():
    with pytest.raises(ValueError, match="--scale must be one of cpu, got 'paper'"):
        parse(experiment(), ["--scale", "paper"])


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("run", "ewc-patterns", "--out", "{file}"), "--out"),
        (("run", "ewc-patterns", "--out", "{file}/below"), "--out"),
        (("run", "ewc-patterns", "--scale", "smoke", "--logdir", "{file}"), "--logdir"),
        (("run", "ewc-patterns", "--out", "/dev/full/x"), "--out"),
        (("run", "ewc-patterns", "--out", "/proc/x"), "--out"),
        (("demo", "--logdir", "{file}"), "--logdir"),
        (("perf", "--data", "digits", "--out", "{file}/perf.json"), "--out"),
        (("perf", "--data", "digits", "--out", "/dev/full"), "--out"),
        (("perf", "--data", "digits", "--out", "{folder}"), "--out"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(
    tmp_path, monkeypatch, capsys, arguments, option
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    given = {"file": tmp_path / "file", "folder": tmp_path / "folder"}
    assert main([argument.format(**given) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {option}: ")
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


def screen(jobs, ended):
    """What a terminal of 80 columns shows of jobs, so many of which have ended."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    display = Display(console, jobs)
    result = Run("sums", "cpu", "good", 0, {}, "none", {}, "cpu", 1, 1.5, "abc", "2026", {})
    with display:
        for job in jobs[:ended]:
            display.ended(job, result)
        return "".join(segment.text for segment in console.render(display._progress))


def test_bars_say_what_they_count(tmp_path):
    jobs = [Job(make_plan(tmp_path), "good", seed) for seed in range(3)]
    shown = screen(jobs, 2)
    assert "2 of 3 jobs" in shown
    assert "67 %" in shown
    assert "0 of 1 job " in screen(jobs[:1], 0)


def test_no_bar_is_shown_for_no_jobs(tmp_path, monkeypatch):
    """An experiment without search jobs has one display, not an empty one before it."""
    made = []
    monkeypatch.setattr(
        "benchmarks.harness.run.Display", lambda console, jobs: made.append(len(jobs)) or Display(console, jobs)
    )
    out = io.StringIO()
    arguments = ["ewc-patterns", "--scale", "smoke", "--seeds", "1", "--threads", "1", "--logdir", str(tmp_path)]
    assert run(arguments, Console(file=out, width=160), lambda rows, title: f"{title}: {len(rows)} rows") == 0
    assert made == [2]
    assert "ewc-patterns, scale smoke: 2 jobs, 1 at a time, 1 thread each." in out.getvalue()
    assert "ewc-patterns, smoke: all runs in" in out.getvalue()
    again = io.StringIO()
    assert run([*arguments, "--resume"], Console(file=again, width=160), lambda rows, title: title) == 0
    assert made == [2], "nothing to do"
    assert "2 finished jobs kept." in again.getvalue()
    assert "ewc-patterns, scale smoke: 0 jobs" in again.getvalue()


@pytest.mark.parametrize(
    "content", ["", "5", "{}", '["a", "b", "c"]', "[1, 2]", "[null, 1, 2]", "[1e999, 1, 2]", "[" * 9999]
)
def test_damaged_progress_shows_nothing_and_stops_nothing(tmp_path, content):
    job = Job(make_plan(tmp_path), "good", 0)
    job.progress.parent.mkdir(parents=True)
    job.progress.write_text(content)
    assert _read(job) is None


def test_commands_are_those_of_the_help(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[3] for line in shown.splitlines() if line.startswith("python -m")] == list(COMMANDS)
    assert max(map(len, shown.splitlines())) <= 120
    assert main([]) == 2
    assert capsys.readouterr().err == shown
