"""Dynamically Expandable Networks, Fig. 3: fifty kinds of animals (AWA), one against the rest in each task.

The paper: Animals with Attributes, 50 classes, DECAF features reduced to 500 dimensions by PCA, 30 training, 30
validation and 30 test images a class, a net of 312 and 128 units, fifty binary tasks, AUROC.

What we do: the same with the official features of AwA2 (Xian et al. 2018), 2,048 of a ResNet-101, reduced to 500 by PCA
fitted on the training images; they are not the paper's DECAF features. The files, `AwA2-features.txt` and
`AwA2-labels.txt`, have to be in the data folder. Lambdas of "l2" and EWC are chosen on validation images of a seed that
is not used afterwards; DEN's settings are those of den-mnist-variation, not searched anew.
Deviations: other features and other images, as AWA's own are no longer given out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.den._rows import against, auroc_rows, capacity_rows, chosen_note, growth_rows
from benchmarks.den._settings import DENSettings, lambda_jobs, search_of, with_lambda
from benchmarks.harness.experiment import Context, Experiment, Row, Run
from benchmarks.harness.papers import paper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("stl", "mtl", "plain", "l2", "ewc", "progressive", "den", "den-finetune")


@dataclass(frozen=True)
class Settings(DENSettings):
    """AwA2's features, one kind of animal against the rest."""

    data: Literal["awa2", "digits"] = "awa2"
    """Data set: awa2, or digits, whose pixels then are the features."""
    tasks: int = 50
    """Number of classes that are told from the rest, and of tasks."""
    dimensions: int = 500
    """Principal components that are kept."""
    widths: tuple[int, ...] = (312, 128)
    """Units in the hidden layers."""
    per_class: tuple[int, int, int] = (30, 30, 30)
    """Training, validation and test images a class."""
    epochs: int = 30
    """Epochs on each task; of first training, and of each phase of DEN."""


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """AUROC on all tasks so far after each, capacity, seconds and growth."""
    import torch
    from torch import nn

    from benchmarks.data.awa import awa2, digit_features, one_vs_rest_features
    from benchmarks.den._arms import train_arm
    from benchmarks.training.models import mlp

    torch.manual_seed(seed)
    arm, settings = with_lambda(settings, arm, context.search)
    features, labels = awa2(context.data_root) if settings.data == "awa2" else digit_features()
    benchmark = one_vs_rest_features(
        features, labels, per_class=settings.per_class, tasks=settings.tasks, dimensions=settings.dimensions, seed=seed
    )
    size = len(benchmark.train_stream[0].dataset[0][0])

    def body() -> nn.Sequential:
        return mlp((size, *settings.widths, 1))[:-1]

    return train_arm(arm, benchmark, settings, context, body=body, head="binary")


def rows(runs: Sequence[Run]) -> list[Row]:
    """AUROC and capacity beside the paper's, and comparisons."""
    numbers = paper("den")["awa"]
    notes = {arm: chosen_note(runs, arm, "lambda") for arm in ("l2", "ewc")}
    table = auroc_rows(runs, ARMS, numbers, notes) + capacity_rows(runs, ("den", "stl", "progressive"), numbers)
    others = dict.fromkeys(("stl", "mtl", "plain", "l2", "ewc", "progressive"))
    return table + against(runs, "den", others, numbers) + growth_rows(runs, "den", len(runs[0].settings["widths"]))


def figure(runs: Sequence[Run]) -> Figure:
    """AUROC over tasks, against capacity, of the first and fourth task, and DEN's units."""
    from benchmarks.den._figure import den_figure

    return den_figure(runs, ARMS, paper("den")["awa"], tasks=(1, 4))


EXPERIMENT = Experiment(
    name="den-awa",
    title="DEN, Fig. 3: fifty kinds of animals",
    data="awa2",
    arms=ARMS,
    scales={
        "smoke": Settings(
            data="digits",
            tasks=2,
            dimensions=20,
            widths=(12, 8),
            per_class=(20, 10, 20),
            epochs=1,
            batch_size=32,
            l2_lambdas=(0.1,),
            ewc_lambdas=(10,),
            fisher_samples=20,
            expand_by=3,
        ),
        "cpu": Settings(),
        "paper": Settings(epochs=200, fisher_samples=None),
    },
    minutes={"smoke": 0.5, "cpu": 60, "paper": 400},
    measure=measure,
    rows=rows,
    figure=figure,
    search=lambda_jobs,
    search_of=search_of,
)
