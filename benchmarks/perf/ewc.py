"""Speed of EWC beside Avalanche's and beside a bare PyTorch loop: permuted MNIST, 784-400-400-10, batch 128."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins import EWCPlugin as AvalancheEWCPlugin
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from avl_plugins import EWCPlugin, InMemoryLoaderPlugin, diagonal_fisher
from avl_plugins.data.loading import batches_in_memory
from benchmarks.data.arrays import Arrays, permuted
from benchmarks.perf.timing import EpochTimer, Line, compare, few, rotate
from benchmarks.training.clock import timed
from benchmarks.training.models import mlp

HIDDEN = (400, 400)
BATCH = 128


def model_for(arrays: Arrays) -> torch.nn.Sequential:
    """The net of all comparisons."""
    torch.manual_seed(0)
    return mlp((arrays.x_train[0].size, *HIDDEN, arrays.n_classes))


def strategy_for(arrays: Arrays, plugins: list[SupervisedPlugin]) -> Naive:
    """Build plain training of that net with the accuracy metric on."""
    model = model_for(arrays)
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=BATCH,
        plugins=plugins,
        evaluator=EvaluationPlugin(accuracy_metrics(epoch=True), loggers=[]),
    )


def epochs(arrays: Arrays, rounds: int) -> list[Line]:
    """(a) The third task: an epoch, and an epoch with the Fisher that follows. The first two tasks are short."""
    short, full = (permuted(part, 3, seed=0) for part in (few(arrays), arrays))
    third = full.train_stream[2]
    times: dict[str, list[float]] = {}

    def third_task(name: str) -> Callable[[], float]:
        def run() -> float:
            timer = EpochTimer()
            strategy = strategy_for(arrays, [*MAKERS[name](), timer])
            strategy.train(short.train_stream[0])
            strategy.train(short.train_stream[1])
            seconds = timed(lambda: strategy.train(third))
            times.setdefault(name, []).append(timer.seconds[-1])
            return seconds

        return run

    x, y = next(batches_in_memory(third.dataset, len(third.dataset)))[:2]

    def bare() -> float:
        model = model_for(arrays)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        started = perf_counter()
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        return perf_counter() - started

    whole = rotate(rounds, {"bare": bare} | {name: third_task(name) for name in MAKERS})
    epoch = {name: statistics.median(seconds) for name, seconds in times.items()}
    return [
        Line("epoch, bare PyTorch loop", whole["bare"]),
        compare("epoch, ours", epoch["exact"], whole["bare"], "bare loop", ("<=", 1.8)),
        compare("epoch, Avalanche's EWC", epoch["avalanche"], whole["bare"], "bare loop"),
        Line("epoch and Fisher, Avalanche's EWC", whole["avalanche"]),
        compare("epoch and Fisher, ours, sampled", whole["sampled"], whole["avalanche"], "Avalanche's", (">=", 5)),
        compare("epoch and Fisher, ours, exact", whole["exact"], whole["avalanche"], "Avalanche's", (">=", 5)),
        compare(
            "epoch and Fisher, ours, exact n=10,000", whole["exact-10000"], whole["avalanche"], "Avalanche's", (">=", 5)
        ),
    ]


MAKERS: dict[str, Callable[[], list[SupervisedPlugin]]] = {
    "exact": lambda: [InMemoryLoaderPlugin(), EWCPlugin(ewc_lambda=1.0)],
    "exact-10000": lambda: [InMemoryLoaderPlugin(), EWCPlugin(ewc_lambda=1.0, max_samples=10_000)],
    "sampled": lambda: [InMemoryLoaderPlugin(), EWCPlugin(ewc_lambda=1.0, fisher_labels="sampled")],
    "avalanche": lambda: [AvalancheEWCPlugin(ewc_lambda=1.0)],
}


def fishers(arrays: Arrays, rounds: int) -> list[Line]:
    """(b) One Fisher over all training images."""
    dataset = permuted(arrays, 1, seed=0).train_stream[0].dataset
    model = model_for(arrays)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def ours(labels: Any) -> Callable[[], float]:
        return lambda: timed(lambda: diagonal_fisher(model, batches_in_memory(dataset, 1000), labels=labels))

    def avalanches() -> float:
        plugin = AvalancheEWCPlugin(ewc_lambda=1.0)
        arguments = (model, torch.nn.CrossEntropyLoss(), optimizer, dataset, torch.device("cpu"), BATCH)
        return timed(lambda: plugin.compute_importances(*arguments))

    names = ("exact", "sampled", "empirical")
    median = rotate(rounds, {name: ours(name) for name in names} | {"avalanche": avalanches})
    per_sample = timed(lambda: vmap_fisher(model, batches_in_memory(dataset, 100)))
    lines = [
        Line("Fisher, one label, vmap in parts of 100 images (one round)", per_sample),
        Line("Fisher, Avalanche's pass (squared batch gradients)", median["avalanche"]),
    ]
    for name in names:
        one_label = name != "exact"
        lines.append(compare(f"Fisher, {name}", median[name], per_sample, "vmap", (">=", 20) if one_label else None))
        lines.append(
            compare(
                f"Fisher, {name}",
                median[name],
                median["avalanche"],
                "Avalanche's pass",
                ("<=", 1) if one_label else None,
            )
        )
    return lines


def vmap_fisher(model: torch.nn.Module, batches: Any) -> dict[str, torch.Tensor]:
    """Compute the empirical Fisher with per-sample gradients from torch.func, as one would write it by hand."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(functional_call(model, parameters, (x.unsqueeze(0),)), y.unsqueeze(0))

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))
    count = 0
    for x, y, _ in batches:
        for name, gradients in per_sample(parameters, x, y).items():
            sums[name] += gradients.square().sum(0)
        count += len(x)
    return {name: total / count for name, total in sums.items()}


def steps(arrays: Arrays, rounds: int) -> list[Line]:
    """(c) A training step with no, 1, 10 and 100 remembered tasks, and Avalanche's with 10."""
    experience = permuted(few(arrays, 12_800), 1, seed=0).train_stream[0]
    batches = -(-len(experience.dataset) // BATCH)

    def with_tasks(tasks: int | None) -> Callable[[], float]:
        def run() -> float:
            timer = EpochTimer()
            plugins: list[SupervisedPlugin] = [InMemoryLoaderPlugin(), timer]
            if tasks is not None:
                plugins.append(ewc := EWCPlugin(ewc_lambda=1.0, max_samples=1))
            strategy = strategy_for(arrays, plugins)
            for _ in range(tasks or 0):
                anchor = {name: p.detach() for name, p in strategy.model.named_parameters()}
                ewc.penalty.merge({name: torch.rand_like(p) for name, p in anchor.items()}, anchor)
            strategy.train(experience)
            return timer.seconds[-1] / batches

        return run

    counts: dict[str, int | None] = {"none": None, "1": 1, "10": 10, "100": 100}
    median = rotate(3 * rounds, {name: with_tasks(tasks) for name, tasks in counts.items()})
    return [
        Line("step without EWC", median["none"]),
        compare("step, 1 task remembered", median["1"], median["none"], "without EWC", ("<=", 1.2)),
        compare("step, 10 tasks remembered", median["10"], median["1"], "1 task"),
        compare("step, 100 tasks remembered", median["100"], median["1"], "1 task", ("<=", 1.1)),
    ]
