"""Weight noise along a Fisher, and episodes that are played under it."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from benchmarks.ewc._weight_noise import COVARIANCES, NoisyWeights, noise_figure, noise_rows, noise_variance, relative
from benchmarks.harness.experiment import Run


def test_variances_follow_the_fisher():
    fisher = torch.tensor([0.0, 0.5, 1.0, 2.5])  # mean 1, so the damping is 0.5
    variance = {name: noise_variance(name, fisher, 0.5).tolist() for name in COVARIANCES}
    assert variance["uniform"] == [1, 1, 1, 1]
    assert variance["inverse-fisher"] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 6])
    assert variance["null-space"] == [1, 0, 0, 0], "below the damping, not at it"


def test_each_draw_is_new_and_starts_from_the_same_weights():
    model = nn.Linear(300, 100)
    before = parameters_to_vector(model.parameters()).detach().clone()
    variance = torch.ones(len(before))
    variance[:15_000] = 0.25
    variance[-100:] = 0
    weights = NoisyWeights(model, variance, seed=3)
    draws = []
    for _ in range(2):
        weights.draw(0.2)
        draws.append(parameters_to_vector(model.parameters()).detach() - before)
    for draw in draws:
        assert draw[:15_000].std().item() == pytest.approx(0.1, rel=0.03)
        assert draw[15_000:-100].std().item() == pytest.approx(0.2, rel=0.03)
        assert draw.mean().item() == pytest.approx(0, abs=0.005)
        assert (draw[-100:] == 0).all(), "exactly: the weights themselves"
    assert abs(torch.corrcoef(torch.stack(draws))[0, 1].item()) < 0.03
    weights.restore()
    assert torch.equal(parameters_to_vector(model.parameters()), before)
    again = NoisyWeights(model, variance, seed=3)
    again.draw(0.2)
    assert torch.equal(parameters_to_vector(model.parameters()).detach() - before, draws[0])
    assert torch.equal(weights.weights, before), "the weights that are kept do not share memory with the model's"


def run(arm, half, seed=0):
    measured = {"half": half, "half_norm": half / 2, "noise": [0.1, 1.0], "score": [1.0, 0.2]}
    own = {"settings": {}, "data": "d", "versions": {}, "device": "cpu", "threads": 1, "seconds": 60.0}
    own |= {"commit": "c", "date": "", "measurements": measured}
    return Run(experiment="e", scale="cpu", arm=arm, seed=seed, **own)


def test_tolerance_is_relative_to_uniform_noise_of_the_same_seed():
    runs = [run("uniform", 0.1), run("inverse-fisher", 0.4), run("null-space", 0.2)]
    runs += [replace(r, seed=1, measurements=r.measurements | {"half": 1.0}) for r in runs[:2]]
    table = {(row.arm, row.metric): row for row in noise_rows(runs, note="n")}
    row = table["inverse-fisher", "half-score noise / uniform's"]
    assert (row.mean, row.target, row.paper, row.seeds) == (pytest.approx((4 + 1) / 2), "≥ 3", 14.0, 2)
    assert row.met == "missed"
    assert table["null-space", "half-score noise / uniform's"].mean == pytest.approx(2)
    assert table["uniform", "noise that halves the score"].mean == pytest.approx(0.55)
    assert len(noise_figure(runs, "title").axes[0].lines) == 4, "three curves and the half"


def test_a_score_that_does_not_fall_to_half_leaves_the_target_undecided():
    runs = [run("uniform", 0.1), run("inverse-fisher", math.nan)]
    row = next(r for r in noise_rows(runs, note="") if r.target)
    assert math.isnan(row.mean)
    assert row.met == "undecided"
    assert math.isnan(relative(run("inverse-fisher", 1.0, seed=5), "half", {0: 1.0}))


def test_episodes_are_whole_and_each_environments_first():
    pytest.importorskip("gymnasium")
    from rl_cases import Counting, make

    from avl_plugins.rl import rl_benchmark
    from benchmarks.ewc.fig3c_rl import play

    class Weights:
        drawn = 0

        def draw(self, noise):
            assert noise == 0.5
            self.drawn += 1

    visit = rl_benchmark({"a": make(Counting, length=3)}, steps=8).test_stream[0]
    agent = SimpleNamespace(
        outputs=lambda x: torch.tensor([[0.0, 1.0]]).expand(len(x), 2), choose=lambda outputs, _: outputs.argmax(1)
    )
    weights = Weights()
    # Environment i has episodes of 3 + i steps, and each step of action 1 gives a reward of 1.
    assert play(agent, visit, 3, 0, weights, 0.5) == (3 + 4 + 5) / 3
    assert weights.drawn == 5, "one for each time step of the longest"
    assert play(agent, visit, 1, 0) == 3


@pytest.mark.filterwarnings("ignore:No loggers specified")
def test_an_agent_of_one_seed_bears_all_covariances():
    pytest.importorskip("gymnasium")
    pytest.importorskip("minatar")
    from benchmarks.ewc.fig3c_rl import by_covariance, games
    from benchmarks.harness.experiment import Context
    from benchmarks.harness.registry import find_experiment

    experiment = find_experiment("ewc-fig3c-rl")
    found = experiment.measure(experiment.scales["smoke"], "dqn", 0, Context())
    assert all(len(found[name]["score"]) == 4 for name in COVARIANCES)
    assert len({found[name]["unperturbed"] for name in COVARIANCES}) == 1
    assert 0 < found["zero"] < 1, "planes of the game that are always empty have no Fisher"
    measured = replace(run("dqn", 0.0), measurements=found)
    assert [(r.arm, r.measurements) for r in by_covariance([measured])] == [(n, found[n]) for n in COVARIANCES]
    made = {name: model(6) for name, (_, model) in games(experiment.scales["smoke"]).items()}
    assert made["minatar-breakout"](torch.zeros(2, 10, 10, 10)).shape == (2, 6)
    assert made["ale-breakout"](torch.zeros(2, 4, 84, 84)).shape == (2, 6)
