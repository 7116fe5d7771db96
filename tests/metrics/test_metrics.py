"""Capacity and forgetting against closed forms, and forgetting against Avalanche's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks import dataset_benchmark
from avalanche.evaluation.metrics import forgetting_metrics
from avalanche.logging import BaseLogger
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import TensorDataset

from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.metrics import capacity_metrics, chaudhry_forgetting_metrics, forgetting
from avl_plugins.metrics._plugins import position
from avl_plugins.metrics.capacity import Capacity, count_parameters


class Values(BaseLogger):
    """Keep what is logged: name, x, value."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[str, int, float]] = []

    def log_single_metric(self, name, value, x_plot):
        self.rows.append((name, x_plot, value))

    def named(self, name):
        return [value for key, _, value in self.rows if key == name]


class Scripted(nn.Module):
    """After training k, right on the share ``script[k][j]`` of experience j's samples, whatever is trained."""

    def __init__(self, script):
        super().__init__()
        self.script = script
        self.trainings = 0
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        experience, index, label = x.long().unbind(1)
        script = torch.tensor(self.script[max(self.trainings - 1, 0)])
        right = index < (script[experience] * 10).round()
        return nn.functional.one_hot(torch.where(right, label, 1 - label), 2) + self.weight


def _scripted_benchmark(n):
    data = []
    for number in range(n):
        labels = torch.arange(10) % 2
        x = torch.stack([torch.full((10,), number), torch.arange(10), labels], 1).float()
        data.append(TensorDataset(x, labels))
        data[-1].targets = labels.tolist()
    return dataset_benchmark(data, data)


def _evaluate(script, metrics, *, order=None, streams=("test",), until=None):
    """Train and evaluate as many times as the script has rows; return the logged values and the strategy."""
    benchmark = _scripted_benchmark(len(script[0]))
    values = Values()
    model = Scripted(script)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        eval_mb_size=4,
        evaluator=EvaluationPlugin(*metrics, loggers=[values]),
    )
    for number in (order or range(len(script)))[:until]:
        model.trainings += 1
        strategy.train(benchmark.train_stream[number])
        for stream in streams:
            strategy.eval(benchmark.streams[stream])
    return values, strategy


SCRIPT = [[0.6, 0.1, 0.5], [0.9, 0.8, 0.4], [0.7, 0.5, 1.0]]
STREAM = "forgetting/StreamMaxForgetting/eval_phase/test_stream"


def test_forgetting_is_max_over_history_minus_last():
    rows = [dict(enumerate(row)) for row in SCRIPT]
    assert forgetting(rows) == pytest.approx({0: 0.9 - 0.7, 1: 0.8 - 0.5, 2: 0.5 - 1.0})
    assert forgetting(rows[:1]) == {}
    assert forgetting([{0: 0.5}, {1: 0.5}, {0: 0.7, 2: 0.1}]) == pytest.approx({0: -0.2})


def test_stream_forgetting_is_the_mean_over_earlier_experiences():
    values, _ = _evaluate(SCRIPT, chaudhry_forgetting_metrics(experience=True, stream=True))
    assert values.named(STREAM) == pytest.approx([0, 0.6 - 0.9, (0.2 + 0.3) / 2])
    assert all(type(value) is float for _, _, value in values.rows)
    name = "forgetting/ExperienceMaxForgetting/eval_phase/test_stream/Task000/Exp00{}"
    assert values.named(name.format(0)) == pytest.approx([-0.3, 0.2])
    assert values.named(name.format(1)) == pytest.approx([0.3])
    assert values.named(name.format(2)) == []
    assert [x for key, x, _ in values.rows if key == STREAM] == [1, 2, 3]


@pytest.mark.parametrize(
    ("script", "ours", "avalanches"),
    [
        ([[0.9, 0.1], [0.4, 0.8]], 0.5, 0.5),  # best when learned: the same
        ([[0.6, 0.1, 0.5], [0.9, 0.8, 0.4], [0.7, 0.5, 1.0]], 0.25, 0.1),  # got better, then worse: Avalanche misses it
    ],
)
def test_avalanches_forgetting_is_equal_where_the_first_value_is_the_best(script, ours, avalanches):
    metrics = [chaudhry_forgetting_metrics(stream=True), forgetting_metrics(stream=True)]
    values, _ = _evaluate(script, metrics)
    assert values.named(STREAM)[-1] == pytest.approx(ours)
    assert values.named("StreamForgetting/eval_phase/test_stream")[-1] == pytest.approx(avalanches)


def test_streams_are_kept_apart_and_a_repeated_experience_is_an_earlier_one_later():
    script = [[1.0, 0.1], [0.2, 0.9], [0.7, 0.3]]
    values, strategy = _evaluate(
        script, chaudhry_forgetting_metrics(stream=True), order=[0, 1, 0], streams=("train", "test")
    )
    train = "forgetting/StreamMaxForgetting/eval_phase/train_stream"
    for name in (train, STREAM):
        # Third training is on experience 0 again, so experience 1 is the earlier one.
        assert values.named(name) == pytest.approx([0, 0.8, 0.9 - 0.3])
    metric = strategy.evaluator.metrics[0]
    assert metric.result() == pytest.approx({1: 0.6})
    metric.reset()
    assert metric.result() == {}
    assert metric.trained == []


def _by_hand(script):
    benchmark, model, values = _scripted_benchmark(2), Scripted(script), Values()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        criterion=nn.CrossEntropyLoss(),
        evaluator=EvaluationPlugin(chaudhry_forgetting_metrics(stream=True), loggers=[values]),
    )
    return benchmark, model, values, strategy


def test_what_is_evaluated_before_training_does_not_count():
    benchmark, model, values, strategy = _by_hand([[1.0, 1.0], [0.3, 0.3]])
    strategy.eval(benchmark.test_stream)
    assert values.rows == []
    model.trainings = 2
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    assert values.named(STREAM) == [0, 0]


def test_the_last_evaluation_of_a_training_counts():
    benchmark, model, values, strategy = _by_hand([[0.9, 0.1], [0.5, 0.1], [0.4, 1.0]])
    strategy.train(benchmark.train_stream[0])
    for model.trainings in (1, 2):
        strategy.eval(benchmark.test_stream)
    strategy.train(benchmark.train_stream[1])
    model.trainings = 3
    strategy.eval(benchmark.test_stream)
    assert values.named(STREAM) == pytest.approx([0, 0, 0.5 - 0.4])


def test_x_is_counted_in_steps_where_there_are_some():
    """In reinforcement learning, as for returns: Weights & Biases drops what comes at a smaller x than before."""
    clock = SimpleNamespace(train_iterations=3)
    assert position(SimpleNamespace(clock=clock)) == 3
    assert position(SimpleNamespace(clock=clock, steps=640)) == 640


def test_the_factories_make_what_is_asked_for():
    assert chaudhry_forgetting_metrics() == []
    assert [str(m) for m in chaudhry_forgetting_metrics(experience=True)] == ["forgetting/ExperienceMaxForgetting"]
    assert [str(m) for m in capacity_metrics()] == [
        f"capacity/{name}" for name in ("Parameters", "TrainableParameters", "RelativeCapacity")
    ]
    assert [str(m) for m in capacity_metrics(total=False, trainable=False)] == ["capacity/RelativeCapacity"]
    with pytest.raises(ValueError, match="kind must be 'total', 'trainable' or 'relative', got 'size'"):
        Capacity(kind="size")


def test_forgetting_goes_on_from_a_checkpoint(tmp_path):
    metrics = lambda: chaudhry_forgetting_metrics(experience=True, stream=True)  # noqa: E731
    whole, _ = _evaluate(SCRIPT, metrics())
    _, half = _evaluate(SCRIPT, metrics(), until=2)
    save_checkpoint(half, tmp_path / "half.pt")
    rest, strategy = _evaluate(SCRIPT, metrics(), until=0)
    assert load_checkpoint(strategy, tmp_path / "half.pt") == 2
    strategy.model.trainings = 3
    benchmark = _scripted_benchmark(3)
    strategy.train(benchmark.train_stream[2])
    strategy.eval(benchmark.test_stream)
    assert rest.rows == whole.rows[-len(rest.rows) :]
    assert len(rest.rows) == 3


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(64, 4)
        self.tied = self.body
        self.head = IncrementalClassifier(4, initial_out_features=2)

    def forward(self, x):
        return self.head(self.body(x))


def test_capacity_counts_a_growing_and_frozen_model(digits_classes):
    model, values = Growing(), Values()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=64,
        evaluator=EvaluationPlugin(capacity_metrics(), loggers=[values]),
    )
    for number, experience in enumerate(list(digits_classes.train_stream)[:3]):
        if number == 2:
            model.body.weight.requires_grad_(False)
        strategy.train(experience)
    head = [4 * classes + classes for classes in (2, 4, 6)]
    totals = [64 * 4 + 4 + size for size in head]
    suffix = "/train_phase/train_stream"
    assert values.named("capacity/Parameters" + suffix) == totals
    assert values.named("capacity/TrainableParameters" + suffix) == [*totals[:2], totals[2] - 256]
    assert values.named("capacity/RelativeCapacity" + suffix) == [1.0, totals[1] / totals[0], totals[2] / totals[0]]
    assert all(type(value) is float for _, _, value in values.rows)
    assert count_parameters(model) == totals[2]
    metric = strategy.evaluator.metrics[2]
    assert metric.result() == totals[2] / totals[0]
    metric.reset()
    assert metric.result() is None
