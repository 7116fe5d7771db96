"""Progressive networks on permuted MNIST with a head a task: accuracy, forgetting and size beside the alternatives.

The paper has no supervised experiment; it claims that nothing is forgotten and that old features are reused. Here ten
permutations of MNIST are learnt in turn by progressive columns of 2 x 200 units (adapter mlp, and linear),
by the same columns without connections, by one net that is trained on, by that net with EWC, and by Avalanche's own
progressive network of the same width. All have a head a task and are evaluated on the whole test stream
after every task, at which Avalanche's adds a column for every task it has not seen and freezes the one it
is to train.

What we do: Adam, batch 128, started afresh on each task. Lambda of EWC is chosen on 5,000 held-out training images
of a seed that is not used afterwards; epochs, learning rate and width were not searched.
Deviations: V of the adapter is n / 8 wide, where the paper has n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.harness.experiment import Context, Experiment, ImageData, Row, Run
from benchmarks.harness.search import search_jobs, split_name
from benchmarks.progressive._rows import best_lambda, method_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("progressive", "linear", "independent", "finetune", "ewc", "avalanche-pnn")


@dataclass(frozen=True)
class Settings:
    """Permuted MNIST, one head a task."""

    data: ImageData = "mnist"
    """Data set: mnist or digits."""
    tasks: int = 10
    """Number of permutations."""
    width: int = 200
    """Units in each of the two hidden layers of a column."""
    epochs: int = 5
    """Epochs on each task."""
    batch_size: int = 128
    """Images in a mini-batch."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimizer: sgd or adam."""
    lr: float = 1e-3
    """Learning rate."""
    reduction: float = 8
    """The adapter's projection is width / reduction wide."""
    alpha_init: float = 0.1
    """First value of the adapter's scalars."""
    cache_frozen: bool = False
    """Compute frozen features once a task."""
    lambdas: tuple[float, ...] = (10.0, 100.0, 1000.0)
    """Lambdas searched for EWC."""
    validation: int = 5000
    """Training images held out."""
    evaluate: Literal["test", "valid"] = "test"
    """Stream to measure on: test, or valid for choosing settings."""


def search(settings: Settings) -> list[tuple[str, int]]:
    """EWC with every lambda on the validation seed."""
    return search_jobs("ewc", "lambda", settings.lambdas)


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Accuracies, forgetting and parameters of one method."""
    from dataclasses import replace

    import torch
    from torch import nn

    from benchmarks.data.arrays import permuted
    from benchmarks.progressive._arms import train_arm
    from benchmarks.training.supervised import load_arrays

    torch.manual_seed(seed)
    arm, value = split_name(arm)
    arrays = load_arrays(settings.data, context)
    benchmark = permuted(arrays, settings.tasks, seed=seed, validation=settings.validation, task_labels=True)
    inputs, width = arrays.x_train[0].size, settings.width
    return train_arm(
        arm,
        nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
        benchmark,
        settings if value is None else replace(settings, evaluate="valid"),
        context,
        features=width,
        classes=arrays.n_classes,
        ewc_lambda=(best_lambda(context.search) if value is None else value) if arm == "ewc" else None,
    )


def rows(runs: Sequence[Run]) -> list[Row]:
    """Accuracy, forgetting and size of every arm, and the comparisons."""
    return method_rows(runs, ARMS)


def figure(runs: Sequence[Run]) -> Figure:
    """Accuracy on each task at the end, and accuracy against size."""
    from benchmarks.report.plots import tasks_and_size

    return tasks_and_size(runs, ARMS)


EXPERIMENT = Experiment(
    name="progressive-permuted",
    title="Progressive Networks on permuted MNIST, beside the alternatives",
    data="mnist",
    arms=ARMS,
    scales={
        "smoke": Settings(data="digits", tasks=3, width=20, epochs=2, batch_size=32, lambdas=(100.0,), validation=100),
        "cpu": Settings(),
        "paper": Settings(width=1000, epochs=20, lambdas=(10.0, 30.0, 100.0, 300.0, 1000.0)),
    },
    minutes={"smoke": 0.2, "cpu": 15, "paper": 300},
    measure=measure,
    rows=rows,
    figure=figure,
    search=search,
)
