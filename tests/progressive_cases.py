"""Small progressive networks for the tests of their analyses, and a slow Fisher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from avl_plugins import ProgressiveNetwork
from benchmarks.data.arrays import Arrays


def conv_column(index: int = 0, widths: tuple[int, ...] = (5, 6, 7)) -> nn.Sequential:
    """2 x 6 x 6 images; feature maps, flattened maps and units."""
    first, second, third = widths
    return nn.Sequential(
        nn.Conv2d(2, first, 3, padding=1),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(second * 9, third),
        nn.Tanh(),
    )


def conv_network(adapter: Any = "mlp", *, column: Any = conv_column, tasks: int = 3, **options: Any) -> Any:
    """Columns for the tasks 10, 11, ... with three classes each, the last one with a class that does not exist."""
    net = ProgressiveNetwork(column, adapter=adapter, reduction=2, **options)
    for task in range(tasks):
        net.add_task(10 + task, [0, 1, 3] if task == tasks - 1 else 3)
        for module in net.columns[-1].modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 2)
        for name, parameter in net.columns[-1].named_parameters():
            if name.endswith("alpha"):
                nn.init.uniform_(parameter, 0.5, 1.5)
    return net.double().eval()


def images(n: int = 12) -> Tensor:
    """Inputs of `conv_network`."""
    return torch.randn(n, 2, 6, 6, dtype=torch.float64)


def fisher_by_loop(net: Any, x: Tensor, label: int) -> dict[tuple[int, int], Tensor]:
    """F(m, m) by (depth, column) from a loop over samples and classes, with all activations kept for their std."""
    seen: dict[tuple[int, int], list[Tensor]] = {}
    totals: dict[tuple[int, int], Tensor] = {}
    for n in range(len(x)):
        leaves: dict[tuple[int, int], Tensor] = {}

        def tap(column: int, depth: int, h: Tensor, leaves: dict[tuple[int, int], Tensor] = leaves) -> Tensor:
            leaves[depth, column] = h.detach().clone().requires_grad_()
            # The value of the leaf, the derivative of both: h for what is before, the leaf for what is after.
            return h + leaves[depth, column] - leaves[depth, column].detach()

        log_p = net.forward_single_task(x[n : n + 1], label, tap)[0].log_softmax(0)
        for (depth, column), leaf in leaves.items():
            width = net.columns[column].stages[depth].maps
            seen.setdefault((depth, column), []).append(leaf.detach().reshape(width, -1))
            for y in range(len(log_p)):
                if log_p[y] > -1000:
                    (grad,) = torch.autograd.grad(log_p[y], leaf, retain_graph=True, allow_unused=True)
                    if grad is not None:
                        squares = log_p[y].detach().exp() * grad.reshape(width, -1).square().sum(1)
                        totals[depth, column] = totals.get((depth, column), 0) + squares
    std = {place: torch.cat(values, 1).std(1, unbiased=False) for place, values in seen.items()}
    zero = torch.zeros((), dtype=torch.float64)
    return {place: std[place] ** 2 * totals.get(place, zero) / len(x) for place in std}


def trained_on_digits(arrays: Arrays, adapter: Any, second: Any) -> tuple[Any, Tensor, Tensor]:
    """Two columns of two convolutions and a linear layer: digits, then few samples of `second(digits)`."""
    x = torch.from_numpy(arrays.x_train).float().div(255).unsqueeze(1)
    y = torch.from_numpy(arrays.y_train)
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())
    net = ProgressiveNetwork(
        nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 24), nn.ReLU()), adapter=adapter, reduction=2
    )
    for label, inputs, epochs in ((0, x, 20), (1, second(x), 20)):
        net.add_task(label, 10)
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=3e-3)
        net.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(inputs)).split(40):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(inputs[rows], label), y[rows]).backward()
                optimizer.step()
    net.eval()
    return net, second(x), y
