"""Dynamically Expandable Networks, Fig. 3: CIFAR-100 in ten tasks of ten classes, one against the rest.

The paper: a modified AlexNet of five 5 x 5 convolutions with 64, 128, 256, 256 and 128 maps and fully connected layers
of 384 and 192 units, a head with ten one-vs-rest outputs a task, AUROC. Pooling and dropout are not in the paper.

What we do: the same, with 2 x 2 max pooling after the first three convolutions. The classes come in a random order,
another for each seed. Lambdas of "l2" and EWC are chosen on held-out images of a seed that is not used afterwards;
DEN's settings are those of den-mnist-variation but for k and the most splits, by layer: on held-out images of that seed
k of 3, 4, 4, 8 and 6 gave an AUROC of .877 at 3.46 times the base net, and 1, 1, 1, 4 and 2 one of .849 at 1.67 times;
no other was tried. Nothing was split in either.
Deviations: at cpu scale a smaller net: 3 x 3 convolutions with 16, 32 and 32 maps, and layers of 96 and 48 units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.den._rows import against, auroc_rows, capacity_rows, chosen_note, growth_rows
from benchmarks.den._settings import DENSettings, lambda_jobs, search_of, with_lambda
from benchmarks.harness.experiment import Context, Experiment, ImageData, Row, Run
from benchmarks.harness.papers import paper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("stl", "mtl", "plain", "l2", "ewc", "progressive", "den", "den-finetune")


@dataclass(frozen=True)
class Settings(DENSettings):
    """Split CIFAR-100, a head with one output a class."""

    data: ImageData = "cifar100"
    """Data set: cifar100 or digits."""
    tasks: int = 10
    """Number of tasks the classes are split into."""
    maps: tuple[int, ...] = (16, 32, 32)
    """Maps of the convolutions."""
    kernel: int = 3
    """Side of their filters."""
    widths: tuple[int, ...] = (96, 48)
    """Units in the fully connected layers."""
    pools: int = 3
    """Convolutions, from the first on, that pooling follows."""
    epochs: int = 12
    """Epochs on each task; of first training, and of each phase of DEN."""
    batch_size: int = 128
    """Images in a mini-batch."""
    validation: int = 5000
    """Training images held out."""
    l2_lambdas: tuple[float, ...] = (0.001, 0.01, 0.1, 1, 10, 100)
    """Weights that are searched."""
    expand_by: int | tuple[int, ...] = (1, 1, 1, 4, 2)
    """k, units added to a layer and task, before group lasso takes some away; or a number for each layer."""
    max_splits: int | tuple[int, ...] | None = (1, 1, 1, 2, 1)
    """Most units that are split in a layer, or a number for each layer; None for no bound."""


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """AUROC on all tasks so far after each, capacity, seconds and growth."""
    import torch
    from torch import nn

    from benchmarks.data.arrays import split
    from benchmarks.den._arms import train_arm
    from benchmarks.training.models import conv_body
    from benchmarks.training.supervised import load_arrays

    torch.manual_seed(seed)
    arm, settings = with_lambda(settings, arm, context.search)
    arrays = load_arrays(settings.data, context)
    benchmark = split(
        arrays, settings.tasks, seed=seed, shuffle_classes=True, validation=settings.validation, flat=False
    )
    shape = tuple(benchmark.train_stream[0].dataset[0][0].shape)

    def body() -> nn.Sequential:
        return conv_body(shape, settings.maps, settings.kernel, settings.pools, settings.widths)

    return train_arm(arm, benchmark, settings, context, body=body, head="one-vs-rest")


def rows(runs: Sequence[Run]) -> list[Row]:
    """AUROC and capacity beside the paper's, and comparisons with their targets."""
    numbers = paper("den")["cifar100"]
    settings = runs[0].settings
    notes = {arm: chosen_note(runs, arm, "lambda") for arm in ("l2", "ewc")}
    table = auroc_rows(runs, ARMS, numbers, notes)
    targets = {"stl": -0.015, "ewc": 0.0, "l2": 0.0, "plain": 0.0, "progressive": None}
    table += against(runs, "den", targets, numbers)
    table += capacity_rows(runs, ("den", "stl", "progressive"), numbers, ("<=", 2.0))
    return table + growth_rows(runs, "den", len(settings["maps"]) + len(settings["widths"]))


def figure(runs: Sequence[Run]) -> Figure:
    """AUROC over tasks, against capacity, of the first and fourth task, and DEN's units."""
    from benchmarks.den._figure import den_figure

    return den_figure(runs, ARMS, paper("den")["cifar100"], tasks=(1, 4))


EXPERIMENT = Experiment(
    name="den-cifar100",
    title="DEN, Fig. 3: CIFAR-100 in ten tasks",
    data="cifar100",
    arms=ARMS,
    scales={
        "smoke": Settings(
            data="digits",
            tasks=2,
            maps=(4, 4),
            widths=(12, 8),
            pools=2,
            epochs=1,
            batch_size=32,
            l2_lambdas=(0.1,),
            ewc_lambdas=(10,),
            fisher_samples=20,
            expand_by=3,
            max_splits=8,
            validation=100,
        ),
        "cpu": Settings(),
        "paper": Settings(
            maps=(64, 128, 256, 256, 128),
            kernel=5,
            widths=(384, 192),
            epochs=40,
            fisher_samples=None,
            expand_by=30,
            max_splits=8,
        ),
    },
    minutes={"smoke": 0.6, "cpu": 60, "paper": 1500},
    measure=measure,
    rows=rows,
    figure=figure,
    search=lambda_jobs,
    search_of=search_of,
)
