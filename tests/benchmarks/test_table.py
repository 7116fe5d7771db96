"""Rows of the tables against SciPy and closed forms."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.harness.experiment import Run
from benchmarks.report.table import interval, mean_row, paired_row


def make_run(arm, seed, value, seconds=60.0):
    return Run(
        experiment="e",
        scale="cpu",
        arm=arm,
        seed=seed,
        settings={},
        data="digits",
        versions={},
        device="cpu",
        threads=1,
        seconds=seconds,
        commit="c",
        date="2026-01-01",
        measurements={"accuracy": value},
    )


def test_mean_row_has_the_standard_error_of_scipy():
    values = [0.91, 0.95, 0.92, 0.97]
    runs = [make_run("a", k, v, seconds=30 * k) for k, v in enumerate(values)] + [make_run("b", 0, 0.1)]
    row = mean_row(runs, "a", "accuracy", paper=0.96, target=(">=", 0.93), note="n")
    assert row.mean == pytest.approx(np.mean(values))
    assert row.stderr == pytest.approx(stats.sem(values))
    assert (row.seeds, row.met, row.target, row.paper, row.note) == (4, "met", "≥ 0.93", 0.96, "n")
    assert row.minutes == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("target", "met"),
    [
        ((">=", 0.5), "met"),
        ((">=", 0.51), "missed"),
        (("<=", 0.5), "met"),
        (("<=", 0.49), "missed"),
        (("within", 0.45, 0.05), "met"),
        (("within", 0.6, 0.05), "missed"),
        (None, None),
    ],
)
def test_absolute_targets_are_met_by_the_mean(target, met):
    runs = [make_run("a", 0, 0.25), make_run("a", 1, 0.75), make_run("a", 2, 0.5)]
    assert mean_row(runs, "a", "accuracy", target=target).met == met


def test_too_few_seeds_miss_a_target_but_do_not_meet_it():
    runs = [make_run("a", seed, 0.5) for seed in range(4)]

    def verdict(seeds, least, **options):
        return mean_row(runs[:seeds], "a", "accuracy", target=(">=", least), **options).met

    assert [verdict(seeds, 0.5) for seeds in (1, 2, 3, 4)] == ["undecided", "undecided", "met", "met"]
    assert [verdict(seeds, 0.51) for seeds in (1, 2, 3, 4)] == ["missed"] * 4
    assert verdict(1, 0.5, min_seeds=1) == "met"
    assert verdict(3, 0.5, min_seeds=4) == "undecided"


def test_an_arm_that_has_not_run_has_no_number_and_no_verdict():
    row = mean_row([make_run("a", 0, 0.5)], "b", "accuracy", target=(">=", 0.5))
    assert (row.mean, row.stderr, row.seeds, row.minutes, row.met) == (None, None, 0, None, None)
    assert mean_row([make_run("a", 0, 0.5)], "a", "accuracy").stderr is None


def test_the_interval_is_scipys():
    values = [0.1, 0.4, 0.3, 0.25, 0.6]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values) == pytest.approx((expected.low, expected.high))
    assert interval([1.0]) == (-math.inf, math.inf)


def test_paired_row_uses_common_seeds_and_the_paired_interval():
    a, b = [0.9, 0.8, 0.95, 0.85], [0.7, 0.65, 0.72, 0.66]
    runs = [make_run("a", k, v) for k, v in enumerate(a)] + [make_run("b", k, v) for k, v in enumerate(b)]
    runs.append(make_run("a", 99, 0.0))  # no partner
    paired = stats.ttest_rel(a, b).confidence_interval(0.95)

    row = paired_row(runs, "a", "b", "accuracy", target=(">=", paired.low - 1e-6))
    assert (row.seeds, row.arm, row.met) == (4, "a - b", "met")
    assert row.mean == pytest.approx(np.mean(np.subtract(a, b)))
    assert row.stderr == pytest.approx(stats.sem(np.subtract(a, b)))

    def verdict(*target):
        return paired_row(runs, "a", "b", "accuracy", target=target).met

    assert verdict(">=", paired.low + 1e-6) == "undecided"
    assert verdict(">=", paired.high + 1e-6) == "missed"
    assert verdict("<=", paired.high + 1e-6) == "met"
    assert verdict("<=", paired.low - 1e-6) == "missed"
    assert verdict("within", 0.2, 1.0) == "met"
    assert verdict("within", 0.0, 0.01) == "missed"
    assert verdict("within", 0.0, row.mean) == "undecided"


def test_a_single_pair_decides_nothing_and_equal_differences_do():
    runs = [make_run("a", 0, 0.9), make_run("b", 0, 0.1)]
    assert paired_row(runs, "a", "b", "accuracy", target=(">=", 0.1)).met == "undecided"
    runs += [make_run("a", 1, 0.9), make_run("b", 1, 0.1)]
    assert paired_row(runs, "a", "b", "accuracy", target=(">=", 0.1)).met == "met"


def test_a_number_that_is_not_finite_is_shown_and_decides_nothing():
    runs = [make_run("a", 0, float("nan")), make_run("a", 1, 2.0), make_run("b", 0, 1.0), make_run("b", 1, 1.0)]
    for row in (
        mean_row(runs, "a", "accuracy", target=(">=", 0), min_seeds=2),
        paired_row(runs, "a", "b", "accuracy", target=(">=", 0)),
    ):
        assert math.isnan(row.mean)
        assert math.isnan(row.stderr)
        assert row.met == "undecided"


def test_wrong_targets_and_no_runs_are_errors():
    with pytest.raises(ValueError, match='">=", "<=" or "within"'):
        mean_row([make_run("a", 0, 0.5)], "a", "accuracy", target=(">", 0.5))
    with pytest.raises(ValueError, match="at least one run"):
        mean_row([], "a", "accuracy")
