"""Metrics of EWC: penalty, Fisher mass and overlap matrices, as Avalanche's evaluator logs them."""

import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from matplotlib.figure import Figure
from torch import nn

from avl_plugins import EWCPlugin, fisher_overlap
from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.metrics import ewc_metrics

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
    assert logged[f"EWCPenalty_MB{suffix}/Task000"][1] == ewc.values
    per_epoch = logged[f"EWCPenalty_Epoch{suffix}/Task000"][1]
    assert per_epoch == pytest.approx(means)
    assert per_epoch[0] == 0
    assert min(per_epoch[1:]) > 0
    for layer in ("0", "2"):
        masses = logged[f"EWCFisherMass/{layer}{suffix}/Task000"][1]
        expected = [float(f[f"{layer}.weight"].sum() + f[f"{layer}.bias"].sum()) for f in ewc.fishers]
        assert masses == pytest.approx(expected)
        assert all(type(mass) is float for mass in masses)
    figures = logged[f"EWCFisherOverlap{suffix}"][1]
    assert len(figures) == len(digits_permuted.train_stream) - 1
    assert all(isinstance(figure, Figure) for figure in figures)
    drawn = figures[-1].axes[0].images[0].get_array()
    expected = [[fisher_overlap(a, b)["0"] for b in ewc.fishers] for a in ewc.fishers]
    torch.testing.assert_close(torch.tensor(drawn), torch.tensor(expected, dtype=torch.float64))


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
        assert (lengths["EWCFisherMass/0"], lengths["EWCFisherOverlap"]) == (2, 1), logged.keys()
    assert counts == [(n, n) for n in (0, 0, 1, 1, 1, 2)] * 2


def test_without_the_plugin_the_error_says_what_to_add(digits_permuted):
    strategy = train(digits_permuted, [], experience=True)
    with pytest.raises(ValueError, match="add it to plugins"):
        strategy.train(digits_permuted.train_stream[0])


def test_nothing_asked_for_is_nothing_made():
    assert ewc_metrics() == []
    assert [str(m) for m in ewc_metrics(minibatch=True, epoch=True)] == ["EWCPenalty_MB", "EWCPenalty_Epoch"]
