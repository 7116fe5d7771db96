"""Whether the layers' rules are right in a model: its weights may be used outside their layers, for example."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from avl_plugins.ewc.calls import calls_of
from avl_plugins.ewc.sums import Rules, Sums, by_loop, by_rules, outputs_of

log = logging.getLogger(__name__)

T = TypeVar("T")
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest error that rounding explains, in units of the parameter's largest sum."""
DRAWS = 3
"""How many scores a rule is tried with before it is given up."""


def wrong_rules(
    model: nn.Module, rules: Rules, own: Mapping[str, list[str]], x: Tensor, task: int | None
) -> dict[str, str]:
    """Return the layers whose rules differ from the definition on these samples, each with a word on by how much.

    It is decided in float64. In float32 samples together and alone differ by rounding, and where that turns a ReLU
    over the whole difference may be larger than the error of a rule that is wrong. A model that does not run in
    float64 is compared in its own dtype.

    Args:
        model: in eval mode.
        rules: layers and their rules, by name; each layer is called once in a forward pass.
        own: names of each layer's own trainable parameters.
        x: two samples or more.
        task: their task label, for a multi-task model.
    """
    if not rules:
        return {}
    try:
        return _in_float64(model, lambda: _wrong_rules(model, rules, own, _double(x), task))
    except Exception as error:
        reason = str(error).split("\n")[0]
        log.info("the model does not run in float64 (%s): the Fisher's rules are checked in its own dtype", reason)
    return _wrong_rules(model, rules, own, x, task)


def _wrong_rules(
    model: nn.Module, rules: Rules, own: Mapping[str, list[str]], x: Tensor, task: int | None
) -> dict[str, str]:
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(0)
    with calls_of({n: layer for n, (layer, _) in rules.items()}) as calls:
        z = outputs_of(model, x, task)
    if not z.requires_grad:
        return {}
    doubtful = {n: float("inf") for n in rules}
    for _ in range(DRAWS):
        scores = [torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)]
        found = by_rules({n: rules[n] for n in doubtful}, params, calls, z, scores)
        truth = by_loop(model, {p: params[p] for n in doubtful for p in own[n]}, x, task, scores)
        errors = {n: max(_error(p, found, truth) for p in own[n]) for n in doubtful}
        doubtful = {n: error for n, error in errors.items() if not error <= TOLERANCE[z.dtype]}
        if not doubtful:
            break
    return {n: f"differs from the definition by {error:.2g} of the largest value" for n, error in doubtful.items()}


def _error(name: str, found: Sums, truth: Sums) -> float:
    a, b = found.get(name), truth[name]
    if a is None or a.shape != b.shape:
        return float("inf")
    error, scale = float((a - b).abs().max()), float(b.abs().max())
    return error / scale if scale else (0.0 if error == 0 else float("inf"))


def _in_float64(model: nn.Module, function: Callable[[], T]) -> T:
    """Call a function while the model's parameters and buffers are float64 copies of what they are."""

    class Calling(nn.Module):
        """Holds the model, so that `functional_call` can put the copies in its place."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> T:
            return function()

    tensors = {n: t for named in (model.named_parameters(), model.named_buffers()) for n, t in named}
    copies = {f"model.{n}": _double(t.detach()).requires_grad_(t.requires_grad) for n, t in tensors.items()}
    return functional_call(Calling(), copies, ())


def _double(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t
