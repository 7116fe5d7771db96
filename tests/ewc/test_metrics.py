"""Metrics of EWC: penalty, Fisher mass and overlap matrices, as Avalanche's evaluator logs them."""

import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avl_plugins import EWCPlugin, fisher_overlap
from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.metrics import ewc_metrics
from avl_plugins.metrics.ewc import FisherOverlap
from avl_plugins.metrics.pictures import Picture

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


def train(benchmark, plugins, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    evaluator = EvaluationPlugin(ewc_metrics(**options), loggers=[])
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=50,
        plugins=plugins,
        evaluator=evaluator,
    )
    return strategy


def test_values_are_the_plugins_own(digits_permuted):
    class Recorder(EWCPlugin):
        values: list[float] = []  # noqa: RUF012
        fishers: list[dict] = []  # noqa: RUF012

        def after_training_iteration(self, strategy, **kwargs):
            self.values.append(float(self.last_penalty))

        def after_training_exp(self, strategy, **kwargs):
            super().after_training_exp(strategy, **kwargs)
            self.fishers.append(self.importances)

    ewc = Recorder(ewc_lambda=10.0)
    strategy = train(digits_permuted, [ewc], minibatch=True, epoch=True, experience=True, overlap=True)
    means = []
    for experience in digits_permuted.train_stream:
        done = len(ewc.values)
        strategy.train(experience)
        means.append(sum(ewc.values[done:]) / (len(ewc.values) - done))
    logged = strategy.evaluator.get_all_metrics()
    suffix = "/train_phase/train_stream"
    assert logged[f"ewc/Penalty_MB{suffix}/Task000"][1] == ewc.values
    per_epoch = logged[f"ewc/Penalty_Epoch{suffix}/Task000"][1]
    assert per_epoch == pytest.approx(means)
    assert per_epoch[0] == 0
    assert min(per_epoch[1:]) > 0
    for layer, name in (("0", "layer 1"), ("2", "layer 2")):
        masses = logged[f"ewc/FisherMass/{name}{suffix}/Task000"][1]
        expected = [float(f[f"{layer}.weight"].sum() + f[f"{layer}.bias"].sum()) for f in ewc.fishers]
        assert masses == pytest.approx(expected)
        assert all(type(mass) is float for mass in masses)
    figures = logged[f"ewc/FisherOverlap{suffix}"][1]
    assert len(figures) == len(digits_permuted.train_stream) - 1
    assert all(isinstance(figure, Picture) for figure in figures)
    figure = strategy.evaluator.metrics[-1].result()
    assert [panel.get_title() for panel in figure.axes[:2]] == ["layer 1", "layer 2"]
    drawn = figure.axes[0].images[0].get_array()
    expected = [[fisher_overlap(a, b)["0"] for b in ewc.fishers] for a in ewc.fishers]
    torch.testing.assert_close(torch.tensor(drawn), torch.tensor(expected, dtype=torch.float64))


def test_a_task_adds_a_row_to_the_overlaps(monkeypatch):
    """Only it is computed, unless other parameters have to be left out; the matrices are those of all pairs."""
    calls = []
    monkeypatch.setattr("avl_plugins.metrics.ewc.fisher_overlap", lambda a, b: calls.append(1) or fisher_overlap(a, b))
    metric, fishers, counts = FisherOverlap(), [], []
    for task in range(6):
        head = 2 if task < 4 else 3
        fishers.append({"0.weight": torch.rand(4, 3), "1.weight": torch.rand(head, 4), "1.bias": torch.rand(5)})
        metric.add(fishers[-1])
        counts.append(len(calls))
        shared = ("0.weight", "1.weight", "1.bias") if task < 4 else ("0.weight", "1.bias")
        tasks = [{name: fisher[name] for name in shared} for fisher in fishers]
        for layer, matrix in metric.matrices().items():
            assert matrix == [[fisher_overlap(a, b)[layer] for b in tasks] for a in tasks]
    assert counts == [1, 3, 6, 10, 10 + 15, 10 + 15 + 6]


def test_in_online_streams_only_ends_of_tasks_count(digits_permuted, tmp_path):
    parts = list(
        split_online_stream(digits_permuted.train_stream[:2], experience_size=134, access_task_boundaries=True)
    )
    assert len(parts) == 6
    counts = []
    for reload in (False, True):
        ewc = EWCPlugin(ewc_lambda=10.0)
        strategy = train(digits_permuted, [ewc], experience=True, overlap=True)
        for n, part in enumerate(parts):
            strategy.train(part)
            mass, overlap = strategy.evaluator.metrics
            counts.append((ewc.tasks, len(overlap.fishers)))
            assert mass.tasks == ewc.tasks
            if reload and n == 3:
                save_checkpoint(strategy, tmp_path / "run.pt")
                ewc = EWCPlugin(ewc_lambda=10.0)
                strategy = train(digits_permuted, [ewc], experience=True, overlap=True)
                load_checkpoint(strategy, tmp_path / "run.pt")
        logged = strategy.evaluator.get_all_metrics()
        lengths = {name.partition("/train_phase")[0]: len(values) for name, (_, values) in logged.items()}
        assert (lengths["ewc/FisherMass/layer 1"], lengths["ewc/FisherOverlap"]) == (2, 1), logged.keys()
    assert counts == [(n, n) for n in (0, 0, 1, 1, 1, 2)] * 2


def test_without_the_plugin_the_error_says_what_to_add(digits_permuted):
    strategy = train(digits_permuted, [], experience=True)
    with pytest.raises(ValueError, match="add it to plugins"):
        strategy.train(digits_permuted.train_stream[0])


def test_nothing_asked_for_is_nothing_made():
    assert ewc_metrics() == []
    assert [str(m) for m in ewc_metrics(minibatch=True, epoch=True)] == ["ewc/Penalty_MB", "ewc/Penalty_Epoch"]
