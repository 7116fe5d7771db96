"""Methods that have one head a task, trained on the same benchmark: what the Progressive Networks tables compare.

The arms: "progressive" (adapter mlp) and "linear" (adapter linear); "independent", the same columns without
connections; "finetune", one net with a head a task; "ewc", that net with EWC; "avalanche-pnn", Avalanche's own
progressive network, fully connected with the same number and width of layers.

All are evaluated on the whole test stream after every experience, as Avalanche's users do it.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from avalanche.models import PNN, as_multitask
from torch import nn

from avl_plugins import EWCPlugin, ProgressiveNetwork, ProgressivePlugin
from avl_plugins.metrics import count_parameters, forgetting
from benchmarks.harness.experiment import Context
from benchmarks.training.models import optimizer
from benchmarks.training.supervised import Training, accuracy_matrix, default_plugins, make_evaluator, train_stream

ADAPTERS = {"progressive": "mlp", "linear": "linear", "independent": None}
ARMS = (*ADAPTERS, "finetune", "ewc", "avalanche-pnn")


class TrunkAndHead(nn.Module):
    """A column and a linear classifier, which `as_multitask` makes one a task."""

    def __init__(self, trunk: nn.Sequential, features: int, classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.classifier = nn.Linear(features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.classifier(self.trunk(x))


def make_model(arm: str, trunk: nn.Sequential, *, features: int, classes: int, settings: Any) -> nn.Module:
    """Build the arm's network around the column `trunk`.

    Raises:
        ValueError: If there is no such arm, or the trunk is convolutional and the arm is Avalanche's.
    """
    if arm in ADAPTERS:
        return ProgressiveNetwork(
            trunk,
            adapter=ADAPTERS[arm],  # type: ignore[arg-type]
            reduction=settings.reduction,
            alpha_init=settings.alpha_init,
        )
    if arm in ("finetune", "ewc"):
        return as_multitask(TrunkAndHead(trunk, features, classes), "classifier")
    layers = [layer for layer in trunk if isinstance(layer, nn.Linear)]
    if arm != "avalanche-pnn" or any(isinstance(layer, nn.Conv2d) for layer in trunk):
        raise ValueError(f"arm {arm!r}: expected one of {', '.join(ARMS)}; Avalanche's PNN has linear layers only")
    return PNN(len(layers), layers[0].in_features, layers[0].out_features, adapter="mlp")


def train_arm(
    arm: str,
    trunk: nn.Sequential,
    benchmark: Any,
    settings: Any,
    context: Context,
    *,
    features: int,
    classes: int,
    ewc_lambda: float | None,
) -> dict[str, Any]:
    """Train an arm on all tasks and return what the tables need.

    Args:
        arm: one of `ARMS`.
        trunk: layers before the head, freshly initialised.
        benchmark: one task label an experience.
        settings: has reduction, alpha_init, cache_frozen, epochs, batch_size, optimizer, lr, evaluate.
        context: of the job.
        features: what the head reads.
        classes: of each task.
        ewc_lambda: lambda of the arm ewc.

    Returns:
        "final": accuracy on each task at the end; "after": on each task after its own training; "forgetting": mean over
        tasks of max over history minus last (Chaudhry et al. 2018); "parameters"; "ewc_lambda", of the arm ewc;
        "train_seconds", the evaluations after every task included, None if it was resumed.
    """
    tasks = len(benchmark.train_stream)
    model = make_model(arm, trunk, features=features, classes=classes, settings=settings)
    if arm == "avalanche-pnn":
        context = replace(context, checkpoint=None, resume=False)  # it has no state_dict that a file could refill
    plugins = default_plugins(context, tasks)
    if arm in ADAPTERS:
        plugins.append(ProgressivePlugin(cache_bytes=2**32 if settings.cache_frozen else 0))
    if arm == "ewc":
        if ewc_lambda is None:
            raise ValueError("ewc_lambda: the arm ewc needs one")
        plugins.append(EWCPlugin(ewc_lambda=ewc_lambda, penalty_step="proximal"))
    strategy = Training(
        model=model,
        optimizer=optimizer(settings.optimizer, model, lr=settings.lr),
        train_mb_size=settings.batch_size,
        train_epochs=settings.epochs,
        eval_mb_size=1000,
        device=context.device,
        plugins=plugins,
        evaluator=make_evaluator(context),
    )
    started = perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"task \d+ has not been trained on yet")
        train_stream(
            strategy, benchmark, context, stream=settings.evaluate, whole=True, reset_optimizer_state=True
        )  # fmt: skip
    matrix = accuracy_matrix(strategy, settings.evaluate)
    forgotten = forgetting([dict(enumerate(row)) for row in matrix])
    return {
        "final": [round(value, 5) for value in matrix[-1]],
        "after": [round(matrix[k][k], 5) for k in range(tasks)],
        "forgetting": sum(forgotten.values()) / len(forgotten),
        "parameters": count_parameters(model),
        "ewc_lambda": ewc_lambda if arm == "ewc" else None,
        "train_seconds": None if context.resume else round(perf_counter() - started, 1),
    }
