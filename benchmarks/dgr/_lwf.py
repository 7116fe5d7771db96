"""Learning without forgetting with a head a task, on the new task's images or on generated ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from avalanche.core import SupervisedPlugin
from avalanche.models import MultiHeadClassifier, as_multitask
from avalanche.training.plugins import LwFPlugin

from avl_plugins.metrics import replay_metrics
from benchmarks.data.arrays import Arrays
from benchmarks.dgr._arms import make_plugin, replayed_grids
from benchmarks.harness.experiment import Context
from benchmarks.progressive._arms import TrunkAndHead
from benchmarks.training.models import image_trunk, optimizer
from benchmarks.training.supervised import (
    Training,
    accuracy_curves,
    default_plugins,
    make_evaluator,
    rounded,
    train_stream,
)

TEMPERATURE = 2.0
REPLAY = {"lwf-gr": "gr", "lwf-vae": "vae"}


class HeadWarmUp(SupervisedPlugin):
    """Trains only the current task's head in the first iterations of each task but the first (Li and Hoiem 2016).

    Args:
        iterations: how many.
    """

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep: the clock knows where training is."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Freeze and thaw."""
        clock = strategy.clock
        warming = clock.train_exp_counter > 0 and clock.train_exp_iterations < self.iterations
        strategy.model.requires_grad_(not warming)
        if warming:
            (label,) = strategy.experience.task_labels
            for module in strategy.model.modules():
                if isinstance(module, MultiHeadClassifier):
                    module.classifiers[str(label)].requires_grad_(True)


def train_lwf(arm: str, first: Arrays, benchmark: Any, settings: Any, context: Context) -> dict[str, Any]:
    """Train an arm on two tasks and return what the table needs.

    Args:
        arm: "lwf", "lwf-gr", "lwf-vae" or "none".
        first: images of the first task.
        benchmark: two tasks with task labels.
        settings: has solver, width, iterations, warm_up, alpha, batch_size, lr, evaluate and the generators' settings.
        context: of the job.

    Returns:
        "accuracy" of each task before training and after every epoch; "grids", PNG images of replayed inputs, base64.
    """
    trunk = image_trunk(settings.solver, first, settings.width)
    model = as_multitask(TrunkAndHead(trunk, settings.width, first.n_classes), "classifier")
    own: list[Any] = [HeadWarmUp(settings.warm_up)]
    metrics: list[Any] = []
    if arm in REPLAY:
        shape = benchmark.train_stream[0].dataset[0][0].shape
        options = {"answers": "soft", "temperature": TEMPERATURE}
        own.append(make_plugin(REPLAY[arm], shape, settings, fully_connected=False, tasks=2, **options))
        metrics = replay_metrics()
    elif arm == "lwf":
        own.append(LwFPlugin(alpha=settings.alpha, temperature=TEMPERATURE))
        context = replace(context, checkpoint=None, resume=False)  # it has no state_dict
    batches = -(-len(benchmark.train_stream[0].dataset) // settings.batch_size)
    strategy = Training(
        model=model,
        optimizer=optimizer(settings.optimizer, model, lr=settings.lr),
        train_mb_size=settings.batch_size,
        train_epochs=-(-settings.iterations // batches),
        eval_mb_size=1000,
        device=context.device,
        eval_every=1,
        plugins=[*default_plugins(context, 2), *own],
        evaluator=make_evaluator(context, *metrics),
    )
    train_stream(strategy, benchmark, context, stream=settings.evaluate, each_epoch=True)
    curves = accuracy_curves(strategy, settings.evaluate)
    return {"accuracy": [rounded(values) for _, values in curves.values()], "grids": replayed_grids(strategy)}
