"""A run killed with SIGKILL at 20 random moments, and restarted each time, ends with the bits of one never killed.

Importing Avalanche takes seconds, so that the runs are forks of one process that has imported it: this file, run
as a script by the fixture. A fork is killed at a random moment of its start, training, evaluation or saving.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpoint_cases import Distill, benchmark, build, differences, outcome

from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.checkpoint.resume import CheckpointEvery
from avl_plugins.data.loading import InMemoryLoaderPlugin

pytestmark = pytest.mark.slow

KILLS = 20
# A name, how it is built, what saves inside experiences, and the mean time to a kill in parts of the whole run.
CASES = {
    "naive": (("naive", "incremental", "momentum"), False, 1 / 4),
    "resumable": (("resumable", "incremental", "adam"), True, 1 / 12),
    "ewc-momentum": (("ewc", "multihead", "momentum"), True, 1 / 12),
    "ewc-adam": (("ewc", "multihead", "adam"), True, 1 / 12),
    "progressive": (("progressive", "progressive", "adam"), True, 1 / 12),
    "dgr": (("dgr", "incremental", "adam"), True, 1 / 12),
    "den": (("den", "den", "adam"), True, 1 / 12),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "OMP_NUM_THREADS": "1"}
    server = [sys.executable, "-W", "ignore", __file__, str(folder)]
    done = subprocess.run(server, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "reports.json").read_text())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments_ends_with_the_same_bits(reports, case):
    report = reports[case]
    assert report["kills"] == KILLS
    assert report["differences"] == [[] for _ in report["differences"]]
    assert len(report["differences"]) >= 2  # a run that saves and is not killed, and those that were killed
    inside = CASES[case][1]
    assert (report["loaded inside an experience"] > 0) == inside
    assert report["loaded"] > 0


def run(case: str, path: Path | None, result: Path) -> None:
    """One start of a run: goes on from `path` if it is there, and saves to it."""
    names, inside, _ = CASES[case]
    plugins = [InMemoryLoaderPlugin()]
    if inside:
        plugins.append(Distill())
    if inside and path is not None:
        plugins.append(CheckpointEvery(path, epochs=1, iterations=2))
    strategy, start = build(*names, plugins=plugins, train_epochs=2 if inside else 12), 0
    digits = benchmark(names[1], train=400)
    if path is not None and path.exists():
        start = load_checkpoint(strategy, path)
        with (result.parent / f"{case}.loads").open("a") as loads:
            loads.write(f"{json.dumps(getattr(strategy, 'progress', None) is not None)}\n")
    for experience in digits.train_stream[start:]:
        strategy.train(experience)
        strategy.eval(digits.test_stream)
        if path is not None:
            save_checkpoint(strategy, path)
    torch.save(outcome(strategy), result)


def forked(case: str, path: Path | None, result: Path, kill_after: float | None = None) -> bool:
    """Run in a fork and tell whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            run(case, path, result)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise RuntimeError(f"{case}: a run failed")
    return os.WIFSIGNALED(status)


def kill_often(case: str, folder: Path, moments: random.Random) -> dict:
    """Kill `KILLS` starts of a run; where one is faster than its killer, its result counts and another one begins."""
    expected, result = folder / f"{case}.expected", folder / f"{case}.result"
    forked(case, None, expected)
    found, kills, path = [], 0, folder / f"{case}-0.pt"

    def compare() -> None:
        found.append(differences(torch.load(expected, weights_only=False), torch.load(result, weights_only=False)))

    began = time.monotonic()
    forked(case, path, result)
    seconds = time.monotonic() - began
    compare()
    finished = True
    while kills < KILLS or not finished:
        if finished:
            path = folder / f"{case}-{len(found)}.pt"
        kill_after = moments.uniform(0, 2 * CASES[case][2] * seconds) if kills < KILLS else None
        finished = not forked(case, path, result, kill_after)
        kills += not finished
        if finished:
            compare()
    loads = (folder / f"{case}.loads").read_text().split()
    return {
        "kills": kills,
        "differences": found,
        "loaded": len(loads),
        "loaded inside an experience": loads.count("true"),
        "seconds": seconds,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for names, *_ in CASES.values():  # what is imported here is not imported in each fork
        build(*names)
        benchmark(names[1])
    where, chance = Path(sys.argv[1]), random.Random(0)
    text = json.dumps({case: kill_often(case, where, chance) for case in CASES}, indent=1)
    (where / "reports.json").write_text(text)
