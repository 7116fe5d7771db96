"""Three ways to the same sums of squared per-sample gradients: layer rules, `torch.func.vmap`, a loop over samples.

For every parameter they return sum_{c, n} (J_n^T g[c, n])^2 with J_n the Jacobian of the outputs for sample n and g the
scores (likelihood.py). What autograd returns is never written to: it may be one tensor for two parameters (the two of
`x @ (a + b)`, or the two biases of an LSTM), and a square in place would be taken twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from avl_plugins.ewc.calls import Call
from avl_plugins.ewc.rules import MAX_ELEMENTS, Rule, linear_of_squares, needs_squares_only

Sums = dict[str, Tensor]
"""By parameter name; parameters that the outputs do not depend on may be missing."""

Rules = Mapping[str, tuple[nn.Module, Rule]]
"""Layers and their rules by the layer's name in the model."""


def outputs_of(model: nn.Module, x: Tensor, task: int | None) -> Tensor:
    """Return the model's outputs, a row a sample; a TypeError where it returns something else."""
    z = model(x) if task is None else model(x, task)
    if not isinstance(z, Tensor) or z.ndim == 0 or len(z) != len(x):
        what = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"the model must return one tensor with a row a sample ({len(x)}), got {what}")
    return z


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for sums: half precision cannot hold small squares, nor add up thousands of them."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


@torch.no_grad()
def by_rules(
    rules: Rules, params: Mapping[str, Tensor], calls: Mapping[str, list[Call]], z: Tensor, scores: list[Tensor]
) -> Sums:
    """Sums by the layers' rules, from one forward pass; a backward pass a score, down to the layers' outputs.

    Inputs and gradients are brought to the dtype of the layer's parameters, which autocast may have left.
    """
    names = [n for n in rules if n in calls]
    if not names or not z.requires_grad:
        return {}
    outputs = [calls[n][0].output for n in names]
    dtypes = {n: wide(next(rules[n][0].parameters(recurse=False)).dtype) for n in names}
    inputs = {n: x.to(dtypes[n]) if (x := calls[n][0].input).is_floating_point() else x for n in names}
    lean = {n for n in names if needs_squares_only(rules[n][1], inputs[n])}
    squares: dict[str, Tensor] = {}
    each: dict[str, list[Tensor]] = {n: [] for n in names if n not in lean}
    sums: Sums = {}
    with torch.autocast(z.device.type, enabled=False):
        for g in scores:
            grads = torch.autograd.grad(z, outputs, g, retain_graph=True, allow_unused=True, materialize_grads=True)
            for name, gradient in zip(names, grads, strict=True):
                gradient = gradient.to(dtypes[name])
                if name not in lean:
                    each[name].append(gradient)
                elif name in squares:
                    squares[name].addcmul_(gradient, gradient)
                else:
                    squares[name] = gradient.square()
        for name in names:
            layer, rule = rules[name]
            x = inputs[name]
            found = linear_of_squares(x, squares[name]) if name in lean else rule(layer, x, torch.stack(each[name]))
            for p, total in found.items():
                full = f"{name}.{p}" if name else p
                if full in params:
                    sums[full] = total
    return sums


@torch.no_grad()  # the parameters that stay in the model need no graph
def by_vmap(model: nn.Module, params: Mapping[str, Tensor], x: Tensor, task: int | None, scores: list[Tensor]) -> Sums:
    """Sums from per-sample gradients by vmap, in bounded memory."""
    values = {n: p.detach() for n, p in params.items()}
    sums = {n: torch.zeros_like(v, dtype=wide(v.dtype)) for n, v in values.items()}

    def along(values: Sums, x: Tensor, g: Tensor) -> Tensor:
        args = (x.unsqueeze(0),) if task is None else (x.unsqueeze(0), task)
        return (functional_call(model, values, args)[0] * g).sum()

    per_sample = vmap(grad(along), in_dims=(None, 0, 0))
    part = max(1, MAX_ELEMENTS // sum(v.numel() for v in values.values()))
    with warnings.catch_warnings():
        # An LSTM in float32, attention: torch then loops over the samples for that operation alone.
        warnings.filterwarnings(
            "ignore", "There is a performance drop because we have not yet implemented the batching"
        )
        for g in scores:
            for n in range(0, len(x), part):
                for name, grads in per_sample(values, x[n : n + part], g[n : n + part]).items():
                    sums[name] += grads.to(sums[name].dtype).square().sum(0)
    return sums


def by_loop(model: nn.Module, params: Mapping[str, Tensor], x: Tensor, task: int | None, scores: list[Tensor]) -> Sums:
    """The definition itself: a forward pass a sample, a backward pass a sample and score."""
    sums = {n: torch.zeros_like(p, dtype=wide(p.dtype), requires_grad=False) for n, p in params.items()}
    for n in range(len(x)):
        z = outputs_of(model, x[n : n + 1], task)
        if not z.requires_grad:
            continue
        for g in scores:
            grads = torch.autograd.grad(z, list(params.values()), g[n : n + 1], retain_graph=True, allow_unused=True)
            for total, gradient in zip(sums.values(), grads, strict=True):
                if gradient is not None:
                    gradient = gradient.to_dense().to(total.dtype)  # an embedding's may be sparse
                    total.addcmul_(gradient, gradient)
    return sums
