"""Transfer scores, rows and figure of `progressive-soup` from made-up runs, and its jobs on digits."""

from __future__ import annotations

import dataclasses
import math

import pytest

from benchmarks.harness.experiment import Context, Run, plain
from benchmarks.harness.registry import find_experiment
from benchmarks.progressive._transfer_cells import (
    ARMS,
    SOURCES,
    TARGETS,
    baseline_areas,
    is_flipped,
    mean_transfers,
    own_convolutions,
    scored,
    source_name,
    source_share,
    transfers,
)

EXPERIMENT = find_experiment("progressive-soup")
SCORES = {
    "baseline1": 1.0,
    "baseline2": 0.2,
    "baseline3": 1.4,
    "baseline4": 1.2,
    "progressive2": 1.6,
    "progressive3": 1.8,
}


def made_up(arm: str, seed: int, **changes) -> Run:
    """A run whose areas are 0.1 (t + 1) for the t-th target, times the arm's score, plus 0.01 a seed."""
    cells = {
        source_name(source): {
            target: {
                "iterations": [0, 10, 20],
                "accuracy": [0.1, 0.5, 0.8],
                "area": 0.1 * (t + 1) * (SCORES[arm] + 0.01 * seed * (arm != "baseline1")),
                "afs": [[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]],
                "aps": [[0.9, 0.1], [0.6, 0.4], [0.1, 0.9]],
                "afs_maps": [[[0.5, 0.25], [0.25, 0.0]], [[0.5], [0.5]]],
            }
            for t, target in enumerate(TARGETS)
            if target not in source
        }
        for source in SOURCES[arm]
    }
    run = Run(
        experiment="progressive-soup",
        scale="cpu",
        arm=arm,
        seed=seed,
        settings={},
        data="mnist",
        versions={},
        device="cpu",
        threads=1,
        seconds=60.0,
        commit="",
        date="",
        measurements={"cells": cells},
    )
    return dataclasses.replace(run, **changes)


def all_runs() -> list[Run]:
    return [made_up(arm, seed) for arm in ARMS for seed in range(3)]


def test_transfer_is_relative_to_baseline_1_of_the_same_seed_and_target():
    runs = all_runs()
    assert baseline_areas(runs)[2]["hflip"] == pytest.approx(0.3)
    found = transfers(made_up("progressive2", 2), runs)
    assert len(found) == 21
    assert list(found.values()) == pytest.approx([1.62] * 21)
    assert transfers(made_up("baseline1", 1), runs) == pytest.approx({("none", t): 1.0 for t in TARGETS})
    assert mean_transfers(runs, "progressive3") == pytest.approx(
        {("noisy+hflip", t): 1.81 for t in TARGETS if t not in ("noisy", "hflip")}
    )


def test_runs_without_a_baseline_are_left_out_and_one_that_learnt_nothing_gives_nan():
    lonely = made_up("baseline3", 7)
    runs = [*all_runs(), lonely]
    assert lonely not in scored(runs)
    assert len(scored(runs)) == 18
    flat = made_up("baseline1", 0)
    flat.measurements["cells"]["none"]["zoom"]["area"] = -0.01
    found = transfers(made_up("baseline4", 0), [flat])
    assert math.isnan(found["random", "zoom"])
    assert found["random", "white"] == pytest.approx(1.2)


def test_mirrored_pairs_are_those_that_differ_by_a_flip():
    assert is_flipped(("base", "hflip"))
    assert is_flipped(("hflip", "hvflip"))
    assert is_flipped(("hflip", "white"))
    assert not is_flipped(("base", "zoom"))
    assert not is_flipped(("noisy", "black"))


def test_sensitivities_are_summed_over_old_columns_and_over_convolutions():
    run = made_up("progressive2", 0)
    assert [source_share(run, ("base", "zoom"), depth) for depth in range(3)] == [0.75, 0.5, 0.25]
    assert source_share(run, ("base", "zoom"), 2, "aps") == 0.1
    assert math.isnan(source_share(run, ("base", "base"), 0))
    assert own_convolutions({"afs": [[0.1, 0.2, 0.7], [0.3, 0.2, 0.5], [1.0, 0.0, 0.0]]}) == pytest.approx(0.6)


def test_rows_have_table_1_the_order_and_the_matrix():
    rows = EXPERIMENT.rows(all_runs())
    found = {(row.arm, row.metric): row for row in rows}
    assert found["baseline3", "mean transfer"].mean == pytest.approx(1.41)
    assert found["baseline3", "mean transfer"].paper == 1.81
    assert found["progressive3", "median transfer"].mean == pytest.approx(1.81)
    for pair in ("progressive2 - baseline3", "baseline3 - baseline4", "baseline1 - baseline2"):
        assert found[pair, "mean transfer"].met == "met"
    assert found["progressive2 - baseline3", "mean transfer"].mean == pytest.approx(0.2)
    assert found["baseline4 - baseline1", "mean transfer"].mean == pytest.approx(0.21)
    assert found["progressive2", "transfer from noisy"].paper == pytest.approx(
        (1.8 + 1.67 + 1.66 + 1.55 + 1.8 + 4) / 7, abs=0.005
    )
    assert "zoom 1.61 (1.97)" in found["progressive2", "transfer from hflip"].note
    assert found["progressive2", "share of old features (AFS): conv 2 minus fc, base to hflip"].mean == pytest.approx(
        0.25
    )
    assert found["progressive2", "rank correlation of AFS and APS over pairs and layers"].mean == pytest.approx(1.0)


def test_a_missed_order_is_said_to_be_missed():
    runs = all_runs()
    for run in runs:
        if run.arm == "progressive2":
            for targets in run.measurements["cells"].values():
                for cell in targets.values():
                    cell["area"] /= 2
    found = {(row.arm, row.metric): row for row in EXPERIMENT.rows(runs)}
    assert found["progressive2 - baseline3", "mean transfer"].met == "missed"


@pytest.mark.parametrize("arms", [ARMS, ("baseline1",), ("progressive2",), ("baseline1", "baseline4", "progressive3")])
def test_rows_and_figure_take_any_arms(tmp_path, arms):
    runs = [made_up(arm, 0) for arm in arms]
    assert all(row.seeds or row.mean is None for row in EXPERIMENT.rows(runs))
    EXPERIMENT.figure(runs).savefig(tmp_path / "figure.png", dpi=30)


def test_a_resumed_job_ends_with_the_same_numbers(tmp_path):
    settings = EXPERIMENT.scales["smoke"]
    settings = dataclasses.replace(
        settings, targets=("base", "hflip", "white"), target_epochs=2, evaluate_every=2, batch_size=25
    )
    checkpoint = tmp_path / "job.pt"
    whole = plain(EXPERIMENT.measure(settings, "progressive3", 0, Context(checkpoint=checkpoint)))
    assert list(whole["cells"]) == ["noisy+hflip"]
    cell = whole["cells"]["noisy+hflip"]["white"]
    assert cell["iterations"] == [0, 4, 8]
    area = ((cell["accuracy"][0] + cell["accuracy"][2]) / 2 + cell["accuracy"][1]) / 2 - 0.1
    assert cell["area"] == pytest.approx(area, abs=1e-4)
    for measure in ("afs", "aps"):
        assert [len(layer) for layer in cell[measure]] == [3, 3, 3]
        assert all(sum(layer) == pytest.approx(1, abs=1e-3) or sum(layer) == 0 for layer in cell[measure])

    half = dataclasses.replace(settings, targets=("base",))
    EXPERIMENT.measure(half, "progressive3", 0, Context(checkpoint=checkpoint))
    resumed = EXPERIMENT.measure(settings, "progressive3", 0, Context(checkpoint=checkpoint, resume=True))
    assert plain(resumed) == whole


def test_finetuning_the_output_layer_leaves_the_features_and_finetuning_all_does_not():
    from benchmarks.data.arrays import digits
    from benchmarks.progressive import soup as progressive_soup

    settings, arrays = EXPERIMENT.scales["smoke"], digits()
    net = progressive_soup.learn_sources(settings, ("base",), arrays, 0, "cpu")
    before = {name: value.clone() for name, value in net.state_dict().items() if "_extra_state" not in name}
    made = []
    original = progressive_soup.make_strategy

    def spy(settings, model, metrics, device, **options):
        made.append(model)
        return original(settings, model, metrics, device, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progressive_soup, "make_strategy", spy)
        for arm in ("baseline2", "baseline3"):
            progressive_soup.learn_target(settings, arm, net, ("base",), "hflip", arrays, 0, "cpu")
    heads, everything = (dict(model.named_parameters()) for model in made)
    for name, value in before.items():
        assert (net.state_dict()[name] == value).all()
        assert (heads[name] == value).all() == ("head" not in name)
        assert not (everything[name] == value).all()
