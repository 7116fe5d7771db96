"""Dynamically Expandable Networks, appendix A.1: ten permutations of MNIST, one digit against the rest in each.

The paper: ten tasks of ten classes, a head with ten one-vs-rest outputs each, a net of 312 and 128 units, AUROC.

What we do: the same. Lambdas of "l2" and EWC are chosen on held-out images of a seed that is not used afterwards; DEN's
settings are those of den-mnist-variation but for k, which is the authors' 10: on held-out images of that seed 20 gave
an AUROC of .996 at 1.79 times the base net. No other was tried.
Deviations: fewer epochs at cpu scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.den._rows import against, auroc_at_end, auroc_rows, capacity_rows, chosen_note, growth_rows
from benchmarks.den._settings import DENSettings, lambda_jobs, search_of, with_lambda
from benchmarks.harness.experiment import Context, Experiment, ImageData, Row, Run
from benchmarks.harness.papers import paper
from benchmarks.report.table import mean_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("stl", "mtl", "plain", "l2", "ewc", "progressive", "den", "den-finetune")


@dataclass(frozen=True)
class Settings(DENSettings):
    """Permuted MNIST, a head with ten outputs a task."""

    data: ImageData = "mnist"
    """Data set: mnist or digits."""
    tasks: int = 10
    """Number of permutations."""
    widths: tuple[int, ...] = (312, 128)
    """Units in the hidden layers."""
    epochs: int = 3
    """Epochs on each task; of first training, and of each phase of DEN."""
    expand_by: int | tuple[int, ...] = 10
    """k, units added to a layer and task, before group lasso takes some away; or a number for each layer."""
    validation: int = 5000
    """Training images held out."""
    l2_lambdas: tuple[float, ...] = (0.0001, 0.001, 0.01, 0.1, 1)
    """Weights that are searched."""


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """AUROC on all tasks so far after each, capacity, seconds and growth."""
    import torch
    from torch import nn

    from benchmarks.data.arrays import permuted
    from benchmarks.den._arms import train_arm
    from benchmarks.training.models import mlp
    from benchmarks.training.supervised import load_arrays

    torch.manual_seed(seed)
    arm, settings = with_lambda(settings, arm, context.search)
    arrays = load_arrays(settings.data, context)
    benchmark = permuted(arrays, settings.tasks, seed=seed, validation=settings.validation, task_labels=True)

    def body() -> nn.Sequential:
        return mlp((arrays.x_train[0].size, *settings.widths, 1))[:-1]

    return train_arm(arm, benchmark, settings, context, body=body, head="one-vs-rest")


def rows(runs: Sequence[Run]) -> list[Row]:
    """AUROC and capacity beside the paper's, and comparisons."""
    numbers = paper("den")["permuted"]
    notes = {arm: chosen_note(runs, arm, "lambda") for arm in ("l2", "ewc")}
    table = auroc_rows(runs, ARMS, numbers, notes)
    den = next(k for k, row in enumerate(table) if row.arm == "den")
    table[den] = mean_row(runs, "den", "AUROC", value=auroc_at_end, paper=numbers["auroc"]["den"], target=(">=", 0.99))
    table += capacity_rows(runs, ("den", "stl", "progressive"), numbers, ("<=", 1.5))
    others = dict.fromkeys(("stl", "plain", "l2", "ewc", "progressive"))
    return table + against(runs, "den", others, numbers) + growth_rows(runs, "den", len(runs[0].settings["widths"]))


def figure(runs: Sequence[Run]) -> Figure:
    """AUROC over tasks, against capacity, of the first and fourth task, and DEN's units."""
    from benchmarks.den._figure import den_figure

    return den_figure(runs, ARMS, paper("den")["permuted"], tasks=(1, 4))


EXPERIMENT = Experiment(
    name="den-permuted",
    title="DEN, appendix A.1: ten permutations of MNIST",
    data="mnist",
    arms=ARMS,
    scales={
        "smoke": Settings(
            data="digits",
            tasks=2,
            widths=(12, 8),
            epochs=1,
            batch_size=32,
            l2_lambdas=(0.1,),
            ewc_lambdas=(10,),
            fisher_samples=20,
            expand_by=3,
            validation=100,
        ),
        "cpu": Settings(),
        "paper": Settings(epochs=20, fisher_samples=None),
    },
    minutes={"smoke": 0.5, "cpu": 45, "paper": 300},
    measure=measure,
    rows=rows,
    figure=figure,
    search=lambda_jobs,
    search_of=search_of,
)
