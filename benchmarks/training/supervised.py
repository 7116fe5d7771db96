"""What the supervised experiments share: an evaluator, a progress bar, resuming, and accuracies as a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metric_definitions import GenericPluginMetric, PluginMetric
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import BaseLogger, TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from avl_plugins import CheckpointEvery, InMemoryLoaderPlugin, Resumable, load_checkpoint, save_checkpoint
from avl_plugins.data.loading import batches_in_memory
from avl_plugins.metrics import capacity_metrics, chaudhry_forgetting_metrics
from benchmarks.data.arrays import Arrays, cifar100, digits, mnist
from benchmarks.data.domains import svhn
from benchmarks.harness.experiment import Context

SECONDS_BETWEEN_SAVES = 20.0
"""Seconds of work that a killed job may lose, and do again, where its epochs are shorter."""


def load_arrays(name: str, context: Context) -> Arrays:
    """Images of the data set `name`, "mnist", "svhn", "cifar100" or "digits"; a ValueError names any other."""
    if name == "mnist":
        return mnist(context.data_root)
    if name == "svhn":
        return svhn(context.data_root)
    if name == "cifar100":
        return cifar100(context.data_root)
    if name == "digits":
        return digits()
    raise ValueError(f"data must be 'mnist', 'svhn', 'cifar100' or 'digits', got {name!r}")


class Evaluator(EvaluationPlugin):
    """Avalanche's, but hooks in which no metric and no logger has anything to do cost nothing.

    Avalanche passes each of the fourteen hooks of a training step on to every metric, which takes some per cent of it.

    Args:
        *metrics: as for `EvaluationPlugin`.
        **options: as for `EvaluationPlugin`.
    """

    __constants__ = ("idle_hooks",)

    def __init__(self, *metrics: Any, **options: Any) -> None:
        super().__init__(*metrics, **options)
        hooks = [name for name in dir(PluginMetric) if name.startswith(("before_", "after_"))]
        listeners = (*self.metrics, *self.loggers)
        self.idle_hooks = tuple(hook for hook in hooks if all(_is_idle(own, hook) for own in listeners))

    def _update_metrics_and_loggers(self, strategy: Any, callback: str) -> Any:
        if callback not in self.idle_hooks or self._metric_values:
            return super()._update_metrics_and_loggers(strategy, callback)
        return None


def _is_idle(listener: Any, hook: str) -> bool:
    """Return whether a metric or logger does nothing in a hook."""
    own = getattr(type(listener), hook, None)
    if own is GenericPluginMetric.before_training_iteration:
        return listener._reset_at != "iteration"
    return own is None or any(own is getattr(base, hook, None) for base in (PluginMetric, BaseLogger))


def make_evaluator(context: Context, *more_metrics: Any, accuracy: bool = True) -> EvaluationPlugin:
    """Accuracy with its forgetting, loss and capacity, logged to the job's TensorBoard folder."""
    loggers = [TensorboardLogger(tb_log_dir=str(context.logdir))] if context.logdir else []
    accuracies: list[Any] = []
    if accuracy:
        accuracies.append(accuracy_metrics(epoch=True, experience=True, stream=True))
        accuracies.append(chaudhry_forgetting_metrics(experience=True, stream=True))
    return Evaluator(
        *accuracies,
        loss_metrics(epoch=True, experience=True),
        capacity_metrics(),
        *more_metrics,
        loggers=loggers,
    )


class Training(Resumable, SupervisedTemplate):
    """Avalanche's supervised template, resumable inside an experience; a method's plugin makes it that method."""


class ProgressPlugin(SupervisedPlugin):
    """Moves the job's progress bar with every training iteration.

    Args:
        context: of the job.
        experiences: how many experiences the job trains on.
    """

    def __init__(self, context: Context, experiences: int):
        super().__init__()
        self.context, self.experiences = context, experiences

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep: the clock knows where training is."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Count epochs in parts of a thousand."""
        clock, epochs = strategy.clock, strategy.train_epochs
        part = clock.train_epoch_iterations / max(1, len(strategy.dataloader))
        done = clock.train_exp_counter * epochs + min(epochs, clock.train_exp_epochs + part)
        text = f"experience {clock.train_exp_counter + 1}, epoch {clock.train_exp_epochs + 1}"
        self.context.progress(round(1000 * done), 1000 * epochs * self.experiences, text)


class EarlyStoppingOnAllTasks(SupervisedPlugin):
    """Early stopping as in Kirkpatrick et al. 2017, appendix 4.1.

    After each epoch the error on the validation sets of all tasks so far is measured; when it has not improved for
    more than `patience` checks, training on the task stops. At the end of a task the model goes back to its best
    snapshot. Put it before `EWCPlugin`, which has to see that model.

    Args:
        streams: the validation stream; its first k experiences are those of the first k tasks.
        patience: checks without improvement that a task may take; one more stops it.
    """

    def __init__(self, streams: Sequence[Any], *, patience: int):
        super().__init__()
        self.stream, self.patience = streams, patience
        self.best_error, self.bad_checks = float("inf"), 0
        self.best: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """The best snapshot and how long ago it was."""
        return {"best_error": self.best_error, "bad_checks": self.bad_checks, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.best_error, self.bad_checks, self.best = state["best_error"], state["bad_checks"], state["best"]

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Forget the last task's snapshot; where training goes on inside the task, its state is restored after this."""
        self.best_error, self.bad_checks, self.best = float("inf"), 0, {}

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Measure, remember the best, stop when it does not get better."""
        seen = self.stream[: strategy.experience.current_experience + 1]
        error = 1 - sum(accuracy(strategy.model, experience.dataset) for experience in seen) / len(seen)
        if error < self.best_error:
            self.best_error, self.bad_checks = error, 0
            self.best = {n: v.detach().clone() for n, v in strategy.model.state_dict().items()}
        else:
            self.bad_checks += 1
        last = strategy.clock.train_exp_epochs + 1 >= strategy.train_epochs
        if self.bad_checks > self.patience and not last:  # stopping a last epoch would stop the next task, too
            strategy.stop_training()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Go back to the best snapshot."""
        strategy.model.load_state_dict(self.best)


@torch.no_grad()
def accuracy(model: nn.Module, dataset: AvalancheDataset, batch_size: int = 1000) -> float:
    """Fraction of the data set that a single-head model classifies right, in eval mode; modes are restored."""
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    right = sum(
        int((model(x.to(device)).argmax(1) == y.to(device)).sum()) for x, y, _ in batches_in_memory(dataset, batch_size)
    )
    model.train(training)
    return right / len(dataset)


def train_stream(
    strategy: Any,
    benchmark: Any,
    context: Context,
    *,
    stream: str = "test",
    each_epoch: bool = False,
    whole: bool = False,
    **options: Any,
) -> None:
    """Train on each experience in turn, then evaluate on those so far, saving in between.

    An arm with a plugin whose state no checkpoint can hold, such as Avalanche's AGEM, runs without checkpoints.

    Args:
        strategy: freshly built; filled from `context.checkpoint` when the job is resumed.
        benchmark: with the streams "train" and `stream`.
        context: of the job.
        stream: what to evaluate on, "test" or "valid".
        each_epoch: evaluate on the whole stream after every epoch instead (the strategy needs `eval_every=1`).
        whole: evaluate on the whole stream, tasks not trained on yet included.
        **options: of `strategy.train`, for example `reset_optimizer_state=True`.
    """
    evaluated = benchmark.streams[stream]
    start = 0
    if context.resume and context.checkpoint is not None:
        start = load_checkpoint(strategy, context.checkpoint)
    for k in range(start, len(benchmark.train_stream)):
        if each_epoch:
            strategy.train(benchmark.train_stream[k], eval_streams=[evaluated], **options)
        else:
            strategy.train(benchmark.train_stream[k], **options)
            strategy.eval(evaluated if whole else evaluated[: k + 1])
        if context.checkpoint is not None:
            save_checkpoint(strategy, context.checkpoint, on_unsaveable="warn")


def accuracy_curves(
    strategy: Any, stream: str = "test", metric: str = "Top1_Acc_Exp"
) -> dict[int, tuple[list[int], list[float]]]:
    """Accuracy, or another metric, on each experience of a stream: the iterations it was measured at, and values."""
    curves: dict[int, tuple[list[int], list[float]]] = {}
    for name, (iterations, values) in strategy.evaluator.get_all_metrics().items():
        if name.startswith(f"{metric}/eval_phase/{stream}_stream/"):
            last = dict(zip(iterations, values, strict=True))  # measured twice between two tasks
            curves[int(name.rpartition("/Exp")[2])] = (list(last), list(last.values()))
    return dict(sorted(curves.items()))


def accuracy_matrix(strategy: Any, stream: str = "test", metric: str = "Top1_Acc_Exp") -> list[list[float]]:
    """Row k: accuracy, or another metric, on each experience so far after training on experience k.

    The strategy was evaluated by `train_stream`, on the experiences so far or on the whole stream.
    """
    curves = accuracy_curves(strategy, stream, metric)
    n = len(curves)
    return [[curves[task][1][k - n] for task in range(k + 1)] for k in range(n)]


def rounded(values: Sequence[float]) -> list[float]:
    """Five decimals, which say all about 10,000 images."""
    return [round(value, 5) for value in values]


def default_plugins(context: Context, experiences: int, *, resumable: bool = True) -> list[SupervisedPlugin]:
    """The plugins every job on data has: batches from memory, a progress bar and, if wanted, checkpoints."""
    return [InMemoryLoaderPlugin(), *job_plugins(context, experiences, resumable=resumable)]


def job_plugins(context: Context, experiences: int, *, resumable: bool = True) -> list[SupervisedPlugin]:
    """The plugins every job has: a progress bar and, if wanted, a checkpoint at the end of an epoch."""
    plugins: list[SupervisedPlugin] = [ProgressPlugin(context, experiences)]
    if resumable and context.checkpoint is not None:
        every = CheckpointEvery(context.checkpoint, seconds=SECONDS_BETWEEN_SAVES, on_unsaveable="warn")
        plugins.append(every)
    return plugins
