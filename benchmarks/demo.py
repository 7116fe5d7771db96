"""`python -m benchmarks demo`: what plain training forgets and EWC and Progressive Networks keep; no download."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.harness.files import check_folder, remove_events

TASKS = 5
EPOCHS = 15
WIDTH = 400
LEARNING_RATE = 0.02
EWC_LAMBDA = 1000.0  # of 300, 1000, 3000 the best on 300 held-out training digits, seeds 100 and 101

AGENTS = {"finetune": "plain agent", "progressive": "progressive agent"}
AGENT_STEPS = 60_000  # in each task, where the experiment rl-classic takes 150,000


def demo(arguments: Sequence[str], console: Console) -> int:
    """Train plainly and with a method, digits and agents; show what is kept, and say how to look at the curves."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks demo",
        description=f"Plain training and EWC on {TASKS} permutations of scikit-learn's 1,797 digits; where gymnasium "
        "is installed, a plain and a progressive agent on three CartPoles.",
    )
    parser.add_argument("--logdir", type=Path, default=Path("runs"), help="TensorBoard logs go to LOGDIR/demo")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logdir = options.logdir / "demo"
    check_folder(logdir, "--logdir")

    agents = AGENTS if find_spec("gymnasium") else {}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("loading Avalanche", total=2 * TASKS * EPOCHS + TASKS * EPOCHS * len(agents) // 2)

        def advance(name: str, task: int) -> None:
            progress.update(bar, advance=1, description=f"{name}, task {task + 1} of {TASKS}")

        results = {}
        for name, folder, ewc_lambda in (("plain training", "plain", None), ("EWC", "ewc", EWC_LAMBDA)):
            if not console.is_terminal:
                console.print(f"{name}: {TASKS} tasks of {EPOCHS} epochs ...", highlight=False)
            results[name] = train(ewc_lambda, options.seed, logdir / folder, partial(advance, name))
        played = {}
        for arm, name in agents.items():
            if not console.is_terminal:
                console.print(f"{name}: 3 CartPoles of {AGENT_STEPS:,} steps ...", highlight=False)
            shown = Share(progress, bar, TASKS * EPOCHS // 2, name)
            played[name] = train_agent(arm, options.seed, logdir / f"cartpole-{arm}", shown)
    console.print(table(results))
    console.print("Accuracy on each task's test digits once all tasks are learnt; forgetting: drop since it was new.")
    if played:
        console.print(returns_table(played))
        console.print("Steps that the pole stays up, 500 at most: when the task was new, and after all tasks.")
    else:
        console.print(
            'gymnasium is not installed (pip install -e ".[bench,rl]"): no agents.',
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    console.print(f"Curves: tensorboard --logdir {logdir}", highlight=False, soft_wrap=True)
    return 0


def train(ewc_lambda: float | None, seed: int, logdir: Path, advance: Callable[[int], None]) -> list[list[float]]:
    """Accuracy on every task after each task: [after][task]."""
    import torch
    from avalanche.core import SupervisedPlugin
    from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
    from avalanche.logging import TensorboardLogger
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive
    from torch import nn

    from avl_plugins import EWCPlugin, InMemoryLoaderPlugin
    from avl_plugins.metrics import capacity_metrics, chaudhry_forgetting_metrics, ewc_metrics
    from benchmarks.data.arrays import digits, permuted

    class Advance(SupervisedPlugin):
        def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            advance(strategy.experience.current_experience)

    torch.set_num_threads(1)  # the fastest for a model this small, and the same numbers everywhere
    torch.manual_seed(seed)
    remove_events(logdir)
    benchmark = permuted(digits(), TASKS, seed=seed)
    model = nn.Sequential(
        *(nn.Linear(64, WIDTH), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout()),
        nn.Linear(WIDTH, benchmark.n_classes),
    )
    ewc = [] if ewc_lambda is None else [EWCPlugin(ewc_lambda=ewc_lambda, penalty_step="proximal")]
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True),
        chaudhry_forgetting_metrics(experience=True, stream=True),
        capacity_metrics(),
        ewc_metrics(epoch=True, experience=True, overlap=True) if ewc else [],
        loggers=[TensorboardLogger(tb_log_dir=logdir)],
    )
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9),
        train_mb_size=32,
        train_epochs=EPOCHS,
        eval_mb_size=512,
        plugins=[InMemoryLoaderPlugin(), *ewc, Advance()],
        evaluator=evaluator,
    )
    return [_learn(strategy, experience, benchmark.test_stream) for experience in benchmark.train_stream]


def _learn(strategy: Any, experience: Any, tests: Any) -> list[float]:
    """Train on one experience; accuracy on every task."""
    strategy.train(experience)
    metrics = strategy.eval(tests)
    return [
        next(
            value for name, value in metrics.items() if name.startswith("Top1_Acc_Exp") and name.endswith(f"{task:03d}")
        )
        for task in range(TASKS)
    ]


def table(results: dict[str, list[list[float]]]) -> Table:
    """One line for each way of training."""
    shown = Table(title=f"Permuted digits, {TASKS} tasks one after the other", title_justify="left")
    shown.add_column("")
    for column in (*(f"task {task + 1}" for task in range(TASKS)), "mean", "forgetting"):
        shown.add_column(column, justify="right")
    for name, after in results.items():
        last = after[-1]
        drops = [after[task][task] - last[task] for task in range(TASKS - 1)]
        numbers = [*last, sum(last) / TASKS, sum(drops) / len(drops)]
        shown.add_row(name, *(f"{100 * number:.1f} %" for number in numbers))
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
    """One line for each agent, two columns for each task."""
    tasks = list(next(iter(played.values())))
    title = f"CartPole and two variants, {AGENT_STEPS:,} steps each, one after the other"
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for task in tasks:
        shown.add_column(f"{task}, new", justify="right")
        shown.add_column("at the end", justify="right")
    for name, returns in played.items():
        pairs = [(returns[task][k], returns[task][-1]) for k, task in enumerate(tasks)]
        shown.add_row(name, *(f"{value:.0f}" for pair in pairs for value in pair))
    return shown
