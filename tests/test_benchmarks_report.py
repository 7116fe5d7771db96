"""RESULTS.md from stored runs: the same each time, with every miss named."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from benchmarks.experiment import Context, Run, find_experiment, plain_settings
from benchmarks.experiments.ewc_patterns import Settings, measure, rate, slope
from benchmarks.jobs import RESULTS
from benchmarks.report import README, load_runs, report, results_text, rows_of
from benchmarks.summary import END, START, summary, write_readme


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs of the random-pattern experiment, small; two seeds, one EWC run with other settings, and a smoke run."""
    folder = tmp_path_factory.mktemp("results")
    settings = Settings(n=60, simulations=20, chunk=10, points=20, tracked=2, probes=20)
    for seed in (0, 1):
        for arm in ("ewc", "sgd"):
            own = dataclasses.replace(settings, chunk=20) if (arm, seed) == ("ewc", 1) else settings
            for scale in ("cpu", "smoke"):
                Run(
                    experiment="ewc-patterns",
                    scale=scale,
                    arm=arm,
                    seed=seed,
                    settings=plain_settings(own),
                    data="random patterns",
                    versions={"python": "3.11.0", "torch": "2.0"},
                    device="cpu",
                    threads=1,
                    seconds=90.0,
                    commit="abc",
                    date=f"2026-01-0{seed + 1}T00:00:00+00:00",
                    measurements=measure(own, arm, seed, Context()) | ({"slope": -0.8} if arm == "ewc" else {}),
                ).save(folder / "ewc-patterns" / scale / f"{arm}-seed{seed}.json")
    return folder


def test_results_are_the_same_each_time_and_name_misses(results):
    found = load_runs(results)
    assert list(found) == [("ewc-patterns", "cpu")]  # no smoke runs
    text = results_text(found)
    assert text == results_text(load_runs(results))
    assert "| ewc | log-log slope of SNR | -0.5 | -0.8 ± 0 | 2 | -0.5 ± 0.05 | **missed** | 1.5 |" in text
    assert "- missed: ewc-patterns (cpu), ewc, log-log slope of SNR: -0.8 ± 0, target -0.5 ± 0.05" in text
    assert "`n 60`" in text
    assert "`chunk 20 (ewc) / 10 (ewc, sgd)`" in text or "`chunk 10 (ewc, sgd) / 20 (ewc)`" in text
    assert "4 runs, 2026-01-01 to 2026-01-02, 6.0 minutes in all" in text
    assert "commit abc" in text


def test_report_writes_the_file_and_the_figure(results):
    screen = io.StringIO()
    assert report(results, as_json=False, console=Console(file=screen, width=160)) == 0
    assert (results / "RESULTS.md").read_text() == results_text(load_runs(results))
    assert (results / "ewc-patterns.png").read_bytes().startswith(b"\x89PNG")
    assert "missed" in screen.getvalue()


def test_report_as_json_prints_every_row(results, capsys):
    assert report(results, as_json=True, console=Console()) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = [dataclasses.asdict(row) for runs in load_runs(results).values() for row in rows_of(runs)]
    assert printed == expected
    assert set(printed[0]) >= {
        *("experiment", "arm", "metric", "paper", "target", "mean", "stderr", "seeds", "scale", "data"),
        *("minutes", "met"),
    }


def test_the_committed_report_is_what_the_committed_runs_give():
    committed = RESULTS / "RESULTS.md"
    if not committed.exists():
        pytest.skip("no RESULTS.md is committed yet")
    assert committed.read_text() == results_text(load_runs(RESULTS)), "run `python -m benchmarks report`"


def test_random_patterns_follow_their_closed_forms():
    # Expectations over patterns: E w.x_1 y_1 = s and E |w|^2 = v, by recursion over t.
    n, loads = 40, 4
    settings = Settings(n=n, load=loads, simulations=600, chunk=300, points=15, tracked=1, probes=10)
    for arm in ("ewc", "sgd"):
        got = measure(settings, arm, 0, Context())
        s, v, signals, norms = 0.0, 0.0, [], []
        for t in range(1, loads * n + 1):
            step = 1 / (n + (t if arm == "ewc" else 1))
            s = n * step if t == 1 else s * (1 - step)
            v = v * (1 - 2 * step) + n * (1 + v) * step**2
            signals.append(s)
            norms.append(v)
        np.testing.assert_allclose(got["signal"], np.array(signals)[got["t"] - 1], atol=4 / np.sqrt(600))
        np.testing.assert_allclose(np.square(got["noise"]), np.array(norms)[got["t"] - 1], rtol=0.1)
        if arm == "ewc":
            np.testing.assert_allclose(signals, n / (n + np.arange(1, loads * n + 1)))


def test_slope_and_rate_recover_known_laws():
    times = np.unique(np.geomspace(1, 10_000, 60).round().astype(int))
    assert slope(times, 30 * times**-0.5) == pytest.approx(-0.5)
    assert rate(times / 1000, np.exp(-1.3 * times / 1000)) == pytest.approx(1.3)
    with pytest.raises(ValueError, match="raise `simulations`"):
        slope(times, -np.ones(len(times)))


def test_random_patterns_do_not_depend_on_where_they_were_interrupted(tmp_path):
    settings = find_experiment("ewc-patterns").scales["smoke"]
    whole = measure(settings, "ewc", 0, Context())

    class Stop(Exception):
        pass

    def stop(done, total, text):
        if done > total / 2:
            raise Stop

    with pytest.raises(Stop):
        measure(settings, "ewc", 0, Context(checkpoint=tmp_path / "c.pt", progress=stop))
    resumed = measure(settings, "ewc", 0, Context(checkpoint=tmp_path / "c.pt", resume=True))
    for key, value in whole.items():
        np.testing.assert_array_equal(resumed[key], value)


def test_the_readmes_results_are_what_the_committed_runs_give():
    rows = [row for runs in load_runs(RESULTS).values() for row in rows_of(runs)]
    if not rows:
        pytest.skip("no runs are committed yet")
    section = README.read_text().partition(START)[2].partition(END)[0]
    assert section.strip() == summary(rows, RESULTS / "perf.json"), "run `python -m benchmarks report`"


def test_the_readme_section_is_replaced_and_the_rest_kept(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    write_readme(readme, "new")
    assert readme.read_text() == f"before\n{START}\n\nnew\n\n{END}\nafter\n"
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the lines"):
        write_readme(readme, "new")
    assert readme.read_text() == "no marks"
