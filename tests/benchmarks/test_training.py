"""Early stopping on all tasks, resuming inside a task, and accuracies as the experiments read them."""

import dataclasses

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import AGEMPlugin, EvaluationPlugin
from torch import nn

from benchmarks.harness.experiment import Context
from benchmarks.harness.registry import find_experiment
from benchmarks.training.supervised import (
    EarlyStoppingOnAllTasks,
    Evaluator,
    Training,
    accuracy,
    accuracy_matrix,
    default_plugins,
    make_evaluator,
    train_stream,
)

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


class Scripted(EarlyStoppingOnAllTasks):
    """Notes the validation error and the weights after every epoch."""

    def after_training_epoch(self, strategy, **kwargs):
        seen = self.stream[: strategy.experience.current_experience + 1]
        mean = sum(accuracy(strategy.model, e.dataset) for e in seen) / len(seen)
        weights = {n: v.clone() for n, v in strategy.model.state_dict().items()}
        self.history.setdefault(strategy.experience.current_experience, []).append((1 - mean, weights))
        super().after_training_epoch(strategy, **kwargs)


def test_each_task_ends_with_its_own_best_snapshot_and_stops_after_patience(digits_permuted):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 10))
    stopping = Scripted(digits_permuted.test_stream, patience=2)
    stopping.history = {}
    strategy = Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        train_mb_size=50,
        train_epochs=12,
        plugins=[stopping],
        evaluator=EvaluationPlugin(loggers=[]),
    )
    stopped = 0
    for k, experience in enumerate(digits_permuted.train_stream):
        strategy.train(experience)
        errors = [error for error, _ in stopping.history[k]]
        best = errors.index(min(errors))
        for name, value in model.state_dict().items():
            assert torch.equal(value, stopping.history[k][best][1][name])
        # the third check without improvement ends the task, or the epochs are used up
        assert len(errors) == min(12, best + 1 + 3)
        stopped += len(errors) < 12
    assert stopped >= 1


def test_the_evaluator_leaves_out_what_nobody_listens_to(digits_permuted):
    """Every metric and every call of a logger is as with Avalanche's own; a hook that one listens to is not idle."""

    class Recorder(BaseLogger):
        def __init__(self):
            super().__init__()
            self.seen = []

        def log_metrics(self, metric_values):
            self.seen += [(value.name, value.x_plot, value.value) for value in metric_values]

        def after_update(self, strategy, metric_values, **kwargs):
            self.seen.append(("update", strategy.clock.train_iterations, len(metric_values)))

    class Publish(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            x = strategy.clock.train_iterations
            strategy.evaluator.publish_metric_value(MetricValue(None, "own", float(x), x))

    ends = []
    for kind in (EvaluationPlugin, Evaluator):
        torch.manual_seed(0)
        model, recorder = nn.Sequential(nn.Linear(64, 10)), Recorder()
        evaluator = kind(accuracy_metrics(minibatch=True, epoch=True, experience=True), loggers=[recorder])
        strategy = Training(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
            train_mb_size=100,
            train_epochs=2,
            plugins=[Publish()],
            evaluator=evaluator,
        )
        strategy.train(digits_permuted.train_stream[0])
        strategy.eval(digits_permuted.test_stream[:1])
        ends.append((recorder.seen, dict(evaluator.get_all_metrics())))
    assert ends[0] == ends[1]
    assert len(ends[0][0]) > 20
    assert "before_update" in evaluator.idle_hooks
    busy = {"after_update", "before_training_iteration", "after_training_iteration", "before_eval"}
    assert not busy & set(evaluator.idle_hooks)
    assert len(make_evaluator(Context()).idle_hooks) == 13


def test_a_job_interrupted_inside_a_task_ends_with_the_same_numbers(tmp_path):
    experiment = find_experiment("ewc-fig2b")
    settings = dataclasses.replace(experiment.scales["smoke"], epochs=3)
    whole = experiment.measure(settings, "ewc", 0, Context())
    checkpoint = tmp_path / "job.pt"

    class Interrupted(Exception):
        pass

    for limit in (60, 100, None):
        calls = 0

        def progress(done, total, text, limit=limit):
            nonlocal calls
            calls += 1
            if limit is not None and calls > limit:
                raise Interrupted

        context = Context(checkpoint=checkpoint, resume=checkpoint.exists(), progress=progress)
        if limit is None:
            assert experiment.measure(settings, "ewc", 0, context) == whole
            assert calls < 3 * 3 * 42  # it did go on, not start again
        else:
            with pytest.raises(Interrupted):
                experiment.measure(settings, "ewc", 0, context)


def test_an_arm_with_a_plugin_that_keeps_samples_runs_without_checkpoints(tmp_path, caplog, digits_permuted):
    model, context = nn.Sequential(nn.Linear(64, 10)), Context(checkpoint=tmp_path / "job.pt")
    strategy = Training(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=50,
        plugins=[*default_plugins(context, 3), AGEMPlugin(10, 10)],
        evaluator=make_evaluator(context),
    )
    train_stream(strategy, digits_permuted, context)
    assert len(accuracy_matrix(strategy)) == 3
    assert caplog.text.count("training goes on without checkpoints: AGEMPlugin keeps state") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_matrix_holds_the_accuracy_after_each_experience(digits_permuted):
    model = nn.Sequential(nn.Linear(64, 10))
    expected = []

    class Training_(Training):
        def eval(self, stream, **kwargs):
            expected.append([accuracy(model, experience.dataset) for experience in stream])
            return super().eval(stream, **kwargs)

    strategy = Training_(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=50,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
    )
    train_stream(strategy, digits_permuted, Context())
    matrix = accuracy_matrix(strategy)
    assert [len(row) for row in matrix] == [1, 2, 3]
    for row, true in zip(matrix, expected, strict=True):
        assert row == pytest.approx(true)
