"""Small models, strategies and data for the tests of EWCPlugin."""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from avl_plugins.ewc.plugin import EWCPlugin


class MultiHead(MultiTaskModule):
    """A hidden layer and a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 12)
        self.head = MultiHeadClassifier(12, initial_out_features=2, masking=False)

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        return self.head(torch.relu(self.hidden(x)), task_label)


class Growing(nn.Module):
    """A hidden layer and one head that grows with the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 12)
        self.head = IncrementalClassifier(12, initial_out_features=2, masking=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(x)))


class Record(SupervisedPlugin):
    """Keeps each step's loss, and the model at the end of each experience, as seen by a plugin after EWC's."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.ends: list[dict[str, Tensor]] = []

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.losses.append(strategy.loss.item())

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.ends.append(snapshot(strategy.model))


class ToFloat64(nn.Module):
    """Float32 data into a float64 model."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.1)


def naive(model: nn.Module, *plugins: Any, optimizer: Optimizer | None = None, cls: Any = Naive, **kwargs: Any) -> Any:
    options = {"train_mb_size": 50, "train_epochs": 1, "eval_mb_size": 100, "criterion": nn.CrossEntropyLoss()}
    return cls(
        model=model,
        optimizer=optimizer or sgd(model),
        plugins=list(plugins),
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
        **{**options, **kwargs},
    )


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def data_of(experience: Any) -> tuple[Tensor, Tensor]:
    samples = [experience.dataset.eval()[i] for i in range(len(experience.dataset))]
    return torch.stack([s[0] for s in samples]), torch.tensor([int(s[1]) for s in samples])


def batches_of(experience: Any, size: int) -> list[tuple[Tensor, Tensor]]:
    x, y = data_of(experience)
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], **tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def trained(benchmark: Any, plugin: EWCPlugin, model: nn.Module | None = None) -> Any:
    strategy = naive(mlp() if model is None else model, plugin)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    strategy.experience = benchmark.train_stream[1]
    return strategy
