"""Deep Generative Replay, Fig. 2: five permutations of MNIST with one head, learnt in turn.

The paper: exact replay ("er"), generative replay with a WGAN-GP ("gr"), noise ("noise") and plain training ("none"),
5,000 solver iterations a task. Neither architectures, nor optimizers, nor the ratio r are given.

What we do: the same with a solver of 2 x 400 units, batch 128, r = 1/t and a fully connected WGAN-GP, as permuted
pixels have no spatial structure; beside it a variational autoencoder ("vae") and Avalanche's GenerativeReplay
("avalanche"). All arms share the learning rate of Adam that exact replay is best with on held-out images of
a seed that is not used afterwards; "none-best" is plain training at the one that it is best with itself.
The WGAN-GP's settings are those of dgr-classes and were not searched anew, nor were its units.
Deviations: at cpu scale 2,000 solver iterations a task; no scholar is made of the last task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.dgr._rows import at_end, earlier_rows
from benchmarks.harness.experiment import Context, Experiment, ImageData, Row, Run
from benchmarks.harness.papers import in_paper, paper
from benchmarks.harness.search import best, search_jobs, split_name
from benchmarks.report.table import mean_row, paired_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("gr", "vae", "er", "noise", "none", "none-best", "avalanche")


@dataclass(frozen=True)
class Settings:
    """Permuted MNIST, one head."""

    data: ImageData = "mnist"
    """Data set: mnist or digits."""
    tasks: int = 5
    """Number of permutations."""
    width: int = 400
    """Units in each of the solver's two hidden layers."""
    iterations: int = 2000
    """Solver iterations on each task, at least."""
    batch_size: int = 128
    """Images in a mini-batch; as many are replayed."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimizer of the solver: sgd or adam."""
    lrs: tuple[float, ...] = (1e-4, 1e-3)
    """Learning rates of the solver that are searched."""
    lr: float = 0.0
    """Learning rate of the solver; 0 for the one that the search chooses."""
    labels: Literal["hard", "soft"] = "hard"
    """Answers of the old solver: hard or soft."""
    latent: int = 64
    """Size of the generators' z."""
    units: int = 512
    """Units in each of the two hidden layers of the WGAN-GP's networks."""
    gan_batch: int = 64
    """Images in a batch of the critic."""
    critic_steps: int = 5
    """Critic steps for a generator step."""
    gan_iterations: int = 2000
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


def search(settings: Settings) -> list[tuple[str, int]]:
    """Exact replay and plain training at every learning rate, on the validation seed; none where `lr` is given."""
    return [] if settings.lr else [job for arm in ("er", "none") for job in search_jobs(arm, "lr", settings.lrs)]


def search_of(arm: str) -> str:
    """Return the arm whose learning rate an arm takes: that of exact replay but for plain training at its best."""
    return "none" if arm == "none-best" else "er"


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Mean accuracy over the tasks so far after each task, and what is replayed."""
    from dataclasses import replace

    import torch

    from benchmarks.data.arrays import permuted
    from benchmarks.dgr._arms import train_arm
    from benchmarks.training.models import image_mlp
    from benchmarks.training.supervised import load_arrays

    torch.manual_seed(seed)
    arm, value = split_name(arm)
    if value is not None:
        settings = replace(settings, lr=value, evaluate="valid")
    elif not settings.lr:
        settings = replace(settings, lr=best(context.search, search_of(arm), at_end))
    arrays = load_arrays(settings.data, context)
    benchmark = permuted(arrays, settings.tasks, seed=seed, validation=settings.validation, flat=False)
    model = image_mlp(arrays, settings.width)
    shape = tuple(benchmark.train_stream[0].dataset[0][0].shape)
    kind = "none" if arm == "none-best" else arm
    found = train_arm(kind, model, benchmark, settings, context, shape=shape, fully_connected=True)
    return {**found, "lr": settings.lr}


def rows(runs: Sequence[Run]) -> list[Row]:
    """Accuracy after each task, the end with its targets first."""
    numbers = paper("dgr")["fig2"]
    tasks = runs[0].settings["tasks"]
    metric = f"mean accuracy after {tasks} tasks"
    table = [
        mean_row(
            runs,
            arm,
            metric,
            value=at_end,
            paper=in_paper(numbers, arm, tasks - 1),
            target=(">=", 0.91) if arm == "gr" else None,
            note=", ".join(f"lr {lr:g}" for lr in sorted({r.measurements["lr"] for r in runs if r.arm == arm})),
        )
        for arm in ARMS
    ]
    table += [
        paired_row(runs, "gr", "er", metric, value=at_end, paper=-0.028, target=(">=", -0.03)),
        paired_row(runs, "gr", "none", metric, value=at_end, paper=0.4, target=(">=", 0.0)),
        paired_row(runs, "gr", "none-best", metric, value=at_end),
        paired_row(runs, "gr", "avalanche", metric, value=at_end),
    ]
    return table + earlier_rows(runs, ARMS, numbers, "mean accuracy")


def figure(runs: Sequence[Run]) -> Figure:
    """Accuracy over the tasks so far, and replayed images, whose pixels are permuted."""
    from benchmarks.report.plots import replay_figure

    curves = {arm: values for arm, values in paper("dgr")["fig2"].items() if arm in ARMS}
    return replay_figure(runs, ARMS, curves, ylabel="mean test accuracy, tasks so far")


EXPERIMENT = Experiment(
    name="dgr-permuted",
    title="Deep Generative Replay, Fig. 2: five permutations of MNIST",
    data="mnist",
    arms=ARMS,
    scales={
        "smoke": Settings(
            data="digits",
            tasks=2,
            width=20,
            iterations=20,
            batch_size=32,
            lrs=(1e-3,),
            latent=4,
            units=16,
            gan_batch=8,
            gan_iterations=5,
            vae_iterations=5,
            validation=100,
        ),
        "cpu": Settings(),
        "paper": Settings(
            width=1000,
            iterations=5000,
            units=1024,
            gan_iterations=20000,
            vae_iterations=10000,
            average=0.9999,
            critic_steps=5,
            gan_lr=1e-4,
        ),
    },
    minutes={"smoke": 0.3, "cpu": 40, "paper": 400},
    measure=measure,
    rows=rows,
    figure=figure,
    search=search,
    search_of=search_of,
)
