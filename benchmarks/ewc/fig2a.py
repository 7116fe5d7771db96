"""EWC, Fig. 2A: three permutations of MNIST, learnt one after the other by SGD, with an L2 penalty and with EWC.

The paper: 2 hidden layers of 400 ReLU units, no dropout, 20 epochs a task, learning rate 1e-3, one 10-way head. Plain
SGD forgets, a quadratic penalty with the same strength for all weights ("L2") keeps the first task and cannot learn
the next ones, EWC does both.

What we do: the same net and epochs, SGD at 0.05, batch 128, the exact Fisher of all training images, accuracies on the
test set. Strengths were chosen on 5,000 held-out training images, one seed: lambda 30 and 300 (8 epochs) and 60 (20
epochs) for EWC; 0.01 and 0.1 (8 epochs) for L2, of which 0.1 is the one that keeps A as the paper's does.
Deviations: the paper's batch size, optimizer and strengths are not stated and its learning rate cannot give its curve
with a mean loss, so ours are the best of our search; the penalty's step is proximal, which has the same minimum and
does not diverge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.harness.experiment import Context, Experiment, ImageData, Row, Run
from benchmarks.harness.papers import in_paper, paper
from benchmarks.report.table import mean_row, paired_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = 3
NAMES = ("A", "B", "C")


@dataclass(frozen=True)
class Settings:
    """Permuted MNIST, three tasks."""

    data: ImageData = "mnist"
    """Data set: mnist or digits."""
    width: int = 400
    """Units in each of the two hidden layers."""
    epochs: int = 20
    """Epochs on each task."""
    batch_size: int = 128
    """Images in a mini-batch."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer: sgd or adam."""
    lr: float = 0.05
    """Learning rate."""
    momentum: float = 0.0
    """Momentum of sgd."""
    ewc_lambda: float = 60.0
    """Lambda of the arm ewc."""
    l2_lambda: float = 0.1
    """Lambda of the arm l2, with importance 1 for every weight."""
    step: Literal["gradient", "proximal"] = "proximal"
    """How the penalty is applied: gradient or proximal."""
    validation: int = 5000
    """Training images held out."""
    evaluate: Literal["test", "valid"] = "test"
    """Stream to measure on: test, or valid for choosing settings."""


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Accuracy on all three tasks after every epoch."""
    import torch

    from avl_plugins import EWCPlugin
    from benchmarks.data.arrays import permuted
    from benchmarks.training.models import mlp, optimizer
    from benchmarks.training.supervised import (
        Training,
        accuracy_curves,
        default_plugins,
        load_arrays,
        make_evaluator,
        train_stream,
    )

    torch.manual_seed(seed)
    arrays = load_arrays(settings.data, context)
    benchmark = permuted(arrays, TASKS, seed=seed, validation=settings.validation)
    model = mlp((arrays.x_train[0].size, settings.width, settings.width, arrays.n_classes))
    plugins = default_plugins(context, TASKS)
    if arm == "ewc":
        plugins.append(EWCPlugin(ewc_lambda=settings.ewc_lambda, penalty_step=settings.step))
    elif arm == "l2":
        plugins.append(EWCPlugin(ewc_lambda=settings.l2_lambda, importance="uniform", penalty_step=settings.step))
    strategy = Training(
        model=model,
        optimizer=optimizer(settings.optimizer, model, lr=settings.lr, momentum=settings.momentum),
        train_mb_size=settings.batch_size,
        train_epochs=settings.epochs,
        eval_mb_size=1000,
        device=context.device,
        plugins=plugins,
        evaluator=make_evaluator(context),
        eval_every=1,
    )
    train_stream(strategy, benchmark, context, stream=settings.evaluate, each_epoch=True)
    curves = accuracy_curves(strategy, settings.evaluate)
    iterations = curves[0][0]
    per_epoch = (len(iterations) - 1) / (TASKS * settings.epochs)
    return {
        "epochs": [k / per_epoch for k in range(len(iterations))],
        "accuracy": {NAMES[task]: [round(value, 4) for value in values] for task, (_, values) in curves.items()},
    }


def at(run: Run, task: str, end_of: str, epochs_in: int | None = None) -> float:
    """Accuracy on `task` at the end of another, or so many epochs into it."""
    epochs = run.settings["epochs"]
    into = epochs if epochs_in is None else epochs_in
    return run.measurements["accuracy"][task][NAMES.index(end_of) * epochs + into]


def mean_at_end(run: Run) -> float:
    """Mean accuracy on A, B and C at the end of C."""
    return sum(at(run, task, "C") for task in NAMES) / TASKS


def drop_a(run: Run) -> float:
    """What is lost on A from the end of A to the end of C."""
    return at(run, "A", "A") - at(run, "A", "C")


def rows(runs: Sequence[Run]) -> list[Row]:
    """Means, drops, and the accuracies that the paper's curves end with."""
    numbers = paper("ewc")["fig2a"]
    table = [
        mean_row(
            runs,
            arm,
            "mean of A, B, C at the end",
            value=mean_at_end,
            paper=in_paper(numbers, arm, "mean"),
            target=(">=", 0.95) if arm == "ewc" else None,
        )
        for arm in ARMS
    ]
    targets = {"ewc": ("<=", 0.01), "sgd": (">=", 0.05)}
    table += [
        mean_row(runs, arm, "drop on A", value=drop_a, paper=in_paper(numbers, arm, "drop_a"), target=targets.get(arm))
        for arm in ARMS
    ]
    table += [
        mean_row(
            runs,
            arm,
            f"{task} at the end of {end}",
            value=partial(at, task=task, end_of=end),
            paper=in_paper(numbers, arm, f"{task}_{end}".lower()),
        )
        for arm in ARMS
        for task, end in (("A", "A"), ("A", "C"), ("B", "C"), ("C", "C"))
    ]
    table.append(
        paired_row(
            runs,
            "sgd",
            "l2",
            "C at the end of C",
            value=lambda run: at(run, "C", "C"),
            paper=round(numbers["sgd"]["c_c"] - numbers["l2"]["c_c"], 3),
            target=(">=", 0.03),
            note="what L2 is short of on the newest task",
        )
    )
    return table


def figure(runs: Sequence[Run]) -> Figure:
    """The paper's three panels, one a task; the paper's end values as crosses."""
    import numpy as np
    from matplotlib.figure import Figure

    numbers = paper("ewc")["fig2a"]
    fig = Figure(figsize=(7.5, 6), layout="constrained")
    panels = fig.subplots(TASKS, 1, sharex=True)
    for task, panel in zip(NAMES, panels, strict=True):
        for arm, colour in COLOURS.items():
            own = [run for run in runs if run.arm == arm]
            if not own:
                continue
            epochs = own[0].settings["epochs"]
            x = np.array(own[0].measurements["epochs"])
            curves = np.array([run.measurements["accuracy"][task] for run in own])
            start = NAMES.index(task) * epochs
            panel.plot(x[start:], curves.mean(0)[start:], color=colour, label=arm.upper())
            panel.fill_between(x[start:], curves.min(0)[start:], curves.max(0)[start:], color=colour, alpha=0.2, lw=0)
            for k, end in enumerate(NAMES):
                if (value := in_paper(numbers, arm, f"{task}_{end}".lower())) is not None:
                    panel.plot((k + 1) * epochs, value, "x", color=colour, ms=7, mew=2)
        panel.set(ylabel=f"accuracy on {task}", ylim=(0.8, 1.0))
        for k in range(1, TASKS):
            panel.axvline(k * epochs, color="grey", lw=0.5)
    panels[0].plot([], [], "x", color="black", label="paper")
    panels[0].legend(ncols=4, fontsize="small", loc="lower left")
    panels[-1].set(xlabel="epoch")
    return fig


ARMS = ("ewc", "l2", "sgd")
COLOURS = {"ewc": "tab:red", "l2": "tab:green", "sgd": "tab:blue"}

EXPERIMENT = Experiment(
    name="ewc-fig2a",
    title="EWC, Fig. 2A: three permutations of MNIST",
    data="mnist",
    arms=ARMS,
    scales={
        "smoke": Settings(data="digits", width=50, epochs=2, batch_size=32, validation=100),
        "cpu": Settings(),
        "paper": Settings(),
    },
    minutes={"smoke": 0.1, "cpu": 12, "paper": 12},
    measure=measure,
    rows=rows,
    figure=figure,
)
