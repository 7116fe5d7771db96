"""Sensitivity as Avalanche's evaluator logs it."""

import pytest
import torch
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from avl_plugins import Progressive, ProgressiveNetwork, load_checkpoint, save_checkpoint
from avl_plugins.data.loading import batches_in_memory
from avl_plugins.metrics import sensitivity_metrics
from avl_plugins.metrics.pictures import Picture
from avl_plugins.progressive.figure import sensitivity_figure
from avl_plugins.progressive.sensitivity import average_fisher_sensitivity

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified", "ignore:task . has not been trained on")
SUFFIX = "/train_phase/train_stream/Task00"


def build(metrics, loggers=(), network=None):
    torch.manual_seed(0)
    network = network or ProgressiveNetwork(nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU()))
    return Progressive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        evaluator=EvaluationPlugin(*metrics, loggers=list(loggers)),
    )


@pytest.mark.parametrize("normalise", ["layer", "map"])
def test_values_are_those_of_the_function(digits_split, normalise):
    (metric,) = sensitivity_metrics(layers=True, max_samples=None, normalise=normalise, batch_size=7)
    strategy = build([metric])
    assert metric.result() is None
    expected = []
    for task, experience in enumerate(digits_split.train_stream[:3]):
        strategy.train(experience)
        data = batches_in_memory(experience.dataset, 100)
        expected.append(average_fisher_sensitivity(strategy.model, data, task, normalise=normalise))
        assert (metric.result() is None) == (task == 0)
    logged = strategy.evaluator.get_all_metrics()
    assert not [name for name in logged if name.endswith("Task000")]
    for task in (1, 2):
        for j in range(task + 1):
            (share,) = logged[f"progressive/AFS/column{j}{SUFFIX}{task}"][1]
            assert type(share) is float
            assert share == pytest.approx(float(expected[task].columns[j]))
            for i in range(2):
                (value,) = logged[f"progressive/AFS/depth{i}/column{j}{SUFFIX}{task}"][1]
                assert value == pytest.approx(float(expected[task].layers[i, j]))
        (picture,) = logged[f"progressive/AFS{SUFFIX}{task}"][1]
        figure = sensitivity_figure(expected[task], columns=[f"task {k}" for k in range(task + 1)])
        assert picture.image.shape == Picture(figure).image.shape
        assert (picture.image != Picture(figure).image).float().mean() < 1e-3, "but for rounding"
    torch.testing.assert_close(metric.result().layers, expected[2].layers)
    assert metric.result().normalise == normalise
    metric.reset()
    assert metric.result() is None


def test_a_random_subset_of_the_samples(digits_split):
    metrics = [m for n in (30, None) for m in sensitivity_metrics(max_samples=n, columns=False)]
    strategy = build(metrics)
    strategy.train(digits_split.train_stream[:2])
    few, many = (metric.result().layers for metric in metrics)
    assert not torch.equal(few, many)
    torch.testing.assert_close(few, many, rtol=0, atol=0.2)


def test_goes_to_tensorboard_and_on_from_a_checkpoint(digits_split, tmp_path):
    strategies = [
        build(sensitivity_metrics(), [TensorboardLogger(str(tmp_path / name))] if name else [])
        for name in ("tensorboard", "")
    ]
    strategies[0].train(digits_split.train_stream[:2])
    save_checkpoint(strategies[0], tmp_path / "run.pt")
    load_checkpoint(strategies[1], tmp_path / "run.pt")
    one, other = (strategy.evaluator.metrics[0].result() for strategy in strategies)
    assert torch.equal(one.layers, other.layers)
    assert all(torch.equal(one.means[place], other.means[place]) for place in one.means)
    for strategy in strategies:
        torch.manual_seed(5)
        strategy.train(digits_split.train_stream[2])
    one, other = (strategy.evaluator.metrics[0].result() for strategy in strategies)
    assert torch.equal(one.layers, other.layers)
    strategies[0].evaluator.loggers[0].writer.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert f"progressive/AFS{SUFFIX}2" in events.Tags()["images"]
    (scalar,) = events.Scalars(f"progressive/AFS/column1{SUFFIX}2")
    assert scalar.value == pytest.approx(float(one.columns[1]), rel=1e-6)


def test_columns_of_other_widths_are_told_before_the_training(digits_split):
    widths = (12, 9)
    network = ProgressiveNetwork(lambda k: nn.Sequential(nn.Linear(64, widths[k]), nn.ReLU()))
    strategy = build(sensitivity_metrics(normalise="map"), network=network)
    strategy.train(digits_split.train_stream[0])
    steps = strategy.clock.train_iterations
    with pytest.raises(ValueError, match=r"normalise: 'map' compares .* at depth 0 the columns have \[12, 9\] maps"):
        strategy.train(digits_split.train_stream[1])
    assert strategy.clock.train_iterations == steps


def test_nothing_asked_for_is_nothing_made():
    assert sensitivity_metrics(figure=False, columns=False) == []
    assert [str(m) for m in sensitivity_metrics()] == ["progressive/AFS"]
