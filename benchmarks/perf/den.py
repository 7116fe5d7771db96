"""Speed of DEN's selective retraining beside full retraining, in den-mnist-variation at cpu scale.

The strategies of the arms "plain" and "selective" take turns after each task, as a machine that is busy for a minute
would otherwise slow one of them. Training is as in the experiment, with one thread and denormal numbers taken for zero;
its seconds are those of a task, the first one left out, which is trained in full in both.

Where they go, in a trial that is not recorded here: a step of full retraining takes 3.3 ms, the network 2.4 and Adam
0.4 of them; one of selective retraining 2.3, the network 1.35 and Adam 0.3. The rest, batches, metrics and Avalanche's
loop, is the same in both. Selective retraining trains the head first, which takes a tenth of its seconds.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch

from avl_plugins import DynamicallyExpandableNetwork
from benchmarks.data.arrays import Arrays
from benchmarks.data.mnist_variation import one_vs_rest, over_photographs, rotated, sample_photographs, split_by_class
from benchmarks.den._arms import Seconds, make_plugins, make_strategy
from benchmarks.den.mnist_variation import EXPERIMENT
from benchmarks.harness.experiment import Context
from benchmarks.perf.timing import Line, compare
from benchmarks.training.models import mlp

PER_CLASS = 1000
"""Training images of a class, where there are so many."""
TURNS = 3
"""Tasks for each round."""


def selective(arrays: Arrays, rounds: int) -> list[Line]:
    """Seconds of a task."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        seconds = in_turn(arrays, min(10, 1 + TURNS * rounds))
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    what = "DEN, a task of den-mnist-variation, one thread"
    return [
        Line(f"{what}, full retraining", seconds["plain"]),
        compare(
            f"{what}, selective retraining", seconds["selective"], seconds["plain"], "full retraining", (">=", 1.3)
        ),
    ]


def in_turn(arrays: Arrays, tasks: int) -> dict[str, float]:
    """Median seconds of a task by arm."""
    settings: Any = EXPERIMENT.scales["cpu"]
    of_a_class = min(PER_CLASS, int(np.bincount(arrays.y_train).min()) - 2)
    images = over_photographs(rotated(arrays.x_train, seed=0), sample_photographs(), seed=0)
    parts = split_by_class(images, arrays.y_train, (of_a_class, 1, 1), seed=0, name=arrays.name)
    benchmark, context = one_vs_rest(parts, tasks=tasks), Context()
    strategies: dict[str, tuple[Any, Seconds]] = {}
    for arm in ("plain", "selective"):
        torch.manual_seed(0)
        body = mlp((images[0].size, *settings.widths, 1))[:-1]
        model = DynamicallyExpandableNetwork(body, head="binary")
        strategies[arm] = make_strategy(model, make_plugins(arm, settings), settings, context, tasks)
    for experience in benchmark.train_stream:
        for strategy, _ in strategies.values():
            strategy.train(experience)
    return {arm: statistics.median(clock.seconds[1:]) for arm, (_, clock) in strategies.items()}
