"""Deep Generative Replay, Fig. 3: two domains of the same digits, one after the other, with one head.

The paper: MNIST and SVHN (house numbers), in either order; exact replay ("er"), generative replay with a WGAN-GP ("gr")
and plain training ("none"), 20,000 solver iterations on SVHN and 5,000 on MNIST.

What we do: the same in both orders ("gr" learns MNIST first, "gr-back" the other domain), beside it a variational
autoencoder ("vae") and Avalanche's GenerativeReplay ("avalanche"); r = 1/2 in the second task. The other domain is
`domain`: at cpu scale "mnist-negative", MNIST with black and white exchanged, as SVHN cannot be had everywhere; or
"mnist-m", the difference of a digit and a patch of a photograph, or "svhn".
The paper prints no numbers; those that table and figure have are read from its figure, to about 0.01.
Deviations: with mnist-negative, domains that are further apart than the paper's, so that its numbers are those of
another pair; a solver of 2 x 400 units and 2,000 iterations a task at cpu scale; the
generators' settings are those of dgr-classes and were not searched here. No scholar is made of the second task, from
which nobody learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.dgr._rows import domain_at_end, domain_names, old_lost
from benchmarks.harness.experiment import Context, Experiment, Row, Run
from benchmarks.harness.papers import in_paper, paper
from benchmarks.report.table import mean_row, paired_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("gr", "vae", "er", "none", "avalanche")
BACK = "-back"
KEYS = {"": "mnist_to_svhn", BACK: "svhn_to_mnist"}
"""The paper's order, of each of ours."""
ARMS = (*METHODS, *(method + BACK for method in METHODS))
TARGETS: dict[str, tuple[Literal["<=", ">="], float]] = {"gr": ("<=", 0.03), "none": (">=", 0.1)}


@dataclass(frozen=True)
class Settings:
    """Two domains."""

    domain: Literal["svhn", "mnist-negative", "mnist-m", "digits-negative"] = "mnist-negative"
    """The domain beside MNIST: svhn, mnist-negative, mnist-m, or digits-negative beside scikit-learn's digits."""
    solver: Literal["mlp", "conv"] = "mlp"
    """The solver: two hidden layers, or three convolutions and a hidden layer."""
    width: int = 400
    """Units in each of the solver's hidden layers."""
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
    """Generator iterations after the first task."""
    gan_lr: float = 5e-4
    """Learning rate of the WGAN-GP."""
    penalty_every: int = 1
    """Critic steps from one gradient penalty to the next."""
    average: float = 0.998
    """Decay of the average of the generator's weights; 0 for none."""
    vae_iterations: int = 4000
    """Iterations of the variational autoencoder after the first task."""
    validation: int = 5000
    """Training images held out."""
    evaluate: Literal["test", "valid"] = "test"
    """Stream to measure on: test, or valid for choosing settings."""


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Accuracy on both domains after every epoch, and what is replayed."""
    import torch
    from torch import nn

    from benchmarks.data.domains import domain_pair, in_turn
    from benchmarks.dgr._arms import train_arm
    from benchmarks.training.models import image_trunk

    torch.manual_seed(seed)
    pair = domain_pair(settings.domain, context.data_root)
    first, second = reversed(pair) if arm.endswith(BACK) else pair
    benchmark = in_turn(first, second, seed=seed, validation=settings.validation)
    trunk = image_trunk(settings.solver, first, settings.width)
    model = nn.Sequential(*trunk, nn.Linear(settings.width, first.n_classes))
    shape = benchmark.train_stream[0].dataset[0][0].shape
    found = train_arm(
        arm.removesuffix(BACK), model, benchmark, settings, context, shape=shape, fully_connected=False, each_epoch=True
    )
    return found | {"domains": [first.name, second.name]}


def rows(runs: Sequence[Run]) -> list[Row]:
    """What is lost on the old domain, with its targets, then accuracy on both, for both orders."""
    domain = runs[0].settings["domain"]
    table = []
    for back, key in KEYS.items():
        numbers = paper("dgr")["fig3"][key]
        note = "" if domain == "svhn" else "paper: SVHN"
        old, new = reversed(domain_names(domain)) if back else domain_names(domain)
        on_old, on_new = f"accuracy, old domain ({old})", f"accuracy, new domain ({new})"
        table += [
            mean_row(runs, method + back, f"lost on the old domain ({old})", value=old_lost, target=TARGETS.get(method))
            for method in METHODS
        ]
        table.append(paired_row(runs, "gr" + back, "none" + back, on_new, value=partial(domain_at_end, domain=1)))
        for metric, index, part in ((on_old, 0, "old"), (on_new, 1, "new")):
            table += [
                mean_row(
                    runs,
                    method + back,
                    metric,
                    value=partial(domain_at_end, domain=index),
                    paper=in_paper(numbers, method, part),
                    note=note if method in numbers else "",
                )
                for method in METHODS
            ]
    return table


def figure(runs: Sequence[Run]) -> Figure:
    """Accuracy on both domains as the epochs go by, in both orders, the paper's at the end, and what is replayed."""
    from benchmarks.report.plots import domain_figure

    names = {run.arm.endswith(BACK): run.measurements["domains"][0] for run in runs}
    parts = [
        (f"{names[bool(back)]} first", {method: method + back for method in METHODS}, paper("dgr")["fig3"][key])
        for back, key in KEYS.items()
        if bool(back) in names
    ]
    return domain_figure(runs, parts)


EXPERIMENT = Experiment(
    name="dgr-domains",
    title="Deep Generative Replay, Fig. 3: two domains of digits",
    data="mnist",
    arms=ARMS,
    scales={
        "smoke": Settings(
            domain="digits-negative",
            width=20,
            iterations=60,
            batch_size=32,
            lr=1e-2,
            latent=4,
            maps=4,
            gan_batch=8,
            gan_iterations=5,
            vae_iterations=5,
            validation=100,
        ),
        "cpu": Settings(),
        "paper": Settings(
            domain="svhn",
            solver="conv",
            iterations=20000,
            maps=64,
            gan_iterations=20000,
            vae_iterations=10000,
            average=0.9999,
            critic_steps=5,
            gan_lr=1e-4,
        ),
    },
    minutes={"smoke": 0.3, "cpu": 20, "paper": 600},
    measure=measure,
    rows=rows,
    figure=figure,
)
