"""Sums of squared per-sample gradients, layer by layer, without storing per-sample gradients where that is possible.

A rule is a function `rule(layer, x, g) -> {parameter name: tensor}` with

    x   the layer's input, (N, ...)
    g   gradients at the layer's output, one for each of C scores, (C, N, ...)

that returns, for every parameter p of the layer, sum_{c, n} (d<g[c, n], output_n> / dp)^2 in the shape of p. For a
linear layer on vectors the per-sample gradient is the outer product g x^T, whose square factorises: the whole sum is
one matrix product of (sum_c g^2) and x^2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Rule = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]

MAX_ELEMENTS = 2**25
"""Largest temporary a rule makes, in elements (128 MiB in float32)."""

_RULES: dict[type[nn.Module], Rule] = {}


def register_fisher_rule(*layer_types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule (see the module's docstring) for layers of exactly these types.

    A rule is checked against the definition on the first two samples it sees, and not used where it is wrong, for
    example because the model also uses the layer's weight outside the layer.

    Args:
        *layer_types: classes of layers; subclasses are not meant.

    Raises:
        TypeError: one is no class of `nn.Module`.

    Example:
        >>> class Scale(nn.Module):
        ...     def __init__(self, features):
        ...         super().__init__()
        ...         self.factor = nn.Parameter(torch.ones(features))
        ...
        ...     def forward(self, x):
        ...         return x * self.factor
        >>> @register_fisher_rule(Scale)
        ... def scale(layer, x, g):
        ...     return {"factor": (g * x).square().sum((0, 1))}
        >>> find_rule(Scale(3)) is scale
        True
    """
    for layer_type in layer_types:
        if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
            raise TypeError(f"register_fisher_rule takes nn.Module classes, got {layer_type!r}")

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(layer_types, rule))
        return rule

    return register


def find_rule(layer: nn.Module) -> Rule | None:
    """Return the rule for this very type (a subclass may compute something else), or None."""
    return _RULES.get(type(layer))


@register_fisher_rule(nn.Linear)
def linear(layer: nn.Linear, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Linear layer on vectors (N, in) or on sequences (N, ..., in)."""
    if x.ndim == 2:
        return linear_of_squares(x, g.square().sum(0))
    x, g = x.flatten(1, -2), g.flatten(2, -2)
    return {
        "weight": _sum_of_squared_products(g.transpose(2, 3), x),
        "bias": _square_sum(g.sum(2)),
    }


def needs_squares_only(rule: Rule, x: Tensor) -> bool:
    """Whether `linear_of_squares` does the work of this rule on this input: the gradients need not be kept then."""
    return rule is linear and x.ndim == 2


def linear_of_squares(x: Tensor, squares: Tensor) -> dict[str, Tensor]:
    """Linear layer on vectors, from sum_c g[c]^2, (N, out)."""
    return {"weight": squares.T @ x.square(), "bias": squares.sum(0)}


@register_fisher_rule(nn.Conv1d, nn.Conv2d)
def convolution(layer: nn.Conv1d | nn.Conv2d, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Convolution with any stride, padding, dilation and groups, as a linear map on unfolded patches."""
    groups, patches = layer.groups, unfolded(layer, x)
    grads = g.flatten(3).unflatten(2, (groups, -1))  # (C, N, groups, out / groups, positions)
    weight = [_sum_of_squared_products(grads[:, :, k], patches[:, k].transpose(1, 2)) for k in range(groups)]
    return {
        "weight": torch.cat(weight).reshape(layer.weight.shape),
        "bias": _square_sum(g.flatten(3).sum(3)),
    }


def unfolded(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """The patches that a convolution's weight is multiplied with, (N, groups, in * kernel / groups, positions)."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if x.ndim == 3:
        x = x.unsqueeze(2)
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
    return functional.unfold(x, kernel, dilation=dilation, stride=stride).unflatten(1, (layer.groups, -1))


@register_fisher_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(layer: nn.modules.batchnorm._BatchNorm, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Batch normalisation in eval mode: an affine map of the normalised input, channel by channel."""
    mean, var = (torch.as_tensor(statistic, dtype=x.dtype) for statistic in (layer.running_mean, layer.running_var))
    normal = functional.batch_norm(x, mean, var, eps=layer.eps)
    return _scale_and_shift(normal, g, positions=range(2, x.ndim))


@register_fisher_rule(nn.GroupNorm)
def group_norm(layer: nn.GroupNorm, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Group normalisation: scale and shift a channel."""
    normal = functional.group_norm(x, layer.num_groups, eps=layer.eps)
    return _scale_and_shift(normal, g, positions=range(2, x.ndim))


@register_fisher_rule(nn.LayerNorm)
def layer_norm(layer: nn.LayerNorm, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Layer normalisation over the last dimensions; the others but the first are positions."""
    normal = functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    return _scale_and_shift(normal, g, positions=range(1, x.ndim - len(layer.normalized_shape)))


@register_fisher_rule(nn.Embedding)
def embedding(layer: nn.Embedding, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Embedding of indices (N, ...): a row that a sample uses several times gets the sum, then the square."""
    scores, samples = g.shape[:2]
    rows, dim = layer.num_embeddings, layer.embedding_dim
    x = x.reshape(samples, -1)
    grads = g.reshape(scores, -1, dim)
    sample = torch.arange(samples, device=x.device).unsqueeze(1)
    used, where, times = torch.unique((sample * rows + x).flatten(), return_inverse=True, return_counts=True)
    total = torch.zeros(rows, dim, dtype=g.dtype, device=g.device)
    for c in range(scores):
        sums = torch.zeros(len(used), dim, dtype=g.dtype, device=g.device).index_add_(0, where, grads[c])
        if layer.scale_grad_by_freq:
            sums /= times.unsqueeze(1)
        total.index_add_(0, used % rows, sums.square_())
    if layer.padding_idx is not None:
        total[layer.padding_idx] = 0
    return {"weight": total}


def _scale_and_shift(normal: Tensor, g: Tensor, positions: range) -> dict[str, Tensor]:
    over = [d + 1 for d in positions]
    scale, shift = g * normal, g
    if over:
        scale, shift = scale.sum(over), shift.sum(over)
    return {"weight": _square_sum(scale), "bias": _square_sum(shift)}


def _square_sum(per_sample: Tensor) -> Tensor:
    """(C, N, ...) -> sum of squares over C and N."""
    return per_sample.square().sum((0, 1))


def _sum_of_squared_products(a: Tensor, b: Tensor) -> Tensor:
    """Sum_{c, n} (a[c, n] @ b[n])^2 for a (C, N, o, T) and b (N, T, i), a bounded part at a time."""
    o, i = a.shape[2], b.shape[2]
    part = max(1, MAX_ELEMENTS // (o * i))
    total = torch.zeros(o, i, dtype=a.dtype, device=a.device)
    for c in range(len(a)):
        for n in range(0, len(b), part):
            total += torch.bmm(a[c, n : n + part], b[n : n + part]).square_().sum(0)
    return total
