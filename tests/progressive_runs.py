"""Runs of progressive networks in Avalanche for the tests: small columns and strategies."""

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from silent import Silent
from torch import nn

from avl_plugins import Progressive, ProgressiveNetwork

UNSEEN = "ignore:task . has not been trained on yet"
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1),
}


def column():
    return nn.Sequential(
        nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, 20), nn.ReLU()
    )


def build(net=None, optimizer="momentum", plugins=(), metrics=(), strategy=Progressive, make_optimizer=None, **options):
    torch.manual_seed(0)
    net = net or ProgressiveNetwork(column())
    return strategy(
        model=net,
        optimizer=make_optimizer(net) if make_optimizer else OPTIMIZERS[optimizer](net.parameters()),
        train_mb_size=32,
        train_epochs=options.pop("train_epochs", 2),
        eval_mb_size=64,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), *metrics, loggers=[Silent()]),
        **options,
    )
