"""Deep Generative Replay, Figs. 4 and 7: what the generator gives as its training goes on, and after each task.

The paper: samples of a WGAN-GP on SVHN (house numbers) after 1,000 to 20,000 iterations (Fig. 4), and on MNIST digits
two at a time after each task, when all classes so far come about equally often (Fig. 7).

What we do: both, on `data`, MNIST at cpu scale. Fig. 4 ("gr") after `parts` of the iterations, Fig. 7 ("gr-classes");
beside them the same with a variational autoencoder ("vae", "vae-classes"). Numbers for what the eye sees: the Frechet
distance of 2,000 samples to as many real images, in the features of a small classifier trained on real images of all
classes, and the smallest share of a class so far among 2,000 samples, times the number of classes (1: all equally
often), as a classifier trained on all real images tells them.
Deviations: fewer iterations at cpu scale; grids have 64 images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.harness.experiment import Context, Experiment, ImageData, Row, Run
from benchmarks.report.table import mean_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("gr", "vae")
CLASSES = "-classes"
ARMS = (*METHODS, *(method + CLASSES for method in METHODS))


@dataclass(frozen=True)
class Settings:
    """Samples of generators."""

    data: ImageData = "mnist"
    """Data set: mnist, svhn or digits."""
    parts: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 1.0)
    """Parts of the iterations after which samples are looked at."""
    tasks: int = 5
    """Number of tasks the ten classes are split into."""
    width: int = 400
    """Units in each of the two hidden layers of the classifier that tells samples apart, and of the solver."""
    iterations: int = 2000
    """Iterations of that classifier."""
    batch_size: int = 128
    """Images in a mini-batch of these."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimizer of the solver, which the samples do not depend on."""
    lr: float = 1e-3
    """Learning rate of these."""
    latent: int = 64
    """Size of the generators' z."""
    maps: int = 16
    """Feature maps of the generators at half the image's size, twice as many at a quarter."""
    gan_batch: int = 64
    """Images in a batch of the critic."""
    critic_steps: int = 5
    """Critic steps for a generator step."""
    gan_iterations: int = 1200
    """Generator iterations of each scholar."""
    gan_lr: float = 5e-4
    """Learning rate of the WGAN-GP."""
    penalty_every: int = 1
    """Critic steps from one gradient penalty to the next."""
    average: float = 0.998
    """Decay of the average of the generator's weights; 0 for none."""
    vae_iterations: int = 4000
    """Iterations of the variational autoencoder."""


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Samples as images and in numbers."""
    import torch

    from benchmarks.dgr._samples import after_each_task, as_training_goes_on
    from benchmarks.training.supervised import load_arrays

    torch.manual_seed(seed)
    arrays = load_arrays(settings.data, context)
    run = after_each_task if arm.endswith(CLASSES) else as_training_goes_on
    return run(arm.removesuffix(CLASSES), arrays, settings, seed, context)


def one_of(run: Run, what: str, index: int) -> float:
    """One of a list of measurements."""
    return run.measurements[what][index]


def rows(runs: Sequence[Run]) -> list[Row]:
    """Distances as training goes on and after each task, and how often the rarest class comes."""
    settings = runs[0].settings
    table = []
    for method in METHODS:
        table += [
            mean_row(
                runs,
                method,
                f"Frechet distance after {part:.0%} of training",
                value=partial(one_of, what="distance", index=k),
            )
            for k, part in enumerate(settings["parts"])
        ]
    for method in METHODS:
        for metric, what in (
            ("share of the rarest class x classes", "rarest"),
            ("Frechet distance", "distance"),
        ):
            table += [
                mean_row(
                    runs,
                    method + CLASSES,
                    f"{metric}, {k + 1} task{'s' if k else ''}",
                    value=partial(one_of, what=what, index=k),
                )
                for k in range(settings["tasks"])
            ]
    return table


def figure(runs: Sequence[Run]) -> Figure:
    """Grids of samples, one arm a row."""
    from matplotlib.figure import Figure

    from benchmarks.report.plots import draw_grids

    settings = runs[0].settings
    first = {run.arm: run.measurements["grids"] for run in sorted(runs, key=lambda run: -run.seed)}
    shown = [(arm, first[arm]) for arm in ARMS if arm in first]
    fig = Figure(figsize=(9, 2.3 * len(shown)), layout="constrained")
    for row, (arm, grids) in zip(fig.subfigures(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        row.suptitle(arm, fontsize="medium")
        parts = [f"{part:.0%} of training" for part in settings["parts"]]
        tasks = [f"task {k + 1}" for k in range(settings["tasks"])]
        draw_grids(row, grids, tasks if arm.endswith(CLASSES) else parts)
    return fig


EXPERIMENT = Experiment(
    name="dgr-samples",
    title="Deep Generative Replay, Figs. 4 and 7: what generators give",
    data="mnist",
    arms=ARMS,
    scales={
        "smoke": Settings(
            data="digits",
            parts=(0.5, 1.0),
            tasks=2,
            width=20,
            iterations=60,
            batch_size=32,
            lr=1e-2,
            latent=4,
            maps=4,
            gan_batch=8,
            gan_iterations=6,
            vae_iterations=6,
        ),
        "cpu": Settings(),
        "paper": Settings(
            data="svhn",
            maps=64,
            gan_iterations=20000,
            vae_iterations=20000,
            average=0.9999,
            critic_steps=5,
            gan_lr=1e-4,
        ),
    },
    minutes={"smoke": 0.2, "cpu": 40, "paper": 600},
    measure=measure,
    rows=rows,
    figure=figure,
)
