"""Small networks and runs of DEN for the tests."""

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from silent import Silent
from torch import nn

from avl_plugins.den.expansion import add_units
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.den.strategy import DEN

WIDTHS = (12, 9)


def mlp(**options):
    return DynamicallyExpandableNetwork(
        nn.Sequential(nn.Linear(64, WIDTHS[0]), nn.ReLU(), nn.Linear(WIDTHS[0], WIDTHS[1]), nn.ReLU()), **options
    )


def conv(**options):
    """Two convolutions and a linear layer, whose inputs are flattened 2 x 2 feature maps."""
    layers = (
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(20, 9), nn.ReLU(),
    )  # fmt: skip
    return DynamicallyExpandableNetwork(nn.Sequential(*layers), **options)


def all_conv(**options):
    return DynamicallyExpandableNetwork(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2)), features=24, **options
    )


NETWORKS = {"mlp": mlp, "conv": conv, "all_conv": all_conv}
SHAPES = {"mlp": (64,), "conv": (3, 8, 8), "all_conv": (3, 8, 8)}


def grown(kind, counts, tasks=2):
    """A network with so many tasks, of which each but the first has added units, and a batch."""
    net = NETWORKS[kind]()
    for label in range(tasks):
        net.add_task(label, 3)
        if label:
            add_units(net, counts)
    return net.eval(), torch.randn(5, *SHAPES[kind])


def copies(net):
    return [layer.copies() for layer in net.hidden]


def build(net=None, *, optimizer=None, plugins=(), epochs=2, **options):
    torch.manual_seed(0)
    net = net or mlp()
    return DEN(
        model=net,
        optimizer=optimizer(net.parameters()) if optimizer else torch.optim.Adam(net.parameters(), lr=1e-2),
        train_mb_size=16,
        train_epochs=epochs,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(accuracy_metrics(epoch=True, experience=True), loggers=[Silent()]),
        **{"expand_by": 4, "loss_threshold": 0.0, **options},
    )
