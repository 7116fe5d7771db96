"""Runs of plain training for the tests of loaders: what batches a strategy sees, and how it ends."""

from __future__ import annotations

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from silent import Silent
from torch import nn
from torch.utils.data import Dataset


class Recorder(SupervisedPlugin):
    """Keep a copy of each batch the strategy sees, and the type of the loader it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[torch.Tensor]] = []
        self.loaders: list[type] = []

    def _record(self, strategy, **kwargs):
        self.batches.append([column.clone() for column in strategy.mbatch])
        self.loaders.append(type(strategy.dataloader))

    before_training_iteration = _record
    before_eval_iteration = _record

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def build(*plugins, cls=Naive, **kwargs):
    """A small network with dropout, on inputs of 64 numbers."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.Dropout(), nn.Linear(8, 10))
    model(torch.zeros(1, 64))
    return cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        eval_mb_size=50,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(loggers=[Silent()]),
        **kwargs,
    )


def run(benchmark, *plugins, cls=Naive, epochs=2, **kwargs):
    """Train and evaluate on two experiences; return the recorder, the final parameters and the random state."""
    recorder = Recorder()
    strategy = build(*plugins, recorder, cls=cls, train_epochs=epochs)
    for experience in list(benchmark.train_stream)[:2]:
        strategy.train(experience, **kwargs)
        strategy.eval(benchmark.test_stream)
    return recorder, parameters(strategy), torch.get_rng_state()


def parameters(strategy):
    return [p.detach().clone() for p in strategy.model.parameters()]


def assert_same(ours, theirs):
    """The same batches, bit for bit, the same parameters and the same random state."""
    assert len(ours[0].batches) == len(theirs[0].batches)
    for batch, expected in zip(ours[0].batches, theirs[0].batches, strict=True):
        assert len(batch) == len(expected)
        for column, wanted in zip(batch, expected, strict=True):
            assert column.dtype == wanted.dtype
            assert torch.equal(column, wanted)
    assert all(torch.equal(a, b) for a, b in zip(ours[1], theirs[1], strict=True))
    assert torch.equal(ours[2], theirs[2])


class Pictures(Dataset):
    """Arrays served one at a time, counted; optionally changed by a function of the array."""

    def __init__(self, n=40, change=None):
        self.x = torch.arange(float(n * 64)).view(n, 64) / 1000
        self.targets = [i % 10 for i in range(n)]
        self.change = change
        self.reads = 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.reads += 1
        x = self.x[index]
        return (x if self.change is None else self.change(x)), self.targets[index]
