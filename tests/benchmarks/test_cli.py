"""Each command line once, in a subprocess, at smoke scale."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.harness.experiment import Context, Run
from benchmarks.harness.registry import METHODS, experiment_names, find_experiment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PYTHON = (sys.executable, "-m", "benchmarks")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "NO_COLOR": "1"}


def command(*arguments, timeout=300, **environment):
    return subprocess.run(
        [*PYTHON, *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def python(code, timeout=600):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout
    )


def test_list_names_every_experiment_without_importing_torch():
    listed = command("list")
    assert listed.returncode == 0, listed.stderr
    for name in experiment_names():
        assert re.search(rf"\b{name}\b", listed.stdout)
    code = (
        "import sys; from benchmarks.__main__ import main; assert main(['list', '-v']) == 0\n"
        "assert not {'torch', 'avalanche'} & sys.modules.keys()"
    )
    verbose = python(code)
    assert verbose.returncode == 0, verbose.stderr
    assert "Deviations:" in verbose.stdout


def test_wrong_use_exits_with_2_and_says_what_is_right():
    assert command().returncode == 2
    nothing = command("run", "nothing")
    assert nothing.returncode == 2
    assert "ewc-patterns" in nothing.stderr
    assert command("run").returncode == 2
    assert "--jobs must be at least 1" in command("run", "ewc-patterns", "--jobs", "0").stderr


def test_help_shows_the_settings_of_the_scale():
    shown = command("run", "ewc-patterns", "--scale", "smoke", "--help")
    assert shown.returncode == 0
    assert "Number of weights. (default: 50)" in " ".join(shown.stdout.split())
    assert "power law" in shown.stdout


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("list",), ("list", "--help"), ("run",), ("run", "ewc-patterns", "--help"), ("report", "--json")],
)
def test_a_reader_that_has_gone_away_is_no_error_message(arguments):
    read, write = os.pipe()
    os.close(read)  # as `| head` does once it has its lines
    try:
        ended = subprocess.run(
            [*PYTHON, *arguments],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
        )
    finally:
        os.close(write)
    assert ended.stderr == ""
    assert ended.returncode in (0, 1)


def test_a_missing_extra_is_named():
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "from benchmarks.__main__ import main; sys.exit(main(['run', 'ewc-patterns']))"
    )
    missing = python(code)
    assert missing.returncode == 2
    assert 'rich is not installed: pip install -e ".[bench]"' in missing.stderr


@pytest.mark.parametrize("method", METHODS)
def test_every_experiment_runs_at_smoke_scale_and_reports(tmp_path, method):
    names = [name for name in experiment_names() if name.startswith(f"{method}-")]
    # One process for all of a method: importing Avalanche takes seconds.
    code = f"""
import sys
from benchmarks.__main__ import main
for name in {names!r}:
    out = main(["run", name, "--scale", "smoke", "--seeds", "2", "--threads", "1", "--logdir", {str(tmp_path)!r}])
    assert out == 0, name
sys.exit(0)
"""
    ran = python(code)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    for name in names:
        experiment = find_experiment(name)
        runs = [Run.load(path) for path in (tmp_path / "smoke" / name / "smoke").glob("*.json")]
        for arm in experiment.arm_names(experiment.scales["smoke"]):
            assert {run.seed for run in runs if run.arm == arm} >= {0, 1}
            assert list((tmp_path / name / "smoke").glob("*-seed0/events.out.tfevents.*"))
        assert all(row.seeds or row.mean is None for row in experiment.rows(runs))
        experiment.figure(runs).savefig(tmp_path / f"{name}.png")
    report = command("report", "--json", "--results", tmp_path / "smoke")
    assert (report.returncode, json.loads(report.stdout)) == (0, [])  # smoke runs are no results
    assert "Only smoke runs found" in report.stderr


def test_the_demo_shows_each_method_keeping_what_plain_training_forgets(tmp_path):
    from benchmarks.demo import WAYS

    shown = command("demo", "--logdir", tmp_path)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert max(len(line) for line in lines if "--logdir" not in line) <= 80
    numbers = {}
    for line in lines:
        if found := re.findall(r"(-?[\d.]+) %", line):
            numbers.setdefault(line.strip().split("  ")[0], []).append([float(number) for number in found])
    permuted, classes = numbers.pop("plain training")
    assert set(numbers) == {"EWC", "Progressive", "DEN", "DGR"}
    for name, ((*tasks, mean, forgetting),) in numbers.items():
        assert len(tasks) == 5
        assert mean == pytest.approx(sum(tasks) / 5, abs=0.1)
        plain = classes if name == "DGR" else permuted
        assert mean >= plain[5] + (40 if name == "DGR" else 8)
        assert forgetting <= plain[6] - (40 if name == "DGR" else 8)
    assert all(f"{way.name}: {way.text}." in lines for way in WAYS)
    assert numbers["Progressive"][0][6] == 0
    assert classes[:4] == [0, 0, 0, 0]
    assert f"tensorboard --logdir {tmp_path / 'demo'}" in shown.stdout
    folders = ["permuted-naive", "permuted-ewc", "permuted-progressive", "permuted-den", "classes-naive", "classes-dgr"]
    if importlib.util.find_spec("gymnasium"):
        folders += ["cartpole-finetune", "cartpole-progressive"]

        def returns(name):
            line = next(line for line in lines if name in line and "CartPoles" not in line)
            return [int(number) for number in re.findall(r"\d+", line)]

        plain, progressive = returns("plain agent"), returns("progressive agent")
        assert len(plain) == len(progressive) == 6  # three tasks, new and at the end
        assert plain[1] <= plain[0] / 2
        assert progressive[::2] == progressive[1::2]
        assert max(progressive) > 100, "a random player has 22"
    else:
        assert "gymnasium is not installed" in shown.stdout
    for folder in folders:
        assert list((tmp_path / "demo" / folder).glob("events.out.tfevents.*"))


def test_the_demos_logs_show_accuracies_first_and_the_settings(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from benchmarks import demo

    ewc = dataclasses.replace(demo.WAYS[1], units=(8, 8), epochs=1)
    steps = []
    matrix = demo.train(ewc, 0, tmp_path, lambda done, total, text: steps.append(done / total))
    assert [len(row) for row in matrix] == [1, 2, 3, 4, 5]
    assert steps == sorted(steps)
    assert steps[-1] == 1
    log = EventAccumulator(str(tmp_path)).Reload()
    tags = log.Tags()["scalars"]
    assert min(tags).startswith("Accuracy/")
    layers = {tag.split("/")[2] for tag in tags if tag.startswith("ewc/FisherMass/")}
    assert layers == {"layer 1", "layer 2", "layer 3"}
    assert [event.value for event in log.Scalars("Accuracy/task 2")] == pytest.approx([row[1] for row in matrix[1:]])
    means = [sum(row) / len(row) for row in matrix]
    assert [event.value for event in log.Scalars("Accuracy/mean of tasks so far")] == pytest.approx(means)
    data = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert all(word in data for word in (b"method", b"EWC", b"ewc_lambda", b"epochs", b"seed"))
    assert log.Scalars("Accuracy/at the end")[0].value == pytest.approx(means[-1])


def test_mean_and_forgetting_of_a_matrix():
    from benchmarks.demo import mean_and_forgetting

    assert mean_and_forgetting([[0.9], [0.5, 0.8], [0.4, 0.7, 0.6]]) == pytest.approx((1.7 / 3, (0.5 + 0.1) / 2))


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_stops_cleanly_and_resume_goes_on(tmp_path, jobs):
    arguments = ["run", "ewc-patterns", "--scale", "smoke", "--n", "150", "--simulations", "120", "--chunk", "4"]
    arguments += ["--arms", "ewc", "--seeds", "2", "--jobs", str(jobs), "--threads", "1", "--logdir", str(tmp_path)]
    started = subprocess.Popen(
        [*PYTHON, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in its background has children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    unfinished = tmp_path / "unfinished" / "ewc-patterns" / "smoke"
    deadline = time.monotonic() + 120
    while not list(unfinished.glob("*.pt")) and time.monotonic() < deadline and started.poll() is None:
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    stdout, stderr = started.communicate(timeout=60)
    assert started.returncode == 130, stdout + stderr
    assert "Traceback" not in stderr
    assert "python -m benchmarks run ewc-patterns" in stdout
    assert stdout.rstrip().endswith("--resume")
    assert list(unfinished.glob("*.pt"))

    resumed = command(*arguments, "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert not [path for path in unfinished.rglob("*") if path.is_file()]
    run = Run.load(tmp_path / "smoke" / "ewc-patterns" / "smoke" / "ewc-seed0.json")
    experiment = find_experiment("ewc-patterns")
    whole = experiment.measure(type(experiment.scales["smoke"])(**run.settings), "ewc", 0, Context())
    assert run.measurements["signal"] == whole["signal"].tolist()
    assert run.measurements["noise"] == whole["noise"].tolist()


LONG = (
    "run",
    "ewc-patterns",
    "--scale",
    "smoke",
    "--n",
    "300",
    "--simulations",
    "4000",
    "--chunk",
    "4",
    "--arms",
    "ewc",
)
"""More than a minute, saved every fraction of a second."""


def started(*arguments):
    return subprocess.Popen(
        [*PYTHON, *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a test that fails can end the workers, too
    )


def wait_for(found, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not found() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert found(), process.communicate(timeout=10)


def test_two_runs_in_one_folder_and_what_a_killed_one_leaves(tmp_path):
    """The second is refused with the first one's number; killed, the first takes its workers along, and is resumed."""
    arguments = [*LONG, "--seeds", "2", "--jobs", "2", "--threads", "1", "--logdir", tmp_path]
    unfinished = tmp_path / "unfinished" / "ewc-patterns" / "smoke"
    first = started(*arguments)
    try:
        wait_for(lambda: len(list(unfinished.glob("*.pt"))) == 2, first)
        other, shared = tmp_path / "other", tmp_path / "smoke"
        for more in (("--resume",), ("--out", other), ("--logdir", other, "--out", shared)):
            second = command(*arguments, *more)
            assert second.returncode == 2, second.stdout
            assert f"is in use by process {first.pid} on " in second.stderr
            assert "--out and --logdir" in second.stderr
            assert len(second.stderr.splitlines()) == 1
        assert first.poll() is None
        first.kill()
        first.communicate(timeout=60)
        time.sleep(2)  # workers look every half second
        left = {path: path.read_bytes() for path in unfinished.iterdir()}
        time.sleep(2)
        assert {path: path.read_bytes() for path in unfinished.iterdir()} == left, "a worker goes on"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
    assert len([path for path in left if path.suffix == ".pt"]) == 2

    again = started(*arguments, "--resume")
    try:
        wait_for(lambda: any(path.read_bytes() != left[path] for path in left if path.suffix == ".pt"), again)
        again.send_signal(signal.SIGINT)
        stdout, stderr = again.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(again.pid, signal.SIGKILL)
    assert again.returncode == 130, stdout + stderr
    assert "Going on with 2 unfinished jobs." in stdout
    assert not list(tmp_path.rglob(".lock")), "who ends by himself leaves no lock"


def test_a_failing_job_is_named_and_gives_status_1(tmp_path):
    failed = command("run", "ewc-patterns", "--scale", "smoke", "--n", "-1", "--seeds", "1", "--logdir", tmp_path)
    assert failed.returncode == 1
    assert "failed ewc-patterns ewc seed 0: ValueError" in failed.stdout
    assert "2 failed: ewc-patterns ewc seed 0, ewc-patterns sgd seed 0" in failed.stdout


HEAD = """
import ray
context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
print(context.address_info["gcs_address"], flush=True)
input()
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs pip install -e ".[ray]"')
def test_the_same_jobs_run_on_a_ray_cluster(tmp_path):
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD],
        env=ENVIRONMENT | token,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = head.stdout.readline().strip()
        arguments = ["run", "ewc-patterns", "--scale", "smoke", "--jobs", "2", "--threads", "1", "--cluster", "ray"]
        ran = command(*arguments, "--seeds", "2", "--logdir", tmp_path, RAY_ADDRESS=address, **token)
        many = command(*arguments, "--seeds", "1", "--jobs", "3", "--logdir", tmp_path, RAY_ADDRESS=address, **token)
    finally:
        head.communicate("\n", timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    runs = [Run.load(path) for path in (tmp_path / "smoke" / "ewc-patterns" / "smoke").glob("*.json")]
    assert sorted((run.arm, run.seed) for run in runs) == [("ewc", 0), ("ewc", 1), ("sgd", 0), ("sgd", 1)]
    experiment = find_experiment("ewc-patterns")
    for run in runs:
        here = experiment.measure(experiment.scales["smoke"], run.arm, run.seed, Context())
        assert run.measurements["signal"] == here["signal"].tolist()
    assert many.returncode == 2
    assert "3 jobs of 1 threads need more than the cluster's 2 cores" in many.stderr


def test_perf_compares_every_alternative(tmp_path):
    out = tmp_path / "perf.json"
    ran = command("perf", "--data", "digits", "--rounds", "1", "--threads", "1", "--out", out)
    assert ran.returncode == 0, ran.stderr[-3000:]
    record = json.loads(out.read_text())
    assert (record["data"], record["threads"], record["rounds"]) == ("digits", 1, 1)
    lines = {(line["what"], line["against"]): line for line in record["lines"]}
    assert all(line["seconds"] > 0 for line in lines.values())
    compared = bool(importlib.util.find_spec("ale_py") and importlib.util.find_spec("stable_baselines3"))
    assert compared != ("not installed" in ran.stdout)
    assert compared == any("stable-baselines3" in against for _, against in lines)
    bare = lines["epoch, bare PyTorch loop", ""]["seconds"]
    ours = lines["epoch, ours", "bare loop"]
    assert ours["ratio"] == pytest.approx(ours["seconds"] / bare)
    targets = [line for line in lines.values() if line["target"]]
    assert {line["target"] for line in targets} >= {"<= 1.8", ">= 5", ">= 20"}
    for line in targets:
        sign, bound = line["target"].split()
        assert line["met"] == (line["ratio"] <= float(bound) if sign == "<=" else line["ratio"] >= float(bound))
    doubled = lines["step on real and replayed batch, bare", "without"]
    plain = lines["step without replay, bare", ""]
    assert doubled["ratio"] == pytest.approx(doubled["seconds"] / plain["seconds"])
    assert "epoch, ours" in ran.stdout
    task = "DEN, a task of den-mnist-variation, one thread"
    selective, full = (
        lines[f"{task}, selective retraining", "full retraining / this"],
        lines[f"{task}, full retraining", ""],
    )
    assert selective["ratio"] == pytest.approx(full["seconds"] / selective["seconds"])


def test_the_demo_says_what_it_leaves_out_without_gymnasium(tmp_path, monkeypatch, capsys):
    from rich.console import Console

    from benchmarks import demo

    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    monkeypatch.setattr(demo, "train", lambda *_: [[0.5] * demo.TASKS] * demo.TASKS)
    assert demo.demo(["--logdir", str(tmp_path)], Console(width=200)) == 0
    out = capsys.readouterr().out
    assert 'gymnasium is not installed (pip install -e ".[bench,rl]"): no agents.' in out
    assert "CartPole" not in out
