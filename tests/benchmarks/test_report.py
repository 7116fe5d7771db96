"""RESULTS.md from stored runs: the same each time, with every miss named."""

import csv
import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest
from rich.console import Console

from benchmarks.__main__ import main
from benchmarks.ewc._weight_noise import half
from benchmarks.ewc.patterns import Settings, measure, rate, slope
from benchmarks.harness.experiment import Context, Row, Run, plain_settings
from benchmarks.harness.jobs import RESULTS
from benchmarks.harness.registry import find_experiment
from benchmarks.harness.stored import load_runs, rows_of
from benchmarks.report.formats import as_csv, as_json, as_latex, rich_table
from benchmarks.report.overview import PANELS, overview
from benchmarks.report.readme import END, HEADLINES, START, readme_with, summary
from benchmarks.report.results import README, report, results_text


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs of the random-pattern experiment, small; two seeds of both arms, each at smoke scale, too."""
    folder = tmp_path_factory.mktemp("results")
    settings = Settings(n=60, simulations=20, chunk=10, points=20, tracked=2, probes=20)
    for seed in (0, 1):
        for arm in ("ewc", "sgd"):
            for scale in ("cpu", "smoke"):
                Run(
                    experiment="ewc-patterns",
                    scale=scale,
                    arm=arm,
                    seed=seed,
                    settings=plain_settings(settings),
                    data="random patterns",
                    versions={"python": "3.11.0", "torch": "2.0"},
                    device="cpu",
                    threads=1,
                    seconds=90.0,
                    commit="abc",
                    date=f"2026-01-0{seed + 1}T00:00:00+00:00",
                    measurements=measure(settings, arm, seed, Context()) | ({"slope": -0.8} if arm == "ewc" else {}),
                ).save(folder / "ewc-patterns" / scale / f"{arm}-seed{seed}.json")
    return folder


def test_results_are_the_same_each_time_and_name_misses(results):
    found = load_runs(results)
    assert list(found) == [("ewc-patterns", "cpu")]  # no smoke runs
    text = results_text(found)
    assert text == results_text(load_runs(results))
    assert "| ewc | log-log slope of SNR | -0.5 | -0.8 ± 0 | 2 | -0.5 ± 0.05 | **missed** | 1.5 |" in text
    assert "- missed: ewc-patterns (cpu), ewc, log-log slope of SNR: -0.8 ± 0, target -0.5 ± 0.05" in text
    assert "Settings: `n 60`, `load 10.0`, `simulations 20`, `chunk 10`," in text
    assert "4 runs, 2026-01-01 to 2026-01-02, 6.0 minutes in all" in text
    assert "commit abc" in text


@pytest.mark.parametrize("apart", [False, True])
def test_report_writes_the_file_and_the_figure(results, tmp_path, apart):
    screen, out = io.StringIO(), tmp_path / "new" / "out" if apart else results
    before = sorted(results.rglob("*"))
    assert report(results, out=out, console=Console(file=screen, width=160)) == 0
    assert (out / "RESULTS.md").read_text() == results_text(load_runs(results))
    assert (out / "ewc-patterns.png").read_bytes().startswith(b"\x89PNG")
    assert "missed" in screen.getvalue()
    assert f"Wrote {out / 'RESULTS.md'} and 1 figure." in screen.getvalue()
    if apart:
        assert sorted(results.rglob("*")) == before
        assert sorted(path.name for path in out.iterdir()) == ["RESULTS.md", "ewc-patterns.png"]


def test_report_refuses_a_folder_that_it_cannot_write_to(results, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["report", "--results", str(results), "--out", str(tmp_path / "file")]) == 2
    printed = capsys.readouterr()
    assert printed.err == (
        f"error: --out: {tmp_path / 'file'} cannot be written to ({tmp_path / 'file'} is no folder); choose another\n"
    )
    assert printed.out == ""
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"threads": 1, "rounds": 1, "lines": [{}]}'])
def test_damaged_numbers_on_speed_are_named(results, tmp_path, content):
    perf = tmp_path / "perf.json"
    perf.write_text(content)
    with pytest.raises(ValueError, match=rf"^{perf} is not what `python -m benchmarks perf` writes .* run that again"):
        results_text(load_runs(results), perf)


@pytest.mark.parametrize(
    ("change", "named"), [({"settings": {"n": 61, "chunk": 5}}, "chunk, n"), ({"data": "other patterns"}, "data")]
)
def test_runs_with_different_settings_or_data_are_not_averaged(results, tmp_path, capsys, change, named):
    folder = tmp_path / "ewc-patterns" / "cpu"
    for path in (results / "ewc-patterns" / "cpu").glob("*.json"):
        Run.load(path).save(folder / path.name)
    other = Run.load(folder / "sgd-seed1.json")
    settings = {**other.settings, **change.get("settings", {})}
    dataclasses.replace(other, **{**change, "settings": settings}).save(folder / "sgd-seed1.json")
    with pytest.raises(ValueError, match=rf"sgd-seed1.json and ewc-seed0.json .* \({named}\).*--overwrite.*--out"):
        load_runs(tmp_path)
    assert main(["report", "--results", str(tmp_path)]) == 2
    assert f"different settings ({named})" in capsys.readouterr().err
    assert not (tmp_path / "RESULTS.md").exists()


def test_report_as_json_prints_every_row(results, capsys):
    assert main(["report", "--json", "--results", str(results)]) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = [dataclasses.asdict(row) for runs in load_runs(results).values() for row in rows_of(runs)]
    assert printed == expected
    assert set(printed[0]) >= {
        *("experiment", "arm", "metric", "paper", "target", "mean", "stderr", "seeds", "scale", "data"),
        *("minutes", "met"),
    }


def test_report_as_csv_prints_every_row(results, capsys):
    assert main(["report", "--csv", "--results", str(results)]) == 0
    printed = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    expected = [dataclasses.asdict(row) for runs in load_runs(results).values() for row in rows_of(runs)]
    assert printed == [{k: "" if v is None else str(v) for k, v in row.items()} for row in expected]
    assert len(printed) == 4


def test_report_as_latex_prints_a_table_for_each_experiment(results, capsys):
    assert main(["report", "--latex", "--results", str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["% ewc-patterns, cpu", r"\begin{tabular}{llrrrlrr}", r"\toprule", lines[3]]
    assert lines[3] == r"arm & metric & paper & measured & seeds & target & met & minutes \\"
    assert lines[5] == r"ewc & log-log slope of SNR & -0.5 & -0.8 $\pm$ 0 & 2 & -0.5 $\pm$ 0.05 & missed & 1.5 \\"
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert main(["report", "--latex"]) == 0
    everything = capsys.readouterr().out
    assert everything.isascii(), "a sign that LaTeX may not know"
    for line in everything.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == 7
            assert not re.search(r"(?<!\\)[%#_]", line)


def test_signs_that_mean_something_to_latex_or_a_terminal_are_shown(results):
    row = dataclasses.replace(
        rows_of(load_runs(results)["ewc-patterns", "cpu"])[0], arm="[red]a_b", metric="5 % & #~^\\{}"
    )
    assert r"{[}red]a" not in as_latex([row])
    assert r"[red]a\_b & 5 \% \& \#\textasciitilde{}\textasciicircum{}\textbackslash{}\{\} & -0.5" in as_latex([row])
    screen = io.StringIO()
    Console(file=screen, width=160).print(rich_table([row], "title"))
    assert "[red]a_b" in screen.getvalue()


def test_numbers_that_are_not_finite_are_null_in_json_and_empty_in_csv(results):
    row = dataclasses.replace(rows_of(load_runs(results)["ewc-patterns", "cpu"])[0], mean=math.nan, stderr=math.inf)
    (printed,) = json.loads(as_json([row]), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (printed["mean"], printed["stderr"], printed["paper"]) == (None, None, -0.5)
    (line,) = csv.DictReader(io.StringIO(as_csv([row])))
    assert (line["mean"], line["stderr"], line["paper"]) == ("", "", "-0.5")


def test_only_one_form_at_a_time(capsys):
    for pair in (("--json", "--csv"), ("--latex", "--out", "x")):
        with pytest.raises(SystemExit) as ended:
            main(["report", *pair])
        assert ended.value.code == 2
        assert "not allowed with argument" in capsys.readouterr().err


def test_the_committed_report_is_what_the_committed_runs_give():
    committed = RESULTS / "RESULTS.md"
    if not committed.exists():
        pytest.skip("no RESULTS.md is committed yet")
    text = results_text(load_runs(RESULTS), RESULTS / "perf.json")
    assert committed.read_text() == text, "run `python -m benchmarks report`"
    assert text.count("\n## Speed\n") == 1


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


def test_the_noise_that_halves_the_score_is_interpolated_or_asked_for():
    assert half([0.01, 0.1, 1.0], [1.0, 0.7, 0.3]) == pytest.approx(10**-0.5)
    with pytest.raises(ValueError, match=r"half between noise 0.01 and 1; raise highest_noise"):
        half([0.01, 0.1, 1.0], [1.0, 0.9, 0.6])
    with pytest.raises(ValueError, match=r"lowest_noise if the first score \(0.4\)"):
        half([0.01, 0.1], [0.4, 0.3])


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
    found = load_runs(RESULTS)
    if not found:
        pytest.skip("no runs are committed yet")
    rows = [row for runs in found.values() for row in rows_of(runs)]
    section = README.read_text().partition(START)[2].partition(END)[0]
    assert section.strip() == summary(rows), "run `python -m benchmarks report`"


def headline_row(key, scale="cpu"):
    name, arm, metric = key
    return Row(name, arm, metric, 0.5, "≥ 0.7", 0.625, 0.01, 3, scale, "digits", 1.0, "missed")


def test_the_readme_has_a_line_for_each_headline_and_names_one_that_is_not_there():
    rows = [headline_row(key) for key in HEADLINES]
    others = [headline_row(("ewc-fig2b", "sgd", "mean after 10 tasks")), headline_row(next(iter(HEADLINES)), "smoke")]
    lines = summary([*others, *reversed(rows)]).splitlines()
    assert len(lines) == 2 + len(HEADLINES)
    for line, (figure, what) in zip(lines[2:], HEADLINES.values(), strict=True):
        assert line == f"| {figure} | {what} | 0.5 | 0.625 ± 0.01 | 3 | ≥ 0.7: **missed** |"
    assert {name.partition("-")[0] for name, *_ in HEADLINES} == {"ewc", "rl", "progressive", "dgr", "den"}
    for k, (name, arm, metric) in enumerate(HEADLINES):
        with pytest.raises(ValueError, match=rf"row '{arm}', '{metric}' of {name}, which is not there: run `python"):
            summary([*others[1:], *rows[:k], *rows[k + 1 :]])


def overview_runs():
    """Two seeds of both arms of each panel: seed + arm, whatever is drawn."""
    found = {}
    for panel in PANELS:
        for seed in (0, 1):
            for k, arm in enumerate(panel.arms):
                values = [(seed + k) / 4] * 10
                found.setdefault((panel.experiment, "cpu"), []).append(
                    Run(
                        experiment=panel.experiment,
                        scale="cpu",
                        arm=arm,
                        seed=seed,
                        settings={},
                        data="digits",
                        versions={},
                        device="cpu",
                        threads=1,
                        seconds=1.0,
                        commit="abc",
                        date="2026-01-01T00:00:00+00:00",
                        measurements=dict.fromkeys(("mean", "final", "so_far"), values)
                        | {"matrix": [values[: n + 1] for n in range(10)]},
                    )
                )
    return found


def test_the_overview_draws_the_mean_over_seeds_of_plain_training_and_of_each_method():
    figure = overview(overview_runs())
    assert len(figure.axes) == len(PANELS) == 4
    for axes in figure.axes:
        plain, method = axes.lines
        np.testing.assert_array_equal(plain.get_xydata(), [[k, 0.125] for k in range(1, 11)])
        np.testing.assert_array_equal(method.get_ydata(), [0.375] * 10)


def test_the_overview_is_not_drawn_where_an_arm_is_missing():
    for key, runs in overview_runs().items():
        for arm in {run.arm for run in runs}:
            found = overview_runs() | {key: [run for run in runs if run.arm != arm]}
            assert overview(found) is None
    assert overview({}) is None


def test_report_writes_the_overview_where_it_can_be_drawn(results, tmp_path, monkeypatch):
    quiet, drawn = Console(file=io.StringIO()), overview(overview_runs())
    assert report(results, out=tmp_path, console=quiet) == 0
    assert not (tmp_path / "overview.png").exists()
    monkeypatch.setattr("benchmarks.report.results.overview", lambda found: drawn)
    assert report(results, out=tmp_path, console=quiet) == 0
    content = (tmp_path / "overview.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert b"Software" not in content
    assert "2 figures" in quiet.file.getvalue()


def test_the_readme_section_is_replaced_and_the_rest_kept(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    assert readme_with(readme, "new") == f"before\n{START}\n\nnew\n\n{END}\nafter\n"
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the lines"):
        readme_with(readme, "new")
