"""Speed and size of progressive networks with 1 to 10 columns beside Avalanche's, fully connected 784-400-400-10.

A step is forward, loss, backward and SGD of the newest column on one batch of 128 images. Adapters are the paper's
(mlp) in both, ours with the default reduction.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from avalanche.models import PNN
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from avl_plugins import ProgressiveNetwork
from avl_plugins.metrics import count_parameters
from avl_plugins.progressive.adapters import Adapter
from benchmarks.data.arrays import Arrays
from benchmarks.perf.timing import Line, compare, rotate
from benchmarks.training.clock import timed

WIDTH = 400
BATCH = 128
COLUMNS = (1, 2, 5, 10)


def columns(arrays: Arrays, rounds: int) -> list[Line]:
    """Step time, its parts, and parameters for each number of columns."""
    x = torch.from_numpy(arrays.x_train[:BATCH]).flatten(1).float() / 255
    y = torch.from_numpy(arrays.y_train[:BATCH])
    lines: list[Line] = []
    for count in COLUMNS:
        lines += _lines(count, x, y, arrays.n_classes, rounds)
    return lines


def _lines(count: int, x: Tensor, y: Tensor, classes: int, rounds: int) -> list[Line]:
    ours, theirs = progressive(x.shape[1], classes, count), avalanche(x.shape[1], classes, count)
    one, apart = progressive(x.shape[1], classes, 1), progressive(x.shape[1], classes, count, adapter=None)
    label = count - 1
    alternatives = {
        "ours": trained(lambda: ours(x, label), ours, y),
        "theirs": trained(lambda: theirs(x, label), theirs, y),
        "one": trained(lambda: one(x, 0), one, y),
        "forward": lambda: forward(apart, x),
        "laterals": lambda: laterals(ours, x),
    }
    if count > 1:
        frozen = ours.frozen_features(x)

        def with_cached() -> Tensor:
            with ours.given_features(frozen):
                return ours(x, label)

        alternatives["cached"] = trained(with_cached, ours, y)
    rotate(1, alternatives)  # the first time costs more
    median = rotate(3 * rounds, alternatives)
    bound = median["forward"] + median["one"] + median["laterals"]
    size, their_size = (count_parameters(net) / 1e6 for net in (ours, theirs))
    text, within = f"{count} column{'s' if count > 1 else ''}", ("<=", 0.6) if count == COLUMNS[-1] else None
    lines = [
        compare(f"step, {text}", median["ours"], median["theirs"], "Avalanche's PNN", within),
        compare(f"million parameters, {text}", size, their_size, "Avalanche's PNN", within),
    ]
    if count > 1:
        parts = "k - 1 forward passes + one column's step + laterals"
        lines += [
            compare(f"step, {text}", median["ours"], bound, parts, ("<=", 1.2)),
            compare(f"step, cached features, {text}", median["cached"], median["ours"], "the step"),
            compare(f"laterals of all columns, {text}", median["laterals"], median["ours"], "the step"),
        ]
    return lines


def progressive(inputs: int, classes: int, count: int, adapter: Adapter | None = "mlp") -> ProgressiveNetwork:
    """Build ours."""
    torch.manual_seed(0)
    layers = (nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    net = ProgressiveNetwork(nn.Sequential(*layers), adapter=adapter)
    for label in range(count):
        net.add_task(label, classes)
    return net


def avalanche(inputs: int, classes: int, count: int) -> PNN:
    """Build Avalanche's."""
    torch.manual_seed(0)
    net = PNN(2, inputs, WIDTH, adapter="mlp")
    for label in range(count):
        dataset = SimpleNamespace(targets_task_labels=[label])
        experience = SimpleNamespace(
            classes_in_this_experience=list(range(classes)), task_labels=[label], dataset=dataset
        )
        for layer in (*net.layers, net.classifier):
            layer.adaptation(experience)
    return net


def trained(forward: Callable[[], Tensor], net: nn.Module, y: Tensor) -> Callable[[], float]:
    """Seconds of a training step: the median of five."""
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(forward(), y).backward()
        optimizer.step()

    return lambda: statistics.median(timed(step) for _ in range(5))


@torch.no_grad()
def forward(net: ProgressiveNetwork, x: Tensor) -> float:
    """Seconds of the forward passes of all columns but the newest, without laterals and heads."""
    columns: list[Any] = list(net.columns)[:-1]
    return statistics.median(timed(lambda: [column(x, []) for column in columns]) for _ in range(5))


def laterals(net: ProgressiveNetwork, x: Tensor) -> float:
    """Seconds of all lateral connections: those of frozen columns forward, the newest column's backward, too."""
    with torch.no_grad():
        features = net.features(x, net.labels[-1])
    columns: list[Any] = list(net.columns)

    def run() -> None:
        for k, column in enumerate(columns):
            stages = [*column.stages[1:], column.head] if column is columns[-1] else column.stages[1:]
            for depth, stage in enumerate(stages):
                if stage.lateral is not None:
                    out = stage.lateral([own[depth] for own in features[:k]])
                    if out.requires_grad:
                        out.sum().backward()

    return statistics.median(timed(run) for _ in range(5))
