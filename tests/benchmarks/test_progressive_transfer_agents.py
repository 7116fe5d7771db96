"""Transfer between games: areas, sources that are learnt once, what each arm trains, and resuming."""

from __future__ import annotations

import dataclasses
import math
from threading import Event, Thread

import pytest

pytest.importorskip("gymnasium")

import torch
from torch import nn

from benchmarks.envs.cartpole import VARIANTS
from benchmarks.harness.experiment import Context, Run, plain
from benchmarks.harness.lock import turn
from benchmarks.harness.registry import find_experiment
from benchmarks.progressive._transfer_agents import (
    AgentSettings,
    Learnt,
    Transfer,
    area_above,
    available,
    curve_to_the_end,
    pairs,
)
from benchmarks.progressive._transfer_cells import ARMS, SOURCES, TARGETS, mean_curve, source_name
from benchmarks.progressive.pong_soup import column
from benchmarks.training.models import Standardise

TASKS = dict(zip(("base", "hflip", "noisy"), VARIANTS.values(), strict=True))
PONG = find_experiment("progressive-pong-soup")
ATARI = find_experiment("progressive-atari")


@dataclasses.dataclass(frozen=True)
class Settings(AgentSettings):
    targets: tuple[str, ...] = ("hflip",)
    sources: tuple[str, ...] = ("base",)


SMALL = Settings(steps=300, epoch_steps=100, num_envs=4, rollout=5, eval_episodes=2, analysis=10, lr=1e-2)


def transfer(tmp_path=None, settings=SMALL, seed=0, arm="job", references=None, **context) -> Transfer:
    checkpoint = None if tmp_path is None else tmp_path / f"{arm}.pt"
    return Transfer(
        settings,
        tasks=TASKS,
        floors=dict.fromkeys(TASKS, 10.0),
        references=references,
        body=lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh()),
        sources=available(SOURCES, settings.sources),
        seed=seed,
        context=Context(checkpoint=checkpoint, **context),
    )


@pytest.fixture
def trained(monkeypatch):
    """Names of the trainings, and the models that came out of them."""
    found = []
    original = Transfer._train

    def spy(self, model, sequence, seed, name):
        before = {key: value.clone() for key, value in model.named_parameters()}
        model, cell = original(self, model, sequence, seed, name)
        found.append((name, before, dict(model.named_parameters())))
        return model, cell

    monkeypatch.setattr(Transfer, "_train", spy)
    return found


def test_the_area_is_the_mean_height_over_the_whole_budget():
    curve = [(100, 0.0), (200, 10.0), (300, 20.0)]
    assert curve_to_the_end(curve, 300) == [(0, 0.0), *curve]
    assert area_above(curve, 300, floor=-20.0) == pytest.approx((100 * 20 + 100 * 25 + 100 * 35) / 300)
    late = curve[1:]  # no episode ended in the first epoch, and the last two had none
    assert curve_to_the_end(late, 500) == [(0, 10.0), *late, (500, 20.0)]
    assert area_above(late, 500, floor=0.0) == pytest.approx((200 * 10 + 100 * 15 + 200 * 20) / 500)
    assert area_above([(320, 3.0)], 300, floor=5.0) == pytest.approx(-2)  # the last epoch is rounded up
    with pytest.raises(ValueError, match="epoch_steps: no episode has ended"):
        area_above([], 300, floor=0.0)


def test_arms_have_the_sources_that_are_there():
    assert list(available(SOURCES, ["base"])) == [*ARMS[:5]]
    assert available(SOURCES, ["base"])["progressive2"] == (("base",),)
    assert available(SOURCES, ["base", "noisy", "hflip"]) == {arm: tuple(own) for arm, own in SOURCES.items()}
    assert pairs((("noisy", "hflip"),), ("base", "hflip")) == [(("noisy", "hflip"), "base")]
    assert PONG.arm_names(PONG.scales["cpu"]) == ARMS[:5]
    assert PONG.arm_names(PONG.scales["paper"]) == ARMS
    few = dataclasses.replace(PONG.scales["cpu"], targets=("base",))
    assert PONG.arm_names(few) == ("baseline1", "baseline4")


def test_a_cell_is_of_the_learning_curve_of_the_target():
    found = transfer().measure("progressive2", [("base",)])
    assert list(found["cells"]) == list(found["sources"]) == ["base"]
    assert found["sources"]["base"]["steps"] == [100, 200, 300]
    cell = found["cells"]["base"]["hflip"]
    assert cell["steps"] == [100, 200, 300]
    assert len(cell["returns"]) == 3
    assert cell["area"] == pytest.approx(
        area_above(list(zip(cell["steps"], cell["returns"], strict=True)), 300, 10.0), abs=1e-5
    )
    assert cell["final"] > 0
    assert [sum(layer) for layer in cell["afs"]] == pytest.approx([1, 1], abs=1e-3)
    assert [len(layer) for layer in cell["afs"]] == [2, 2]
    assert [[len(maps) for maps in layer] for layer in cell["afs_maps"]] == [[6, 6]]
    plain(found)


def test_normalised_scores_are_logged(tmp_path):
    """Of each training's evaluation, those of the paper's scale: 0 is random play, 1 a person."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = transfer(references=dict.fromkeys(TASKS, (10.0, 20.0)), logdir=tmp_path)
    cell = job.cell("baseline1", (), "hflip")
    logged = EventAccumulator(str(tmp_path / "hflip"))
    logged.Reload()
    (name,) = (tag for tag in logged.Tags()["scalars"] if tag.startswith("NormalisedReturn"))
    assert logged.Scalars(name)[-1].value == pytest.approx((cell["final"] - 10) / 10, abs=1e-3)


def test_a_source_is_learnt_once_for_all_jobs_and_other_settings_have_their_own(tmp_path, trained):
    jobs = {}
    for arm in ("baseline2", "baseline3", "progressive2"):
        jobs[arm] = transfer(tmp_path, arm=arm).measure(arm, [("base",)])
    assert [name for name, *_ in trained] == ["base", "base-hflip-head", "base-hflip-all", "base+hflip"]
    alone = transfer().measure("progressive2", [("base",)])
    assert alone == jobs["progressive2"], "whether the source comes from a file makes no difference"
    (file,) = (tmp_path / "sources").glob("*.pt")

    # Baseline 1 on a source is that source's own training; what is run is no condition of it.
    both = dataclasses.replace(SMALL, targets=("base", "hflip"))
    trained.clear()
    first = transfer(tmp_path, both, arm="baseline1").measure("baseline1", [()])
    assert [name for name, *_ in trained] == ["hflip"]
    assert first["cells"]["none"]["base"] == jobs["progressive2"]["sources"]["base"]
    assert first["sources"] == {}

    trained.clear()
    for other in ({"settings": dataclasses.replace(SMALL, lr=1e-3)}, {"seed": 1}):
        assert transfer(tmp_path, **other).file(("base",)) != file
        with pytest.raises(ValueError, match=r"learnt with other settings \((lr|seed)\); remove it"):
            transfer(tmp_path, **other).read(file, ("base",))
        transfer(tmp_path, **other).learnt(("base",))
    assert [name for name, *_ in trained] == ["base", "base"]
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match="does not hold a trained source"):
        transfer(tmp_path).learnt(("base",))


def test_three_columns_begin_with_two(tmp_path, trained):
    settings = dataclasses.replace(SMALL, sources=("base", "noisy", "hflip"), targets=("base", "hflip"))
    two = transfer(tmp_path, settings, arm="two").measure("progressive2", [("noisy",)])
    three = transfer(tmp_path, settings, arm="three").measure("progressive3", [("noisy", "hflip")])
    assert [name for name, *_ in trained] == ["noisy", "noisy+base", "noisy+hflip", "noisy+hflip+base"]
    assert list(two["cells"]["noisy"]) == ["base", "hflip"]
    assert list(three["cells"]["noisy+hflip"]) == ["base"]
    assert [len(layer) for layer in three["cells"]["noisy+hflip"]["base"]["afs"]] == [3, 3]


def test_baseline_2_trains_the_output_layer_and_baseline_3_everything(trained):
    for arm in ("baseline2", "baseline3"):
        job = transfer()
        source = job.learnt(("base",)).state
        job.measure(arm, [("base",)])
        _, before, after = trained[-1]
        assert len(after) == 6
        for name, value in after.items():
            assert torch.equal(before[name], source[name]), "it starts from the source, its output layer, too"
            assert torch.equal(value, before[name]) == (arm == "baseline2" and "head" not in name), name


def test_baseline_4_has_a_random_column_that_stays_as_it_was(trained):
    job = transfer()
    random = job.learnt(("random",)).state
    own = job.learnt(("random", "hflip")).state
    assert [name for name, *_ in trained] == ["random+hflip"]
    first = [name for name in random if name.startswith("columns.0.") and not name.endswith("_extra_state")]
    assert len(first) == 6
    assert all(torch.equal(own[name], random[name]) for name in first)
    weight = "stages.0.layer.weight"
    assert not torch.equal(own[f"columns.1.{weight}"], own[f"columns.0.{weight}"])
    assert not torch.equal(
        own[f"columns.0.{weight}"], transfer(seed=1).learnt(("random",)).state[f"columns.0.{weight}"]
    )
    assert job.measure("baseline4", [("random",)])["cells"]["random"]["hflip"] == job.learnt(("random", "hflip")).cell


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("arm", "moment", "left"),
    [
        ("progressive2", 0.25, 3),  # within the source
        ("progressive2", 0.55, 2),  # within the first target
        ("progressive2", 0.7, 1),  # in the second one's first epoch, so that it starts anew
        ("baseline2", 0.55, 2),
        ("baseline3", 0.9, 1),
    ],
)
def test_a_resumed_job_equals_one_that_was_not_interrupted(tmp_path, trained, arm, moment, left):
    settings = dataclasses.replace(SMALL, targets=("hflip", "noisy"))
    whole = transfer(settings=settings).measure(arm, [("base",)])

    def stop(done, total, text):
        if done > moment * total:
            raise Stop

    with pytest.raises(Stop):
        transfer(tmp_path, settings, progress=stop).measure(arm, [("base",)])
    trained.clear()
    resumed = transfer(tmp_path, settings, resume=True).measure(arm, [("base",)])
    assert resumed == whole
    assert len(trained) == left
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.pt", "sources"]


def test_a_job_that_starts_anew_forgets_what_was_begun(tmp_path, trained):
    def stop(done, total, text):
        if done > 0.9 * total:
            raise Stop

    with pytest.raises(Stop):
        transfer(tmp_path, progress=stop).measure("progressive2", [("base",)])
    assert (tmp_path / "job.pt.base+hflip").exists()
    began = []
    transfer(tmp_path, progress=lambda done, total, text: began.append(done / total)).measure(
        "progressive2", [("base",)]
    )
    assert began[0] < 0.6
    assert not (tmp_path / "job.pt.base+hflip").exists()


def test_a_job_waits_for_the_one_that_learns_the_source(tmp_path):
    waits, found = Event(), []
    job = transfer(tmp_path, progress=lambda done, total, text: waits.set() if text == "waits for base" else None)
    job._learn = lambda sequence: Learnt({}, {"learnt": sequence})
    file = job.file(("base",))
    with turn(file.with_suffix(".lock"), lambda: pytest.fail("nobody has it")):
        thread = Thread(target=lambda: found.append(job.learnt(("base",))))
        thread.start()
        assert waits.wait(10)
        assert found == []
    thread.join(10)
    assert [one.cell for one in found] == [{"learnt": ("base",)}]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


# Rows and figure


SCORES = {"baseline1": 1.0, "baseline2": 0.1, "baseline3": 1.3, "baseline4": 1.1, "progressive2": 1.6}
SCORES["progressive3"] = 1.8


def made_up(arm: str, seed: int, settings=PONG.scales["cpu"]) -> Run:
    """A run whose area is 10 times the arm's score, and whose curve passes 15 at 2 million steps."""
    found: dict = {}
    for source, target in pairs(available(SOURCES, settings.sources)[arm], settings.targets):
        found.setdefault(source_name(source), {})[target] = {
            "steps": [1_000_000, 2_000_000, 3_000_000],
            "returns": [-20.0, 15.0 + seed, 17.0],
            "area": 10.0 * SCORES[arm] + 0.1 * seed * (arm != "baseline1"),
            "final": 16.0 + seed,
        } | (
            {"afs": [[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]], "afs_maps": [[[0.5, 0.25], [0.2, 0.05]], [[0.5], [0.5]]]}
            if source
            else {}
        )
    return Run(
        experiment="progressive-pong-soup",
        scale="cpu",
        arm=arm,
        seed=seed,
        settings={},
        data="pong",
        versions={},
        device="cpu",
        threads=1,
        seconds=60.0,
        commit="",
        date="",
        measurements={"cells": found, "sources": {source: {"final": 10.0 + seed} for source in found}},
    )


def test_rows_of_one_pair_are_beside_the_papers_cell():
    runs = [made_up(arm, seed) for arm in ARMS[:5] for seed in range(3)]
    found = {(row.arm, row.metric): row for row in PONG.rows(runs)}
    final = found["baseline1", "final mean return"]
    assert (final.mean, final.paper, final.target, final.met) == (17.0, 18.7, "≥ 15", "met")
    assert found["baseline1", "million agent steps to a mean return of 15"].mean == 2.0
    assert found["baseline1", "million agent steps to a mean return of 15"].paper == 20.0
    mean = found["progressive2", "mean transfer"]
    assert (mean.paper, mean.note) == (2.09, "1 of the paper's 21 pairs")
    assert mean.mean == pytest.approx(1.61)
    for worse, paper, ours in (("baseline1", 0.58, 0.61), ("baseline2", 1.53, 1.5)):
        row = found[f"progressive2 - {worse}", "mean transfer"]
        assert (row.paper, row.target, row.met) == (paper, "≥ 0", "met")
        assert row.mean == pytest.approx(ours)
    assert found["progressive2", "transfer from base"].paper == 1.58
    assert "hflip 1.61 (1.58)" in found["progressive2", "transfer from base"].note
    assert found["progressive2", "final mean return, source"].mean == 11.0
    assert found["progressive2", "share of old features (AFS), conv 2"].mean == 0.5
    assert found["progressive2", "share of old features (AFS): conv 2 minus fc, base to hflip"].mean == 0.25
    assert not any("progressive3" in arm or "APS" in metric for arm, metric in found)


def test_a_column_that_does_not_learn_pong_has_no_steps_to_it():
    run = made_up("baseline1", 0)
    cell = run.measurements["cells"]["none"]["hflip"]
    cell["returns"], cell["final"] = [-20.0, -10.0, 14.9], 14.9
    found = {(row.arm, row.metric): row for row in PONG.rows([run])}
    assert math.isnan(found["baseline1", "million agent steps to a mean return of 15"].mean)
    assert found["baseline1", "final mean return"].met == "missed"


@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize("arms", [ARMS, ("baseline1",), ("progressive2",), ("baseline1", "baseline4")])
def test_rows_and_figure_take_any_arms(tmp_path, arms, scale):
    settings = PONG.scales[scale]
    runs = [made_up(arm, seed, settings) for arm in arms if arm in PONG.arm_names(settings) for seed in (0, 1)]
    table = PONG.rows(runs)
    assert all(row.seeds or row.mean is None for row in table)
    if scale == "paper" and arms == ARMS:
        found = {(row.arm, row.metric): row for row in table}
        assert found["progressive2 - baseline1", "mean transfer"].paper == 1.09
        assert found["progressive3", "mean transfer"].note == ""
        assert len(TARGETS) == 8
    PONG.figure(runs).savefig(tmp_path / "figure.png", dpi=30)


def test_a_mean_curve_has_the_points_of_all():
    one, other = {"x": [1, 2, 3], "y": [1.0, 2.0, 3.0]}, {"x": [1, 3], "y": [3.0, 5.0]}
    assert mean_curve([one, other], "x", "y") == ([1, 3], [2.0, 4.0])
    assert mean_curve([], "x", "y") == ([], [])


# Atari


def test_atari_has_the_papers_games_pairs_and_columns():
    from benchmarks.harness.papers import paper
    from benchmarks.progressive.atari import SOURCES as GAMES
    from benchmarks.progressive.atari import TARGETS as OTHERS

    printed = paper("progressive")["atari"]
    assert sorted(name.replace("_", "") for name in OTHERS) == sorted(name.lower() for name in printed["targets"])
    assert [source for (source,) in GAMES["progressive2"]] == [name.lower() for name in printed["sources"]]
    assert len(pairs(GAMES["progressive3"], OTHERS)) == printed["sensitivity"]["nets"]
    assert ATARI.arm_names(ATARI.scales["paper"]) == tuple(paper("progressive")["table1"]["atari"])
    assert ATARI.arm_names(ATARI.scales["cpu"]) == ARMS[:5]


def atari_run(arm: str, seed: int) -> Run:
    from benchmarks.progressive.atari import SOURCES as GAMES
    from benchmarks.progressive.atari import TARGETS as OTHERS

    found: dict = {}
    scores = SCORES | {"progressive4": 1.9}
    for source, target in pairs(GAMES[arm], OTHERS):
        shift = 0.0 if arm == "baseline1" else -0.7 * (target in ("alien", "hero"))
        shares = {"afs": [[0.5] * (len(source) + 1)] * 4} if source else {}
        found.setdefault(source_name(source), {})[target] = {"area": 100 * (scores[arm] + shift)} | shares
    return dataclasses.replace(made_up("baseline1", seed), arm=arm, measurements={"cells": found})


@pytest.mark.parametrize(
    "arms", [(*ARMS, "progressive4"), ("baseline1",), ("progressive3",), ("baseline1", "baseline3")]
)
def test_atari_is_beside_table_1_and_labyrinth_is_not_reproduced(tmp_path, arms):
    runs = [atari_run(arm, seed) for arm in arms for seed in (0, 1)]
    found = {(row.arm, row.metric): row for row in ATARI.rows(runs)}
    labyrinth = found["progressive2, Labyrinth", "mean transfer"]
    assert (labyrinth.paper, labyrinth.mean, labyrinth.seeds) == (4.91, None, 0)
    assert "cannot be installed" in labyrinth.note
    if "progressive4" in arms:
        row = found["progressive4", "mean transfer"]
        assert (row.mean, row.paper, row.note) == (pytest.approx(1.9 - 0.7 / 6), 1.41, "")
        assert found["progressive2", "median transfer"].mean == pytest.approx(1.6)
        positive = found["progressive2", "targets with a mean transfer above 1"]
        assert (positive.mean, positive.paper) == (10, 8)
    ATARI.figure(runs).savefig(tmp_path / "figure.png", dpi=30)


def test_standardised_input_is_what_its_name_says():
    x = torch.rand(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    found = Standardise(0.3, 0.2)(x)
    torch.testing.assert_close(found, (x - 0.3) / 0.2)
    assert found.is_contiguous(memory_format=torch.channels_last)
    background, ball = torch.tensor([87, 236]) / 255
    seen = column(8)[0](torch.stack([background, ball]))
    torch.testing.assert_close(seen, torch.tensor([0, 149 / 40]), atol=1e-6, rtol=1e-6)
