"""Deep Generative Replay, Fig. 5: learning without forgetting on generated images instead of the new task's.

The paper: SVHN (house numbers), then MNIST, a head each. On MNIST the new head is warmed up first, with the rest
frozen, then all is trained: with learning without forgetting ("lwf": the old head keeps its answers to the new
images), and with the old head's answers to generated images instead ("lwf-gr"). 4,000 solver iterations each, half of
those on MNIST to warm up.

What we do: the same with Avalanche's LwFPlugin, whose alpha is chosen on held-out images of a seed that is not used
afterwards, by the mean accuracy on both domains; soft answers at temperature 2 in both, r = 1/2; beside them the same
without either ("none") and with a variational autoencoder ("lwf-vae"). The first domain is `domain`: at cpu scale
"mnist-negative", MNIST with black and white exchanged, as SVHN cannot be had everywhere; or "mnist-m" or "svhn".
The paper prints no numbers; those that table and figure have are read from its figure, to about 0.01.
Deviations: with mnist-negative, domains that are further apart than the paper's, so that its numbers are those of
another pair; a solver of 2 x 400 units and 2,000 iterations a task at cpu scale; the generators' settings are those of
dgr-classes and were not searched here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.dgr._rows import domain_at_end, domain_names, old_before, old_lost
from benchmarks.harness.experiment import Context, Experiment, Row, Run
from benchmarks.harness.papers import paper
from benchmarks.harness.search import best, edge_note, search_jobs, split_name, tried
from benchmarks.report.table import mean_row, paired_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("lwf-gr", "lwf-vae", "lwf", "none")


@dataclass(frozen=True)
class Settings:
    """Another domain of digits, then MNIST, a head each."""

    domain: Literal["svhn", "mnist-negative", "mnist-m", "digits-negative"] = "mnist-negative"
    """The domain beside MNIST: svhn, mnist-negative, mnist-m, or digits-negative beside scikit-learn's digits."""
    solver: Literal["mlp", "conv"] = "mlp"
    """The solver: two hidden layers, or three convolutions and a hidden layer."""
    width: int = 400
    """Units in each of the solver's hidden layers."""
    iterations: int = 2000
    """Solver iterations on each task, at least, to warm up included."""
    warm_up: int = 1000
    """Iterations on the second task in which only its head is trained."""
    alphas: tuple[float, ...] = (2, 8, 32, 128)
    """Weights of learning without forgetting that are searched."""
    alpha: float = 0.0
    """Weight of learning without forgetting; 0 for the one that the search chooses."""
    batch_size: int = 128
    """Images in a mini-batch; as many are replayed."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimizer of the solver: sgd or adam."""
    lr: float = 1e-3
    """Learning rate of the solver."""
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


def search(settings: Settings) -> list[tuple[str, int]]:
    """Learning without forgetting at every alpha, on the validation seed; none where `alpha` is given."""
    return [] if settings.alpha else search_jobs("lwf", "alpha", settings.alphas)


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Accuracy on both domains after every epoch, and what is replayed."""
    from dataclasses import replace

    import torch

    from benchmarks.data.domains import domain_pair, in_turn
    from benchmarks.dgr._lwf import train_lwf

    torch.manual_seed(seed)
    arm, alpha = split_name(arm)
    if alpha is not None:
        settings = replace(settings, alpha=alpha, evaluate="valid")
    elif arm == "lwf" and not settings.alpha:
        settings = replace(settings, alpha=best(context.search, "lwf", on_both))
    second, first = domain_pair(settings.domain, context.data_root)
    benchmark = in_turn(first, second, seed=seed, validation=settings.validation, task_labels=True)
    found = train_lwf(arm, first, benchmark, settings, context)
    return found | {"domains": [first.name, second.name], "alpha": settings.alpha}


def on_both(run: Run) -> float:
    """Mean accuracy on both domains at the end."""
    return fmean(domain_at_end(run, domain) for domain in (0, 1))


def rows(runs: Sequence[Run]) -> list[Row]:
    """Accuracy on the old domain before and after the second task, and on the new one."""
    numbers = paper("dgr")["fig5"]
    domain = runs[0].settings["domain"]
    others = "" if domain == "svhn" else "paper: SVHN"
    second, first = domain_names(domain)
    scores = tried(runs, "lwf", on_both)
    lost = {
        "lwf": numbers["old_before"] - numbers["lwf"]["old"],
        "lwf-gr": numbers["old_before"] - numbers["lwf_gr"]["old"],
    }
    table = []
    for arm in ARMS:
        note = others if arm in lost else ""
        if arm == "lwf":
            alphas = sorted({run.measurements["alpha"] for run in runs if run.arm == arm})
            texts = (f"alpha {a:g}, chosen on held-out images{edge_note(a, scores)}" for a in alphas)
            note = "; ".join([*filter(None, [others]), *texts])
        metric = f"lost on the old domain ({first})"
        table.append(mean_row(runs, arm, metric, value=old_lost, paper=lost.get(arm), note=note))
    gain = numbers["lwf_gr"]["old"] - numbers["lwf"]["old"]
    old, new = (partial(domain_at_end, domain=index) for index in (0, 1))
    on_old = f"accuracy, old domain ({first})"
    table.append(paired_row(runs, "lwf-gr", "lwf", on_old, value=old, paper=gain, note=others))
    for metric, value, part in (
        (f"{on_old}, before", old_before, None),
        (on_old, old, "old"),
        (f"accuracy, new domain ({second})", new, "new"),
    ):
        for arm in ARMS:
            known = numbers.get(arm.replace("-", "_"))
            number = known and (known[part] if part else numbers["old_before"])
            table.append(mean_row(runs, arm, metric, value=value, paper=number, note=others if known else ""))
    return table


def figure(runs: Sequence[Run]) -> Figure:
    """Accuracy on both domains as the epochs go by, the paper's at the end of each, and what is replayed."""
    from benchmarks.report.plots import domain_figure

    title = f"{runs[0].settings['domain']} first, then MNIST; a new head, warmed up"
    fig5 = paper("dgr")["fig5"]
    numbers = {arm: fig5[key] | {"before": fig5["old_before"]} for arm, key in (("lwf", "lwf"), ("lwf-gr", "lwf_gr"))}
    return domain_figure(runs, [(title, {arm: arm for arm in ARMS}, numbers)])


EXPERIMENT = Experiment(
    name="dgr-lwf",
    title="Deep Generative Replay, Fig. 5: learning without forgetting on generated images",
    data="mnist",
    arms=ARMS,
    scales={
        "smoke": Settings(
            domain="digits-negative",
            width=20,
            iterations=60,
            warm_up=30,
            alphas=(1.0,),
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
            iterations=4000,
            warm_up=2000,
            maps=64,
            gan_iterations=20000,
            vae_iterations=10000,
            average=0.9999,
            critic_steps=5,
            gan_lr=1e-4,
        ),
    },
    minutes={"smoke": 0.3, "cpu": 15, "paper": 400},
    measure=measure,
    rows=rows,
    figure=figure,
    search=search,
)
