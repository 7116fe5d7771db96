"""Stored runs are checked against their place and their experiment: each wrong file a line, and nothing is written."""

import dataclasses
import json
import math
import re
import shutil

import pytest

from benchmarks.__main__ import main
from benchmarks.harness.experiment import Context, Run, plain_settings
from benchmarks.harness.jobs import RESULTS, Job, Plan, open_jobs
from benchmarks.harness.registry import find_experiment
from benchmarks.harness.stored import arms_of, load_runs, made_of, path_of, rows_of, smoke_only, strangers

PATTERNS = find_experiment("ewc-patterns")
SETTINGS = dataclasses.replace(PATTERNS.scales["smoke"], n=60)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Runs of both arms under two seeds, and what the report says of them."""
    folder = tmp_path_factory.mktemp("good")
    for arm in ("ewc", "sgd"):
        for seed in (0, 1):
            run = Run(
                experiment="ewc-patterns",
                scale="cpu",
                arm=arm,
                seed=seed,
                settings=plain_settings(SETTINGS),
                data="random patterns",
                versions={"python": "3.11.0"},
                device="cpu",
                threads=1,
                seconds=90.0,
                commit="abc",
                date="2026-01-01T00:00:00+00:00",
                measurements=PATTERNS.measure(SETTINGS, arm, seed, Context()),
            )
            run.save(path_of(folder, run))
    return folder


@pytest.fixture
def results(good, tmp_path):
    """A copy to break."""
    return shutil.copytree(good, tmp_path / "results")


def reported(folder, capsys, *options):
    """Status of `report`, and the lines of its errors; the folder is as it was."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    status = main(["report", "--results", str(folder), *options])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return status, capsys.readouterr().err.splitlines()


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


COPIES = ("ewc-seed0 (copy).json", "ewc-seed00.json", "copy of ewc-seed0.json", "ewc-seed2.json", "ewc-seed0.bak.json")


@pytest.mark.parametrize("name", COPIES)
def test_a_copied_file_is_no_further_seed(results, capsys, name):
    folder = results / "ewc-patterns" / "cpu"
    shutil.copy(folder / "ewc-seed0.json", folder / name)
    status, errors = reported(results, capsys)
    assert status == 2
    assert errors == [
        f"error: {folder / name} holds arm 'ewc', seed 0, whose file is ewc-seed0.json; remove it if it is a copy, "
        "rename it if it is not"
    ]


PLACES = {
    "another seed": ({"seed": 1}, r"holds arm 'ewc', seed 1, whose file is ewc-seed1.json; remove it if it is a copy"),
    "another arm": ({"arm": "sgd"}, r"holds arm 'sgd', seed 0, whose file is sgd-seed0.json"),
    "another scale": (
        {"scale": "paper"},
        r"is a run of ewc-patterns, scale paper, in .* scale cpu; move it to .*paper/",
    ),
    "another experiment": ({"experiment": "ewc-fig2a"}, r"is a run of ewc-fig2a, .* in the folder of ewc-patterns"),
    "other settings": ({"settings": {"n": 61}}, r"\(.*n, .*\), which one table must not mix; .* --overwrite, .* --out"),
    "other data": ({"data": "others"}, r"different settings \(data\)"),
}


@pytest.mark.parametrize("case", PLACES)
@pytest.mark.parametrize("options", [(), ("--json",), ("--csv",), ("--latex",)])
def test_a_run_in_the_wrong_place_is_named(results, capsys, case, options):
    fields, message = PLACES[case]
    change(results / "ewc-patterns" / "cpu" / "ewc-seed0.json", **fields)
    status, errors = reported(results, capsys, *options)
    assert status == 2
    assert all("ewc-seed0.json" in line for line in errors), "each line names the file"
    assert re.search(message, errors[0])


def test_an_arm_or_a_scale_that_the_experiment_has_not_is_named(results, capsys):
    folder = results / "ewc-patterns"
    change(folder / "cpu" / "ewc-seed0.json", arm="ewcc")
    (folder / "cpu" / "ewc-seed0.json").rename(folder / "cpu" / "ewcc-seed0.json")
    shutil.copytree(folder / "cpu", folder / "cpuu")
    for path in (folder / "cpuu").glob("*.json"):
        path.unlink() if "sgd-seed0" not in path.name else change(path, scale="cpuu")
    arm, scale = folder / "cpu" / "ewcc-seed0.json", folder / "cpuu" / "sgd-seed0.json"
    status, errors = reported(results, capsys)
    assert status == 2
    assert errors == [
        f"error: {arm}: no arm 'ewcc' (did you mean 'ewc'?); there are: ewc, sgd; remove it, or add the arm to "
        "ewc-patterns",
        f"error: {scale}: no scale 'cpuu' (did you mean 'cpu'?); there are: smoke, cpu, paper; remove it, or add the "
        "scale",
    ]


KINDS = [
    ("seed", "0", "seed must be an integer, got '0'"),
    ("seed", True, "seed must be an integer, got True"),
    ("seed", 0.0, "seed must be an integer, got 0.0"),
    ("seed", -1, "seed must be a finite number from 0 on, got -1"),
    ("seconds", None, "seconds must be a number, got None"),
    ("seconds", math.nan, "seconds must be a finite number from 0 on, got nan"),
    ("seconds", math.inf, "seconds must be a finite number from 0 on, got inf"),
    ("seconds", "90", "seconds must be a number, got '90'"),
    ("threads", 0, "threads must be a finite number from 1 on, got 0"),
    ("threads", None, "threads must be an integer, got None"),
    ("measurements", [1, 2], "measurements must be an object, got [1, 2]"),
    ("measurements", None, "measurements must be an object, got None"),
    ("settings", [], "settings must be an object, got []"),
    ("versions", {"torch": 2}, "versions must be texts, got {'torch': 2}"),
    ("arm", 1, "arm must be a text, got 1"),
    ("data", None, "data must be a text, got None"),
    ("date", 20260101, "date must be a text, got 20260101"),
    ("commit", ["a"], "commit must be a text, got ['a']"),
    ("more", 1, "unexpected keyword argument 'more'"),
]


@pytest.mark.parametrize(("field", "value", "message"), KINDS)
def test_a_wrong_kind_of_value_is_named_with_its_file(results, capsys, field, value, message):
    path = results / "ewc-patterns" / "cpu" / "sgd-seed1.json"
    change(path, **{field: value})
    status, errors = reported(results, capsys)
    assert status == 2
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {path} does not hold a run (")
    assert message in errors[0]
    assert errors[0].endswith("; remove it and run the job again")


CONTENTS = (b"", b"{", b"[]", b"5", b'"text"', b"null", b"{}", b"\xff\xfe\x00", b"[" * 100_000, b"1" * 10_000)


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_a_damaged_file_is_named(results, capsys, content):
    path = results / "ewc-patterns" / "cpu" / "sgd-seed1.json"
    path.write_bytes(content)
    status, errors = reported(results, capsys)
    assert (status, len(errors)) == (2, 1)
    assert errors[0].startswith(f"error: {path} does not hold a run (")


def test_a_folder_in_place_of_a_file_is_named(results, capsys):
    (results / "ewc-patterns" / "cpu" / "sgd-seed2.json").mkdir()
    status, errors = reported(results, capsys)
    assert (status, len(errors)) == (2, 1)
    assert "sgd-seed2.json does not hold a run (IsADirectoryError" in errors[0]


def test_all_wrong_files_are_named_at_once(results, capsys):
    folder = results / "ewc-patterns" / "cpu"
    (folder / "ewc-seed0.json").write_bytes(b"")
    change(folder / "sgd-seed1.json", seed="1")
    shutil.copytree(folder, results / "ewc-fig2a" / "cpu")
    _, errors = reported(results, capsys)
    assert len(errors) == 6, "two of the four, and all four copies in the other experiment's folder"
    assert all(line.startswith("error: ") for line in errors)


BROKEN = {
    "nothing": {},
    "no slope": {"slope": None},
    "a text": {"slope": "steep"},
    "a list": {"slope": [1, 2]},
    "a curve too short": {"noise": [1.0, 2.0]},
}


@pytest.mark.parametrize("case", BROKEN)
def test_measurements_that_rows_or_figure_cannot_be_made_of_are_named(results, capsys, case):
    path = results / "ewc-patterns" / "cpu" / "ewc-seed1.json"
    content = json.loads(path.read_text())
    change(path, measurements=(content["measurements"] if case != "nothing" else {}) | BROKEN[case])
    status, errors = reported(results, capsys)
    assert (status, len(errors)) == (2, 1)
    assert re.match(
        rf"error: {re.escape(str(path))}: its measurements do not make (rows|the figure) \(\w+: .*, \w+\.py:\d+\); "
        "measure it again with --overwrite, or remove it$",
        errors[0],
    )


def test_where_no_single_run_is_to_blame_their_folder_is_named(good):
    runs = load_runs(good)["ewc-patterns", "cpu"]

    def make(own):
        if len(own) > 1:
            raise KeyError("pairs")

    with pytest.raises(ValueError, match=r"ewc-patterns/cpu: the runs do not make pairs \(KeyError: 'pairs', test"):
        made_of(runs, good, "pairs", make)


def test_settings_that_are_not_the_experiment_s_are_named(results, capsys):
    pong = find_experiment("progressive-pong-soup")
    run = load_runs(results)["ewc-patterns", "cpu"][0]
    settings = plain_settings(pong.scales["cpu"]) | {"targets": 5}
    own = dataclasses.replace(run, experiment=pong.name, arm="baseline1", settings=settings)
    own.save(path_of(results, own))
    status, errors = reported(results, capsys)
    assert (status, len(errors)) == (2, 1)
    assert "baseline1-seed0.json: its settings are not those of progressive-pong-soup (TypeError: " in errors[0]


def test_resuming_checks_the_results_too(results):
    folder = results / "ewc-patterns" / "cpu"
    plan = Plan(PATTERNS, "cpu", SETTINGS, results, results / "runs", threads=1, resume=True)
    jobs = [Job(plan, arm, seed) for arm in ("ewc", "sgd") for seed in (0, 1)]
    assert [len(part) for part in open_jobs(jobs)] == [0, 4]
    change(folder / "ewc-seed0.json", seed=1)
    (folder / "sgd-seed0.json").write_bytes(b"")
    shutil.copy(folder / "sgd-seed1.json", folder / "sgd-seed7.json")
    with pytest.raises(ValueError, match=r"sgd-seed0\.json does not hold") as caught:
        open_jobs(jobs)
    assert [line.partition(".json")[0][-9:] for line in str(caught.value).splitlines()] == [
        "ewc-seed0",
        "sgd-seed0",
        "sgd-seed7",
    ]
    (folder / "sgd-seed7.json").unlink()
    again = [dataclasses.replace(job, plan=dataclasses.replace(plan, overwrite=True)) for job in jobs]
    todo, kept = open_jobs(again)
    assert [(job.arm, job.seed) for job in todo] == [("ewc", 0), ("sgd", 0)], "what is damaged is measured again"
    assert len(kept) == 2


def test_only_smoke_runs_are_no_results(results, capsys):
    folder = results / "ewc-patterns"
    shutil.copytree(folder / "cpu", folder / "smoke")
    assert smoke_only(results) == []
    shutil.rmtree(folder / "cpu")
    assert smoke_only(results) == ["ewc-patterns"]
    assert main(["report", "--results", str(results)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said == f"Only smoke runs found in {results} of ewc-patterns, which are no results."
    assert main(["report", "--json", "--results", str(results)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == []
    assert "Only smoke runs found" in " ".join(printed.err.split())


def test_where_there_is_nothing_the_report_says_so(results, tmp_path, capsys):
    assert main(["report", "--results", str(tmp_path / "none")]) == 0
    assert "none; `python -m benchmarks run NAME` makes some." in " ".join(capsys.readouterr().out.split())
    path = results / "ewc-patterns" / "cpu" / "ewc-seed0.json"
    assert main(["report", "--results", str(path)]) == 2
    assert capsys.readouterr().err == f"error: --results must be a folder, got {path}\n"


def test_a_folder_that_no_experiment_has_is_mentioned(results, capsys):
    shutil.copytree(results / "ewc-patterns", results / "ewc-paterns")
    assert strangers(results) == ["ewc-paterns"]
    assert main(["report", "--csv", "--results", str(results)]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 5
    strange = results / "ewc-paterns"
    assert printed.err.startswith(f"{strange} is left out: no experiment has that name (did you mean 'ewc-patterns'")


def test_every_stored_run_makes_rows_alone():
    """Any runs of an experiment may be missing, so that one alone says whether it is to blame."""
    found = load_runs(RESULTS)
    for runs in found.values():
        for run in runs:
            assert rows_of([run], RESULTS)
            assert json.loads(path_of(RESULTS, run).read_text())["arm"] == run.arm
            assert run.arm in arms_of(find_experiment(run.experiment), run.scale, run.settings)
