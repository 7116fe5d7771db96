"""The settings that the DEN experiments share, and what is searched of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from benchmarks.den._rows import auroc_at_end
from benchmarks.harness.experiment import Run
from benchmarks.harness.search import best, search_jobs, split_name

SEARCHED = {"l2": ("lambda", "l2_lambda"), "ewc": ("lambda", "ewc_lambda"), "l1": ("mu", "l1_alone")}
"""What is searched of an arm, and the setting that it is; the values are those of the setting with an s."""


@dataclass(frozen=True)
class DENSettings:
    """Training, the methods compared with DEN, and DEN."""

    epochs: int = 16
    """Epochs on each task; of first training, and of each phase of DEN."""
    batch_size: int = 256
    """Images in a mini-batch."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    weight_decay: float = 1e-4
    """Weight decay of Adam, the l2 regularisation of all arms."""
    l2_lambda: float = 0.0
    """Weight of the distance to the weights before the task, of l2 and l2-selective; 0 for the one searched."""
    l2_lambdas: tuple[float, ...] = (0.001, 0.01, 0.1, 1)
    """Weights that are searched."""
    ewc_lambda: float = 0.0
    """Lambda of EWC; 0 for the one searched."""
    ewc_lambdas: tuple[float, ...] = (1000, 10000, 100000, 1000000)
    """Lambdas that are searched."""
    fisher_samples: int | None = 1000
    """Images for EWC's Fisher; None for all."""
    l1: float = 0.01
    """mu, the weight of the L1 norm."""
    l2: float = 1e-4
    """mu of selective retraining."""
    selective_l1: float = 0.1
    """mu of the arm "selective", which is about how few units are used."""
    l1_alone: float = 0.0
    """mu of the arm "l1"; 0 for the one searched."""
    l1_alones: tuple[float, ...] = (0.0001, 0.001, 0.003, 0.01, 0.03)
    """mu that are searched."""
    retraining_drift: float = 10.0
    """Weight of the drift penalty in selective retraining; 0 in the paper, 0.25 in its authors' code."""
    group_lasso: float = 0.3
    """Weight of group lasso."""
    drift_lambda: float = 10.0
    """lambda, the weight of the drift penalty."""
    drift_step: Literal["gradient", "proximal"] = "proximal"
    """How the drift penalty is applied, by its gradient or by a proximal step; also that of l2 and l2-selective."""
    loss_threshold: float = 0.01
    """tau: the network is expanded where the loss is larger."""
    drift_threshold: float = 0.003
    """sigma: units are split that moved further."""
    expand_by: int | tuple[int, ...] = 20
    """k, units added to a layer and task, before group lasso takes some away; or a number for each layer."""
    constant_by: int = 13
    """Units that the arm "constant" adds; the paper has 13 and 20."""
    max_splits: int | tuple[int, ...] | None = 8
    """Most units that are split in a layer, or a number for each layer; None for no bound."""
    phase_epochs: int | None = None
    """Epochs of expansion and of the trainings with the drift penalty; None: as many as `epochs`."""
    evaluate: Literal["test", "valid"] = "test"
    """Stream to measure on: test, or valid for choosing settings."""


Own = TypeVar("Own", bound=DENSettings)


def search_of(arm: str) -> str:
    """Return the arm whose lambda an arm takes."""
    return arm.removesuffix("-selective")


def lambda_jobs(settings: DENSettings, arms: Sequence[str] = ("l2", "ewc")) -> list[tuple[str, int]]:
    """These arms at every value that is searched of them, on the validation seed; none where it is given."""
    return [
        job
        for arm in arms
        if not getattr(settings, SEARCHED[arm][1])
        for job in search_jobs(arm, SEARCHED[arm][0], getattr(settings, f"{SEARCHED[arm][1]}s"))
    ]


def with_lambda(settings: Own, arm: str, runs: Sequence[Run]) -> tuple[str, Own]:
    """Return a job's arm, and its settings with the lambda (or mu) that it searches, or that the search has found."""
    arm, value = split_name(arm)
    chosen: dict[str, Any] = {}
    _, name = SEARCHED.get(search_of(arm), ("", ""))
    if value is not None:
        chosen = {name: value, "evaluate": "valid"}
    elif name and not getattr(settings, name):
        chosen = {name: best(runs, search_of(arm), auroc_at_end)}
    return arm, replace(settings, **chosen)
