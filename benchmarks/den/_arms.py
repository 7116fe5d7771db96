"""The arms that the tables of Dynamically Expandable Networks compare, trained on the same benchmark.

- "stl": a network for each task; "mtl": one for all, trained on all tasks together.
- "plain", "l2", "ewc": one network with a head for each task, trained on in turn: as it is, with the distance to the
  weights before the task (Eq. 6), and with EWC. "progressive": Progressive Networks.
- "den", and "den-finetune", what it ends with trained on all tasks together.
- DEN's parts: "l1", plain with the L1 norm; "selective", selective retraining alone; "l2-selective", with the distance,
  too; "constant" and "dynamic", with units added, a fixed number or by group lasso, and no split; "no-stamp".

All are evaluated by AUROC, one class against the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from avl_plugins import (
    DENPlugin,
    DynamicallyExpandableNetwork,
    EWCPlugin,
    ProgressiveNetwork,
    ProgressivePlugin,
    one_vs_rest_loss,
)
from avl_plugins.data.loading import batches_in_memory
from avl_plugins.metrics import auroc_metrics, den_metrics, growth_table, mean_auroc
from benchmarks.harness.experiment import Context
from benchmarks.training.clock import timed
from benchmarks.training.supervised import (
    Training,
    accuracy_matrix,
    default_plugins,
    make_evaluator,
    rounded,
    train_stream,
)

COMPARED = ("stl", "mtl", "plain", "l2", "ewc", "progressive", "den", "den-finetune")
PARTS = ("l1", "selective", "l2-selective", "constant", "dynamic", "no-stamp")
ARMS = (*COMPARED, *PARTS)


class Seconds(SupervisedPlugin):
    """Seconds that each task's training takes, its evaluation left out."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds."""
        return {"seconds": list(self.seconds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them."""
        self.seconds = list(state["seconds"])

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Start."""
        self.started = perf_counter()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Stop."""
        self.seconds.append(perf_counter() - self.started)


def make_plugins(arm: str, settings: Any) -> list[SupervisedPlugin]:
    """Make the method's plugin.

    Raises:
        ValueError: If there is no such arm.
    """
    whole = {"selective": False, "expand": None, "split": False, "l1": 0.0, "retraining_drift": 0.0}
    parts: dict[str, dict[str, Any]] = {
        "stl": whole,
        "mtl": whole,
        "plain": whole,
        "l2": whole | {"retraining_drift": settings.l2_lambda},
        "den": {},
        "den-finetune": {},
        "no-stamp": {},
        "l1": whole | {"l1": settings.l1_alone},
        "selective": {"expand": None, "split": False, "l1": settings.selective_l1, "retraining_drift": 0.0},
        "l2-selective": {"expand": None, "split": False, "retraining_drift": settings.l2_lambda},
        "constant": {"expand": "constant", "split": False, "expand_by": settings.constant_by},
        "dynamic": {"split": False},
    }
    if arm == "ewc":
        return [EWCPlugin(ewc_lambda=settings.ewc_lambda, likelihood="bernoulli", max_samples=settings.fisher_samples)]
    if arm == "progressive":
        return [ProgressivePlugin()]
    if arm not in parts:
        raise ValueError(f"arm {arm!r}: expected one of {', '.join(ARMS)}")
    own = {
        name: getattr(settings, name)
        for name in (
            "l1",
            "l2",
            "retraining_drift",
            "group_lasso",
            "drift_lambda",
            "loss_threshold",
            "drift_threshold",
            "expand_by",
            "max_splits",
            "phase_epochs",
        )
    }
    return [DENPlugin(penalty_step=settings.drift_step, **(own | parts[arm]))]


def train_arm(
    arm: str,
    benchmark: Any,
    settings: Any,
    context: Context,
    *,
    body: Callable[[], nn.Sequential],
    head: str,
    features: int | None = None,
) -> dict[str, Any]:
    """Train an arm on all tasks and return what the tables need.

    Args:
        arm: One of `ARMS`.
        benchmark: With task labels.
        settings: Has epochs, batch_size, lr, weight_decay, evaluate, and those of the methods.
        context: Of the job.
        body: Makes the layers before the head, freshly initialised.
        head: Of `DynamicallyExpandableNetwork`.
        features: Likewise.

    Returns:
        "matrix": row k is the AUROC on each task so far after task k (of "mtl" and "den-finetune" one row, at the end);
        "capacity": the number of weights relative to the base network; "seconds" of training by task; "growth", what
        DEN did for each task.
    """
    stream = benchmark.streams[settings.evaluate]

    def network() -> DynamicallyExpandableNetwork:
        return DynamicallyExpandableNetwork(body(), head=head, features=features, stamps=arm != "no-stamp")  # type: ignore[arg-type]

    base = network()
    for experience in benchmark.train_stream:
        base.add_task(experience.task_label, experience.classes_in_this_experience)
    base_weights = base.dense_weights(base.first_units)
    if arm == "stl":
        found = [train_alone(network(), experience, settings, context) for experience in benchmark.train_stream]
        own = [auroc(model, experience) for (model, _), experience in zip(found, stream, strict=True)]
        return {
            "matrix": [rounded(own[: k + 1]) for k in range(len(own))],
            "capacity": sum(count_weights(model) for model, _ in found) / base_weights,
            "seconds": [seconds for _, seconds in found],
        }
    if arm == "mtl":
        seconds = timed(lambda: train_jointly(base.to(context.device), benchmark.train_stream, settings, context))
        return {"matrix": [rounded([auroc(base, own) for own in stream])], "capacity": 1.0, "seconds": [seconds]}
    model: Any = ProgressiveNetwork(body(), features=features) if arm == "progressive" else network()
    plugins = make_plugins(arm, settings)
    strategy, clock = make_strategy(model, plugins, settings, context, len(stream))
    train_stream(strategy, benchmark, context, stream=settings.evaluate)
    matrix = accuracy_matrix(strategy, settings.evaluate, "AUROC_Exp")
    seconds_by_task = list(clock.seconds)
    if arm == "den-finetune":
        seconds_by_task.append(timed(lambda: train_jointly(model, benchmark.train_stream, settings, context)))
        matrix = [[auroc(model, own) for own in stream]]
    return {
        "matrix": [rounded(row) for row in matrix],
        "capacity": model.capacity() if hasattr(model, "capacity") else count_weights(model) / base_weights,
        "seconds": seconds_by_task,
        "growth": growth_table(plugins[0].history) if isinstance(plugins[0], DENPlugin) else [],
    }


def make_strategy(
    model: nn.Module, plugins: Sequence[SupervisedPlugin], settings: Any, context: Context, experiences: int
) -> tuple[Any, Seconds]:
    """Return the strategy of an arm that is trained on one task after another, and what takes its time."""
    clock = Seconds()
    grows = isinstance(plugins[0], DENPlugin)
    # Avalanche's accuracy takes one logit for class 0, whatever it is.
    metrics = [*auroc_metrics(accuracy=True), *(den_metrics() if grows else [])]
    strategy = Training(
        model=model,
        optimizer=adam(model, settings),
        criterion=one_vs_rest_loss,
        train_mb_size=settings.batch_size,
        train_epochs=settings.epochs,
        eval_mb_size=5000,
        device=context.device,
        plugins=[*default_plugins(context, experiences), *plugins, clock],
        evaluator=make_evaluator(context, *metrics, accuracy=False),
    )
    return strategy, clock


def adam(model: nn.Module, settings: Any) -> torch.optim.Optimizer:
    """The optimizer of all arms."""
    return torch.optim.Adam(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def train_alone(network: Any, experience: Any, settings: Any, context: Context) -> tuple[nn.Module, float]:
    """Train a network on one task; returns it, and the seconds."""
    network.add_task(experience.task_label, experience.classes_in_this_experience)
    network.to(context.device)
    return network, timed(lambda: train_jointly(network, [experience], settings, context))


def train_jointly(network: Any, stream: Sequence[Any], settings: Any, context: Context) -> None:
    """Train on all tasks together: each step has a batch of every one."""
    optimizer = adam(network.train().requires_grad_(True), settings)
    data = [next(batches_in_memory(own.dataset, len(own.dataset)))[:2] for own in stream]
    for epoch in range(settings.epochs):
        orders = [torch.randperm(len(y)).split(settings.batch_size) for _, y in data]
        for step in range(max(len(order) for order in orders)):
            optimizer.zero_grad()
            losses = []
            for (x, y), order, own in zip(data, orders, stream, strict=True):
                rows = order[step % len(order)]
                logits = network(x[rows].to(context.device), own.task_label)
                losses.append(one_vs_rest_loss(logits, y[rows].to(context.device)))
            (sum(losses) / len(losses)).backward()  # type: ignore[union-attr]
            optimizer.step()
        context.progress(epoch + 1, settings.epochs, "all tasks")


@torch.no_grad()
def auroc(network: Any, experience: Any) -> float:
    """AUROC on a task."""
    network.eval()
    device = next(network.parameters()).device
    batches = batches_in_memory(experience.dataset, 5000)
    parts = [(network(x.to(device), experience.task_label).cpu(), y) for x, y, *_ in batches]
    return mean_auroc(torch.cat([logits for logits, _ in parts]), torch.cat([y for _, y in parts]))


def count_weights(model: nn.Module) -> int:
    """Number of weights, without biases."""
    return sum(p.numel() for p in model.parameters() if p.dim() > 1)
