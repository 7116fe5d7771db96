"""Progressive networks on Split CIFAR-100, ten tasks of ten classes: accuracy, forgetting and size.

The paper has no supervised experiment. Here convolutional columns (three 3 x 3 convolutions with pooling, one
fully connected layer, adapters with 1 x 1 convolutions) learn ten tasks of ten classes in turn, beside the same columns
without connections, one net that is trained on, and that net with EWC. All have a head a task and are evaluated on
the whole test stream after every task. Avalanche's own progressive network has no convolutions.

What we do: Adam, batch 50, started afresh on each task, about 450 images a class without augmentation, so that
transfer from earlier tasks can show. The classes come in a random order, another for each seed. Lambda of EWC is chosen
on 5,000 held-out training images of a seed that is not used afterwards. On these, alpha 1 was better than 0.1 in
a trial of three tasks, which is not recorded here; the rest was not searched.
Deviations: V of the adapter is min(n, 8) wide for these few feature maps, where the paper has n.
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

ARMS = ("progressive", "linear", "independent", "finetune", "ewc")


@dataclass(frozen=True)
class Settings:
    """Split CIFAR-100, one head a task."""

    data: ImageData = "cifar100"
    """Data set: cifar100 or digits."""
    tasks: int = 10
    """Number of tasks the classes are split into."""
    maps: tuple[int, ...] = (16, 32, 32)
    """Feature maps of the convolutions, each of which is followed by pooling."""
    width: int = 64
    """Units in the fully connected layer."""
    dropout: float = 0.5
    """Dropout before the head."""
    epochs: int = 10
    """Epochs on each task."""
    batch_size: int = 50
    """Images in a mini-batch."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimizer: sgd or adam."""
    lr: float = 1e-3
    """Learning rate."""
    reduction: float = 8
    """The adapter's projection is n / reduction wide, and not below 8."""
    alpha_init: float = 1.0
    """First value of the adapter's scalars."""
    cache_frozen: bool = True
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

    from benchmarks.data.arrays import split
    from benchmarks.progressive._arms import train_arm
    from benchmarks.training.models import conv_trunk
    from benchmarks.training.supervised import load_arrays

    torch.manual_seed(seed)
    arm, value = split_name(arm)
    arrays = load_arrays(settings.data, context)
    benchmark = split(
        arrays, settings.tasks, seed=seed, shuffle_classes=True, validation=settings.validation, flat=False
    )
    side, channels = arrays.x_train.shape[1], (arrays.x_train.shape[3] if arrays.x_train.ndim == 4 else 1)
    return train_arm(
        arm,
        conv_trunk(channels, side, settings.maps, settings.width, dropout=settings.dropout),
        benchmark,
        settings if value is None else replace(settings, evaluate="valid"),
        context,
        features=settings.width,
        classes=arrays.n_classes // settings.tasks,
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
    name="progressive-split-cifar100",
    title="Progressive Networks on Split CIFAR-100, beside the alternatives",
    data="cifar100",
    arms=ARMS,
    scales={
        "smoke": Settings(
            data="digits", tasks=2, maps=(8, 8), width=16, epochs=1, batch_size=32, lambdas=(100.0,), validation=100
        ),
        "cpu": Settings(),
        "paper": Settings(maps=(32, 64, 64), width=256, epochs=30, dropout=0.5, lambdas=(1.0, 10.0, 100.0, 1000.0)),
    },
    minutes={"smoke": 0.2, "cpu": 30, "paper": 600},
    measure=measure,
    rows=rows,
    figure=figure,
    search=search,
)
