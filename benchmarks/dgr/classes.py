"""Deep Generative Replay, Fig. 6: new classes. The ten digits two at a time, one head of ten outputs, no task label.

The paper: a scholar of a WGAN-GP and a solver learns 0 and 1, then 2 and 3, ..., replaying what it has learnt before
("gr"); with real past inputs instead of generated ones ("er"), with Gaussian noise ("noise"), and with nothing
("none"). Neither architectures, nor optimizers, nor the ratio r are given.

What we do: the same with a solver of 2 x 400 units (Adam 1e-3, batch 128), r = 1/t, and the old solver's class as the
answer; a small convolutional WGAN-GP with an average of its weights. Beside it the same protocol with a variational
autoencoder ("vae"), and Avalanche's GenerativeReplay with the same solver, epochs and batches ("avalanche").
The WGAN-GP's learning rate (2e-4 or 5e-4), critic steps (2 or 5) and maps (16 or 32) were chosen in a trial with all
digits at once, by the accuracy on held-out images of a solver taught by samples alone; it is not recorded here.
Deviations: at cpu scale 2,000 solver iterations a task, where the figure has 5,000; networks are trained on from
task to task, not started afresh; no scholar is made of the last task, from which nobody learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.dgr._rows import at_end, earlier_rows
from benchmarks.harness.experiment import Context, Experiment, ImageData, Row, Run
from benchmarks.harness.papers import in_paper, paper
from benchmarks.report.table import Target, mean_row, paired_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("gr", "vae", "er", "noise", "none", "avalanche")
TARGETS: dict[str, Target] = {"gr": (">=", 0.91), "er": (">=", 0.96), "none": ("<=", 0.21)}


@dataclass(frozen=True)
class Settings:
    """Split MNIST, class-incremental."""

    data: ImageData = "mnist"
    """Data set: mnist, svhn or digits."""
    tasks: int = 5
    """Number of tasks the ten digits are split into."""
    width: int = 400
    """Units in each of the solver's two hidden layers."""
    iterations: int = 2000
    """Solver iterations on each task, at least."""
    batch_size: int = 128
    """Images in a mini-batch; as many are replayed."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimizer of the solver: sgd or adam."""
    lr: float = 1e-3
    """Learning rate of the solver."""
    labels: Literal["hard", "soft"] = "hard"
    """Answers of the old solver: hard or soft."""
    latent: int = 64
    """Size of the generators' z."""
    maps: int = 16
    """Feature maps of the generators at half the image's size, twice as many at a quarter."""
    gan_batch: int = 64
    """Images in a batch of the critic."""
    critic_steps: int = 5
    """Critic steps for a generator step."""
    gan_iterations: int = 1200
    """Generator iterations after each task."""
    gan_lr: float = 5e-4
    """Learning rate of the WGAN-GP."""
    penalty_every: int = 1
    """Critic steps from one gradient penalty to the next."""
    average: float = 0.998
    """Decay of the average of the generator's weights; 0 for none."""
    vae_iterations: int = 4000
    """Iterations of the variational autoencoder after each task."""
    validation: int = 5000
    """Training images held out."""
    evaluate: Literal["test", "valid"] = "test"
    """Stream to measure on: test, or valid for choosing settings."""


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Accuracy over the classes so far after each task, and what is replayed."""
    import torch

    from benchmarks.data.arrays import split
    from benchmarks.dgr._arms import train_arm
    from benchmarks.training.models import image_mlp
    from benchmarks.training.supervised import load_arrays

    torch.manual_seed(seed)
    arrays = load_arrays(settings.data, context)
    benchmark = split(arrays, settings.tasks, seed=seed, task_labels=False, validation=settings.validation, flat=False)
    model = image_mlp(arrays, settings.width)
    shape = tuple(benchmark.train_stream[0].dataset[0][0].shape)
    return train_arm(arm, model, benchmark, settings, context, shape=shape, fully_connected=False)


def rows(runs: Sequence[Run]) -> list[Row]:
    """Accuracy after each task, the end with its targets first."""
    numbers = paper("dgr")["fig6"]
    tasks = runs[0].settings["tasks"]
    others = {"vae": paper("dgr")["vae"]["classes"]["mean"], "avalanche": paper("dgr")["avalanche"]["classes"]}
    sources = {"vae": "paper: van de Ven and Tolias 2019", "avalanche": "paper: Avalanche's own baseline"}
    metric = f"accuracy after {tasks} tasks"
    table = [
        mean_row(
            runs,
            arm,
            metric,
            value=at_end,
            paper=in_paper(numbers, arm, tasks - 1) if arm in numbers else others.get(arm),
            target=TARGETS.get(arm),
            note=sources.get(arm, ""),
        )
        for arm in ARMS
    ]
    table.append(paired_row(runs, "gr", "avalanche", metric, value=at_end))
    return table + earlier_rows(runs, ARMS, numbers, "accuracy")


def figure(runs: Sequence[Run]) -> Figure:
    """Accuracy over the classes so far, and replayed images."""
    from benchmarks.report.plots import replay_figure

    curves = {arm: values for arm, values in paper("dgr")["fig6"].items() if arm in ARMS}
    return replay_figure(runs, ARMS, curves, ylabel="test accuracy, classes so far")


EXPERIMENT = Experiment(
    name="dgr-classes",
    title="Deep Generative Replay, Fig. 6: digits two at a time",
    data="mnist",
    arms=ARMS,
    scales={
        "smoke": Settings(
            data="digits",
            tasks=2,
            width=20,
            iterations=20,
            batch_size=32,
            latent=4,
            maps=4,
            gan_batch=8,
            gan_iterations=5,
            vae_iterations=5,
            validation=100,
        ),
        "cpu": Settings(),
        "paper": Settings(
            iterations=5000,
            maps=64,
            gan_iterations=20000,
            vae_iterations=10000,
            average=0.9999,
            critic_steps=5,
            gan_lr=1e-4,
        ),
    },
    minutes={"smoke": 0.3, "cpu": 55, "paper": 600},
    measure=measure,
    rows=rows,
    figure=figure,
)
