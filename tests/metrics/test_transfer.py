"""Area under the learning curve and transfer: closed forms, and what the metric records in training."""

from __future__ import annotations

import pytest
import torch
from avalanche.benchmarks import dataset_benchmark
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from avl_plugins import Progressive, ProgressiveNetwork, Resumable, load_checkpoint, save_checkpoint
from avl_plugins.metrics import learning_curve_area, transfer_metrics, transfer_score


def test_area_of_trapezoids():
    assert learning_curve_area([(0, 0.5), (10, 0.5)]) == 5
    assert learning_curve_area([(0, 0.0), (4, 1.0), (4, 0.5), (6, 0.5)]) == 2 + 0 + 1
    assert learning_curve_area([(2, 0.1), (4, 0.3)], floor=0.1) == pytest.approx(0.2)
    assert learning_curve_area([(0, -21.0), (10, 19.0)], floor=-21) == pytest.approx(200)
    assert learning_curve_area([(0, 0.0), (10, 0.2)], floor=0.3) == pytest.approx(-2)


def test_score_is_the_ratio_above_the_floor():
    fast, slow = [(0, 0.1), (5, 0.9), (10, 0.9)], [(0, 0.1), (10, 0.9)]
    assert transfer_score(fast, slow) == pytest.approx((2.5 + 4.5) / 5)
    assert transfer_score(fast, slow, floor=0.1) == pytest.approx((2 + 4) / 4)
    assert transfer_score(slow, slow, floor=0.1) == 1
    assert transfer_score([[0, 0.1], [10, 0.1]], slow, floor=0.2) == pytest.approx(-1 / 3)


curves = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=8).map(
    lambda steps: [(0, 0.5)] + [(sum(n for n, _ in steps[: i + 1]), v) for i, (_, v) in enumerate(steps)]
)


@given(curves, st.floats(-2, 0.4), st.floats(0.1, 10))
def test_area_against_a_fine_sum_and_units(curve, floor, scale):
    xs = torch.tensor([x for x, _ in curve], dtype=torch.float64)
    ys = torch.tensor([y for _, y in curve], dtype=torch.float64)
    area = learning_curve_area(curve, floor)
    assert area == pytest.approx(float(torch.trapezoid(ys - floor, xs)), abs=1e-9)
    baseline = [(0, 1.0), (curve[-1][0], 1.0)]
    score = transfer_score(curve, baseline, floor)
    assert score == pytest.approx(area / ((1 - floor) * curve[-1][0]), abs=1e-9)
    # The unit of neither axis matters.
    assert score == pytest.approx(
        transfer_score(
            [(3 * x, scale * y) for x, y in curve], [(3 * x, scale * y) for x, y in baseline], scale * floor
        ),
        abs=1e-9,
    )


@pytest.mark.parametrize(
    ("curve", "baseline", "floor", "message"),
    [
        ([(0, 1.0)], [(0, 1.0), (1, 1.0)], 0, "^curve must have at least 2 points .*, got 1"),
        ([(0, 1.0), (1, 1.0)], [], 0, "^baseline must have at least 2 points .*, got 0"),
        ([(0, 1.0), (3, 1.0), (2, 1.0)], [(0, 1.0), (2, 1.0)], 0, "do not decrease, and 2 comes after 3"),
        ([(0, 1.0), (2, 1.0)], [(0, 1.0), (3, 1.0)], 0, "baseline: it ends at iteration 3 and the curve at 2"),
        ([(1, 1.0), (3, 1.0)], [(0, 1.0), (3, 1.0)], 0, "baseline: it begins at iteration 0 and the curve at 1"),
        ([(0, 1.0), (2, 1.0)], [(0, 0.1), (2, 0.1)], 0.1, "baseline: its area above floor=0.1 is 0"),
        ([(0, 1.0), (2, 1.0)], [(0, 0.1), (2, 0.1)], 0.5, "floor has to be below"),
        ([(0, float("nan")), (2, 1.0)], [(0, 1.0), (2, 1.0)], 0, r"value of curve\[0\] must be a number, got nan"),
        ([(0, 1.0), (2, 1.0)], [(0, 1.0), (2, 1.0)], float("inf"), "floor must be a number, got inf"),
    ],
)
def test_bad_curves(curve, baseline, floor, message):
    with pytest.raises(ValueError, match=message):
        transfer_score(curve, baseline, floor)


class Values(BaseLogger):
    """Keep what is logged: name, x, value."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[str, int, float]] = []

    def log_single_metric(self, name, value, x_plot):
        self.rows.append((name, x_plot, value))


class Scripted(nn.Module):
    """After n training iterations in all, right on the share ``script[k][n]`` of task k's ten samples."""

    def __init__(self, script):
        super().__init__()
        self.script = torch.tensor(script)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        task, index, label = x.long().unbind(1)
        right = index < (self.script[task, self.steps] * 10).round()
        self.steps += int(self.training)
        return nn.functional.one_hot(torch.where(right, label, 1 - label), 2) + self.weight


def scripted_benchmark(n, labels=None):
    data = []
    for task in range(n):
        y = torch.arange(10) % 2
        data.append(TensorDataset(torch.stack([torch.full((10,), task), torch.arange(10), y], 1).float(), y))
        data[-1].targets = y.tolist()
        data[-1].targets_task_labels = ConstantSequence(task if labels is None else labels[task], 10)
    return dataset_benchmark(data, data)


class ResumableNaive(Resumable, Naive):
    pass


def build(script, metrics, *, plugins=(), kind=Naive, **arguments):
    values, model = Values(), Scripted(script)
    settings = {"train_epochs": 2, "train_mb_size": 5, "eval_mb_size": 4, "eval_every": 1} | arguments
    strategy = kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        criterion=nn.CrossEntropyLoss(),
        evaluator=EvaluationPlugin(*metrics, loggers=[values]),
        plugins=list(plugins),
        **settings,
    )
    return strategy, values


# Two epochs of two iterations on each of two tasks: evaluations after 0, 2, 4 and 4, 6, 8 iterations.
SCRIPT = [[0.0, 0.3, 0.5, 0.6, 0.9, 0.9, 0.9, 0.9, 0.9], [0.2, 0.2, 0.2, 0.2, 0.4, 0.5, 0.8, 0.9, 1.0]]
CURVES = {0: [(0, 0.0), (2, 0.5), (4, 0.9)], 1: [(0, 0.4), (2, 0.8), (4, 1.0)]}
BASELINE = {1: [(0, 0.1), (4, 0.9)]}
SCORE = (1.2 + 1.8) / 2.0
NAME = "TransferScore/train_phase/train_stream/Task001"


@pytest.mark.parametrize("together", [False, True])
def test_curves_of_periodic_evaluations(together):
    (metric,) = transfer_metrics(baseline=BASELINE)
    strategy, values = build(SCRIPT, [metric])
    benchmark = scripted_benchmark(2)
    if together:  # what is known of task 1 before its training is then the evaluation that ended task 0
        last = strategy.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
    for experience in () if together else benchmark.train_stream:
        last = strategy.train(experience, eval_streams=[benchmark.test_stream])
        strategy.eval(benchmark.test_stream)
    assert {k: [(x, pytest.approx(v)) for x, v in c] for k, c in CURVES.items()} == metric.curves
    assert metric.result() == {1: pytest.approx(SCORE)}
    assert values.rows == [(NAME, 8, pytest.approx(SCORE))]
    assert last[NAME] == pytest.approx(SCORE)
    assert type(values.rows[0][2]) is float
    assert all(type(x) is int and type(v) is float for c in metric.curves.values() for x, v in c)


@pytest.mark.parametrize(
    ("arguments", "xs"),
    [
        ({"eval_every": 0}, [0, 4]),
        # Avalanche's clock has not ticked yet when it evaluates, so that it does after 1, 3, ... and once at the end.
        ({"eval_every": 2}, [0, 2, 4]),
        ({"eval_every": 2, "train_epochs": 1}, [0, 2]),
        ({"eval_every": 2, "peval_mode": "iteration"}, [0, 1, 3, 4]),
        ({"eval_every": 1, "peval_mode": "iteration"}, [0, 1, 2, 3, 4, 4]),
    ],
)
def test_iterations_are_counted_in_every_mode(arguments, xs):
    (metric,) = transfer_metrics(baseline={0: [(0, 0.5), (xs[-1], 0.5)]})
    strategy, _ = build(SCRIPT, [metric], **arguments)
    strategy.train(scripted_benchmark(2).train_stream[0])
    assert metric.curves[0] == [(x, pytest.approx(SCRIPT[0][x])) for x in xs]
    assert metric.scores[0] == pytest.approx(learning_curve_area(metric.curves[0]) / (xs[-1] / 2))


def test_one_runs_curves_are_the_next_ones_baseline():
    (single,) = transfer_metrics()
    strategy, values = build([[0.1] * 5, [0.1, 0.2, 0.4, 0.4, 0.5]], [single])
    benchmark = scripted_benchmark(2)
    strategy.train(benchmark.train_stream[1], eval_streams=[benchmark.test_stream])
    assert values.rows == []
    assert single.result() == {}
    (metric,) = transfer_metrics(baseline=single.curves, floor={1: 0.1, 7: 0.5})
    strategy, _ = build(SCRIPT, [metric])
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
    assert metric.scores == {1: pytest.approx(transfer_score(CURVES[1], [(0, 0.1), (2, 0.4), (4, 0.5)], 0.1))}
    single.reset()
    assert single.curves == {}
    assert metric.baseline[1][-1] == (4, pytest.approx(0.5))


def test_mini_batches_are_at_the_number_of_updates_before_them():
    (metric,) = transfer_metrics(baseline={1: [(0, 0.5), (3, 0.5)]}, phase="train")
    strategy, _ = build(SCRIPT, [metric], train_mb_size=10, train_epochs=4, eval_every=-1)
    strategy.train(scripted_benchmark(2).train_stream)
    assert metric.curves == {k: [(x, pytest.approx(SCRIPT[k][4 * k + x])) for x in range(4)] for k in range(2)}
    assert metric.scores == {1: pytest.approx((0.45 + 0.65 + 0.85) / 1.5)}


class Extra(SupervisedPlugin):
    """Trains one more epoch after the experience's own, as plugins with phases do."""

    def after_training_exp(self, strategy, **kwargs):
        strategy._before_training_epoch(**kwargs)
        strategy.training_epoch(**kwargs)
        strategy._after_training_epoch(**kwargs)


def test_a_plugins_own_training_counts():
    (metric,) = transfer_metrics()
    strategy, _ = build(SCRIPT, [metric], plugins=[Extra()], train_epochs=1)
    strategy.train(scripted_benchmark(2).train_stream[0])
    assert [x for x, _ in metric.curves[0]] == [0, 2, 4]


def test_the_first_training_of_a_task_counts():
    benchmark = scripted_benchmark(3, labels=[0, 1, 0])
    script = [row[:5] * 3 for row in SCRIPT[:1]] * 3
    (metric,) = transfer_metrics(baseline={0: [(0, 0.5), (4, 0.5)]})
    strategy, values = build(script, [metric])
    for number in (0, 1, 2):
        strategy.train(benchmark.train_stream[number])
        if number == 0:
            curve, score = list(metric.curves[0]), metric.scores[0]
    assert (metric.curves[0], metric.scores) == (curve, {0: score})
    assert len(values.rows) == 1


class Stop(SupervisedPlugin):
    def after_training_epoch(self, strategy, **kwargs):
        raise KeyboardInterrupt


def test_an_interrupted_training_is_forgotten():
    (metric,) = transfer_metrics(baseline=BASELINE)
    strategy, _ = build(SCRIPT, [metric], plugins=[Stop()])
    benchmark = scripted_benchmark(2)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(benchmark.train_stream[1], eval_streams=[benchmark.test_stream])
    strategy.plugins = strategy.plugins[1:]
    strategy.eval(benchmark.test_stream)
    strategy.train(benchmark.train_stream[1], eval_streams=[benchmark.test_stream])
    assert [x for x, _ in metric.curves[1]] == [0, 2, 4]
    assert list(metric.scores) == [1]


def test_streams_and_evaluations_that_are_missing(caplog):
    benchmark = scripted_benchmark(2)

    def train(*, eval_streams=None, number=1, arguments=None, **settings):
        strategy, _ = build(SCRIPT, transfer_metrics(**settings), **(arguments or {}))
        strategy.train(benchmark.train_stream[number], eval_streams=eval_streams)
        return strategy.evaluator.metrics[0]

    with pytest.raises(ValueError, match="build the strategy with eval_every=1"):
        train(arguments={"eval_every": -1})
    with pytest.raises(ValueError, match=r"experience 1 is not among .*put it into train\(\.\.\., eval_streams"):
        train(eval_streams=[benchmark.test_stream[:1]])
    both = [benchmark.train_stream, benchmark.test_stream]
    with pytest.raises(ValueError, match=r"stream_name: the streams \['train', 'test'\] are evaluated"):
        train(eval_streams=both)
    with pytest.raises(ValueError, match="experience 1 of the stream 'valid' is not among"):
        train(eval_streams=both, stream_name="valid")
    assert len(train(eval_streams=both, stream_name="test").curves[1]) == 3
    other_budget = train(baseline={1: [(0, 0.5), (6, 0.5)]})
    assert "task 1 gets no score: baseline: it ends at iteration 6 and the curve at 4" in caplog.text
    one_point = train(
        baseline={1: [(0, 0.5), (6, 0.5)]}, phase="train", arguments={"train_mb_size": 10, "train_epochs": 1}
    )
    assert "task 1 gets no score: curve must have at least 2 points (iterations, value), got 1" in caplog.text
    assert other_budget.scores == one_point.scores == {}
    assert len(other_budget.curves[1]) == 3


def test_labels_that_do_not_tell_tasks_apart():
    strategy, _ = build(SCRIPT, transfer_metrics())
    constant = scripted_benchmark(2, labels=[0, 0])
    strategy.train(constant.train_stream[0])
    with pytest.raises(
        ValueError, match=r"all \d+ experiences of the stream have the task label 0, .*task_labels=True"
    ):
        strategy.train(constant.train_stream[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"phase": "test"}, "phase must be 'eval' or 'train', got 'test'"),
        ({"baseline": {3: [(0, 1.0)]}}, r"baseline\[3\] must have at least 2 points"),
        ({"baseline": BASELINE, "floor": 0.6}, r"baseline\[1\]: its area above floor=0.6"),
        ({"baseline": BASELINE, "floor": {0: 0.1}}, r"floor must have a value for the task labels \[1\]"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        transfer_metrics(**arguments)


class KillAt(SupervisedPlugin):
    """Saves at the n-th safe point and ends the run there."""

    def __init__(self, path, number):
        super().__init__()
        self.path, self.number, self.count = path, number, 0

    def safe_point(self, strategy):
        self.count += 1
        if self.count == self.number:
            save_checkpoint(strategy, self.path)
            raise KeyboardInterrupt

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("phase", ["eval", "train"])
def test_goes_on_from_a_checkpoint_at_any_safe_point(tmp_path, phase):
    benchmark = scripted_benchmark(2)
    baseline = {1: [(0, 0.1), (3 + (phase == "eval"), 0.9)]}

    def run(number, load=False):
        torch.manual_seed(99 if load else 5)
        metrics = transfer_metrics(baseline=baseline, phase=phase)
        plugins = [KillAt(tmp_path / "run.pt", number)]
        strategy, values = build(SCRIPT, metrics, plugins=plugins, kind=ResumableNaive)
        done = load_checkpoint(strategy, tmp_path / "run.pt") if load else 0
        for experience in benchmark.train_stream[done:]:
            strategy.train(experience, eval_streams=[benchmark.test_stream])
        return metrics[0], values, plugins[0].count

    whole, values, points = run(0)
    assert points == 12
    assert len(values.rows) == 1
    for number in range(1, points + 1):
        with pytest.raises(KeyboardInterrupt):
            run(number)
        rest, rows, _ = run(0, load=True)
        assert (rest.curves, rest.scores, rest.done) == (whole.curves, whole.scores, whole.done)
        assert rows.rows == values.rows


@pytest.mark.filterwarnings("ignore:task . has not been trained on")
def test_a_second_column_against_a_single_one(digits_split):
    """Baseline 1 and two columns of a progressive network; before its training a task's answers are chance."""

    def learn(tasks, metrics):
        torch.manual_seed(0)
        network = ProgressiveNetwork(nn.Sequential(nn.Linear(64, 16), nn.ReLU()), adapter="linear")
        strategy = Progressive(
            model=network,
            optimizer=torch.optim.SGD(network.parameters(), lr=0.05),
            train_mb_size=20,
            train_epochs=3,
            eval_mb_size=200,
            eval_every=1,
            evaluator=EvaluationPlugin(*metrics, loggers=[Values()]),
        )
        for task in tasks:
            strategy.train(digits_split.train_stream[task], eval_streams=[digits_split.test_stream])
        return metrics[0]

    single = learn([3], transfer_metrics())
    both = learn([1, 3], transfer_metrics(baseline=single.curves, floor=0.5))
    assert list(both.scores) == [3]
    assert both.scores[3] == transfer_score(both.curves[3], single.curves[3], 0.5)
    assert both.curves[3][0] == single.curves[3][0]
    steps = -(-len(digits_split.train_stream[3].dataset) // 20)
    assert [x for x, _ in both.curves[3]] == [x for x, _ in single.curves[3]] == [0, steps, 2 * steps, 3 * steps]
