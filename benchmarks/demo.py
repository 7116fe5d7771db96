"""`python -m benchmarks demo`: what plain training forgets, and what each of the four methods keeps; no download."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.harness.files import check_folder, remove_events

TASKS = 5
LEARNING_RATE = 1e-3  # of Adam
LATENT = 8  # size of the generator's z
DIGITS = {
    "permuted": "Ten digits, their pixels permuted anew for each task",
    "classes": "Two new digits a task, one head for all ten",
}


@dataclass(frozen=True, eq=False)
class Way:
    """A way of training that the demo shows.

    Attributes:
        name: in tables.
        strategy: name of its class, in `avl_plugins` or Avalanche's "Naive".
        tasks: "permuted", the ten digits with other permutations of the pixels, or "classes", two new digits each.
        text: what to look at, one line.
        units: in the hidden layers.
        epochs: on each task; of first training, and of each phase of DEN.
        options: of the strategy.
        labels: samples come with the task they are of.
    """

    name: str
    strategy: str
    tasks: Literal["permuted", "classes"]
    text: str
    units: tuple[int, ...]
    epochs: int
    options: dict[str, Any] = field(default_factory=dict)
    labels: bool = False


# Chosen on 300 held-out training digits, seeds 100 and 101: lambda of 100, 300, 1000 and 3000. Generator iterations of
# 250 and 500 were compared on seed 100 alone; nothing else was searched.
WAYS = (
    Way("plain training", "Naive", "permuted", "forgets more of a task with each one that follows", (400, 400), 10),
    Way(
        "EWC",
        "EWC",
        "permuted",
        "holds the weights that old tasks need; is not told the task",
        (400, 400),
        10,
        {"ewc_lambda": 1000.0, "penalty_step": "proximal"},
    ),
    Way(
        "Progressive",
        "Progressive",
        "permuted",
        "adds weights for each task and keeps the old; is told the task",
        (100, 100),
        10,
        labels=True,
    ),
    Way(
        "DEN",
        "DEN",
        "permuted",
        "grows where a task needs it, and shares the rest; is told the task",
        (40, 30),
        15,
        {"expand_by": 5},
        labels=True,
    ),
    Way("plain training", "Naive", "classes", "knows the last two digits only", (200, 200), 20),
    Way(
        "DGR",
        "DGR",
        "classes",
        "replays digits that a generator makes up; keeps no data",
        (200, 200),
        20,
        {"generator_iterations": 500},
    ),
)

AGENTS = {"finetune": "plain agent", "progressive": "progressive agent"}
AGENT_STEPS = 40_000  # in each task, where the experiment rl-classic takes 150,000


def demo(arguments: Sequence[str], console: Console) -> int:
    """Train plainly and with each method, digits and agents; show what is kept, and say how to look at the curves."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks demo",
        description=f"Plain training and the four methods on scikit-learn's 1,797 digits, {TASKS} tasks one after the "
        "other; where gymnasium is installed, a plain and a progressive agent on three CartPoles.",
    )
    parser.add_argument("--logdir", type=Path, default=Path("runs"), help="TensorBoard logs go to LOGDIR/demo")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logdir = options.logdir / "demo"
    check_folder(logdir, "--logdir")

    agents = AGENTS if find_spec("gymnasium") else {}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("loading Avalanche", total=len(WAYS) + len(agents))

        def start(name: str, what: str) -> Share:
            if not console.is_terminal:
                console.print(f"{name}: {what} ...", highlight=False)
            return Share(progress, bar, 1, name)

        results = {}
        for way in WAYS:
            shown = start(way.name, f"{TASKS} tasks, {way.epochs} epochs each")
            results[way] = train(way, options.seed, logdir / f"{way.tasks}-{way.strategy.lower()}", shown)
        played = {}
        for arm, name in agents.items():
            shown = start(name, f"3 CartPoles of {AGENT_STEPS:,} steps")
            played[name] = train_agent(arm, options.seed, logdir / f"cartpole-{arm}", shown)
    for tasks in DIGITS:
        own = {way: matrix for way, matrix in results.items() if way.tasks == tasks}
        console.print(table(own))
        console.print("\n".join(f"{way.name}: {way.text}." for way in own) + "\n", highlight=False)
    console.print(
        "Accuracy on each task's test digits after the last task; forgetting: the mean\ndrop since a task was new.\n"
    )
    if played:
        console.print(returns_table(played))
        console.print(
            "Steps that the pole stays up, 500 at most: when the task was new -> at the end.\n", highlight=False
        )
    else:
        console.print(
            'gymnasium is not installed (pip install -e ".[bench,rl]"): no agents.',
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    console.print(f"Curves: tensorboard --logdir {logdir}", highlight=False, soft_wrap=True)
    return 0


def train(way: Way, seed: int, logdir: Path, progress: Callable[[int, int, str], None]) -> list[list[float]]:
    """Accuracy on the tasks so far after each task: [after][task]."""
    import torch

    from benchmarks.data.arrays import digits, permuted, split
    from benchmarks.harness.experiment import Context
    from benchmarks.training.supervised import accuracy_matrix, default_plugins, make_evaluator, train_stream

    torch.set_num_threads(1)  # the fastest for a model this small, and the same numbers everywhere
    torch.manual_seed(seed)
    remove_events(logdir)
    make = permuted if way.tasks == "permuted" else split
    benchmark = make(digits(), TASKS, seed=seed, task_labels=way.labels)
    context = Context(logdir=logdir, progress=progress)
    strategy_class, model, options, metrics = parts(way)
    strategy = strategy_class(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=LEARNING_RATE),
        train_mb_size=32,
        train_epochs=way.epochs,
        eval_mb_size=512,
        plugins=default_plugins(context, TASKS, resumable=False),
        evaluator=make_evaluator(context, *metrics),
        **options,
    )
    train_stream(strategy, benchmark, context)
    progress(1, 1, "done")
    matrix = accuracy_matrix(strategy)
    log_summary(way, seed, matrix, logdir)
    return matrix


def parts(way: Way) -> tuple[Any, Any, dict[str, Any], list[Any]]:
    """Return the class of a way's strategy, its network, its options, and metrics of what the method does."""
    from avalanche.training.supervised import Naive

    import avl_plugins as avl
    from avl_plugins import metrics
    from avl_plugins.dgr.networks import mlp_decoder, mlp_encoder
    from benchmarks.training.models import mlp

    net = mlp((64, *way.units, 10), dropout_hidden=0.5 if way.tasks == "permuted" else 0)
    body = mlp((64, *way.units, 10))[:-1]
    if way.strategy == "EWC":
        return avl.EWC, net, way.options, metrics.ewc_metrics(epoch=True, experience=True, overlap=True)
    if way.strategy == "Progressive":
        return avl.Progressive, avl.ProgressiveNetwork(body), way.options, metrics.column_metrics()
    if way.strategy == "DEN":
        return avl.DEN, avl.DynamicallyExpandableNetwork(body), way.options, metrics.den_metrics()
    if way.strategy == "DGR":
        generator = avl.VAE(encoder=mlp_encoder((64,), LATENT), decoder=mlp_decoder(LATENT, (64,)), latent=LATENT)
        return avl.DGR, net, {"generator": generator, **way.options}, metrics.replay_metrics(shape=(1, 8, 8))
    return Naive, net, way.options, []


def mean_and_forgetting(matrix: list[list[float]]) -> tuple[float, float]:
    """Return the mean accuracy at the end, and the mean drop since a task was new over all but the last."""
    last = matrix[-1]
    drops = [matrix[task][task] - last[task] for task in range(len(last) - 1)]
    return sum(last) / len(last), sum(drops) / len(drops)


def log_summary(way: Way, seed: int, matrix: list[list[float]], logdir: Path) -> None:
    """Log the accuracies, whose cards TensorBoard shows first, and the settings as HParams."""
    from torch.utils.tensorboard import SummaryWriter

    mean, forgetting = mean_and_forgetting(matrix)
    settings = {"method": way.name, "tasks": way.tasks, "units": str(way.units), "epochs": way.epochs, "seed": seed}
    with SummaryWriter(str(logdir)) as writer:
        for k, row in enumerate(matrix, 1):
            writer.add_scalar("Accuracy/mean of tasks so far", sum(row) / k, k)
            for task, accuracy in enumerate(row, 1):
                writer.add_scalar(f"Accuracy/task {task}", accuracy, k)
        writer.add_hparams(
            settings | way.options, {"Accuracy/at the end": mean, "Accuracy/forgetting": forgetting}, run_name="."
        )


def empty_table(title: str, columns: Sequence[str]) -> Table:
    """A table that fits 80 columns; its first column is for names."""
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("")
    for column in columns:
        shown.add_column(column, justify="right")
    return shown


def table(results: dict[Way, list[list[float]]]) -> Table:
    """One line for each way of training."""
    tasks = next(iter(results)).tasks
    names = [f"task {k + 1}" if tasks == "permuted" else f"{2 * k}, {2 * k + 1}" for k in range(TASKS)]
    shown = empty_table(DIGITS[tasks], (*names, "mean", "forgetting"))
    for way, matrix in results.items():
        numbers = [*matrix[-1], *mean_and_forgetting(matrix)]
        shown.add_row(way.name, *(f"{100 * number:.1f} %" for number in numbers))
    return shown


class Share:
    """A job's progress as a part of a bar that others move, too.

    Args:
        progress: Where the bar is.
        bar: Which.
        size: What the whole job moves it by.
        name: Of the job.
    """

    def __init__(self, progress: Progress, bar: Any, size: int, name: str) -> None:
        self.progress, self.bar, self.size, self.name = progress, bar, size, name
        self.shown = 0.0

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Move it."""
        reached = self.size * done / total
        self.progress.update(self.bar, advance=reached - self.shown, description=f"{self.name}, {text}")
        self.shown = reached


def train_agent(arm: str, seed: int, logdir: Path, advance: Callable[[int, int, str], None]) -> dict[str, list[float]]:
    """Mean return on every CartPole after each visit, by the task's name: rl-classic with fewer steps."""
    import torch

    from benchmarks.harness.experiment import Context
    from benchmarks.harness.registry import find_experiment

    torch.set_num_threads(1)
    remove_events(logdir)
    experiment = find_experiment("rl-classic")
    settings = replace(experiment.scales["cpu"], steps=AGENT_STEPS)
    found = experiment.measure(settings, arm, seed, Context(logdir=logdir, progress=advance))
    return found["returns"]


def returns_table(played: dict[str, dict[str, list[float]]]) -> Table:
    """One line for each agent; each task's return when it was new, and at the end."""
    tasks = list(next(iter(played.values())))
    shown = empty_table(f"CartPole and two variants, {AGENT_STEPS:,} steps each", tasks)
    for name, returns in played.items():
        shown.add_row(name, *(f"{returns[task][k]:.0f} -> {returns[task][-1]:.0f}" for k, task in enumerate(tasks)))
    return shown
