"""Sums of squared per-sample gradients of a whole model: by layer rules, by `torch.func.vmap`, or sample by sample.

All three compute, for every parameter, sum_{c, n} (J_n^T g[c, n])^2 with J_n the Jacobian of the outputs for sample n
and g the scores (likelihood.py). `SquaredGradients` picks the cheapest one that is right:

1. rules (rules.py) for the layers that have one and are called once a forward pass on inputs of N rows, in every pass,
   checked against the definition on the first two samples seen;
2. vmap, in bounded memory, for all other parameters that the outputs depend on;
3. a loop over samples where vmap cannot (nn.RNN and nn.GRU, for example), which is logged once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from avl_plugins.ewc.calls import Call, calls_of
from avl_plugins.ewc.rules import MAX_ELEMENTS, Rule, find_rule, linear_of_squares, needs_squares_only
from avl_plugins.ewc.selection import leaves

log = logging.getLogger(__name__)

Sums = dict[str, Tensor]


class SquaredGradients:
    """Adds up squared per-sample gradients of one model's trainable parameters.

    Args:
        model: in eval mode, with `forward(x)`, or, for a model with `forward_single_task` (Avalanche's
            `MultiTaskModule`), `forward(x, task_label)` with an int.
        scores: from outputs (detached) and labels to a list of scores shaped as the outputs.
    """

    def __init__(self, model: nn.Module, scores: Callable[[Tensor, Tensor | None], list[Tensor]]):
        self.model = model
        self.scores = scores
        self.params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.plans: dict[int | None, _Plan] = {}

    def __call__(self, x: Tensor, y: Tensor | None, task: int | None) -> Sums:
        """Return the sums over this batch, by parameter name; parameters without influence are left out.

        Args:
            x: inputs, (N, ...).
            y: labels, (N, ...), or None where the scores do not need them.
            task: the task label of the whole batch, for a multi-task model.
        """
        if task not in self.plans:
            self.plans[task] = self.make_plan(x[:2], task)
        plan = self.plans[task]
        totals: Sums = {}
        start = 0
        while start < len(x):
            stop = start + plan.samples_at_once
            self._part(plan, x[start:stop], None if y is None else y[start:stop], task, totals)
            start = stop
        return totals

    def make_plan(self, x: Tensor, task: int | None) -> _Plan:
        """Decide from the first one or two samples how each parameter is handled."""
        return _Plan(self.model, self.params, x, task)

    def _part(self, plan: _Plan, x: Tensor, y: Tensor | None, task: int | None, totals: Sums) -> None:
        with calls_of(plan.layers) as calls:
            z = _outputs(self.model, x, task)
        plan.revise(calls, z, len(x))
        scores = self.scores(z.detach(), y)
        plan.scores = max(plan.scores, len(scores), 1)
        if scores:
            _add(totals, _by_rules(plan.rules, self.params, calls, z, scores))
            if plan.rest:
                _add(totals, self._without_rules(plan, x, task, scores))

    def _without_rules(self, plan: _Plan, x: Tensor, task: int | None, scores: list[Tensor]) -> Sums:
        rest = {n: p for n, p in self.params.items() if n in plan.rest}
        if not plan.loop:
            with _failing_module(self.model) as failing:
                try:
                    return _by_vmap(self.model, rest, x, task, scores)
                except Exception as error:
                    plan.loop = True
                    log.info(
                        "vmap cannot batch per-sample gradients through %s (%s); using one backward pass a sample, "
                        "which is slow: pass max_samples to bound it",
                        failing(),
                        str(error).split("\n")[0],
                    )
        return _by_loop(self.model, rest, x, task, scores)


class _Plan:
    """Which parameters are handled how, for one task label: made on one or two samples, revised when others differ.

    Attributes:
        rules: layers and their rules, by the layer's name in the model.
        rest: names of the other parameters that the outputs depend on, for vmap or the loop.
        loop: whether vmap has failed.
        scores: the most scores that a sample has had so far; 0 means not known yet.
    """

    def __init__(self, model: nn.Module, params: dict[str, nn.Parameter], x: Tensor, task: int | None):
        self.params = params
        self.rules: dict[str, tuple[nn.Module, Rule]] = {}
        self.rest: set[str] = set()
        self.loop = False
        self.scores = 0
        layers = {n: (layer, rule) for n, layer in model.named_modules() if (rule := find_rule(layer))}
        self.rules = {n: found for n, found in layers.items() if self.own(n, found[0])}
        with calls_of(self.layers) as calls:
            z = _outputs(model, x, task)
        if not isinstance(z, Tensor) or z.ndim == 0 or len(z) != len(x):
            what = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise TypeError(f"the model must return one tensor with a row a sample ({len(x)}), got {what}")
        self.rules = {n: found for n, found in self.rules.items() if n in calls}
        self.revise(calls, z, len(x))
        self._drop_wrong_rules(model, calls, z, x, task)
        sizes = [calls[n][0].output.numel() // len(x) for n in self.rules]
        self.elements = z.numel() // len(x) + sum(sizes)

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The layers that have a rule, by name."""
        return {name: layer for name, (layer, _) in self.rules.items()}

    @property
    def samples_at_once(self) -> int:
        """How many samples' output gradients fit in memory; one to begin with, to learn how many scores there are."""
        return max(1, MAX_ELEMENTS // max(1, self.scores * self.elements)) if self.scores else 1

    def own(self, name: str, layer: nn.Module) -> list[str]:
        """Names of a layer's own trainable parameters."""
        prefix = f"{name}." if name else ""
        return [prefix + n for n, _ in layer.named_parameters(recurse=False) if prefix + n in self.params]

    def revise(self, calls: dict[str, list[Call]], z: Tensor, rows: int) -> None:
        """Take layers that this pass used otherwise off the rules, and take in parameters that none has used before."""
        for name, its_calls in calls.items():
            if len(its_calls) != 1 or not its_calls[0].fits(rows):
                self.rest.update(self.own(name, self.rules.pop(name)[0]))
        used = leaves(z)
        ruled = {p for name, (layer, _) in self.rules.items() for p in self.own(name, layer)}
        self.rest.update(n for n, p in self.params.items() if id(p) in used and n not in ruled)

    def _drop_wrong_rules(
        self, model: nn.Module, calls: dict[str, list[Call]], z: Tensor, x: Tensor, task: int | None
    ) -> None:
        """Compare every rule with the definition: the layer's weight may be used outside the layer, for example."""
        if not self.rules or not z.requires_grad:
            return
        generator = torch.Generator().manual_seed(0)
        scores = [torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)]
        names = {n: self.own(n, layer) for n, (layer, _) in self.rules.items()}
        found = _by_rules(self.rules, self.params, calls, z, scores)
        truth = _by_loop(model, {p: self.params[p] for ps in names.values() for p in ps}, x, task, scores)
        for name, ps in names.items():
            if not all(p in found and _close(found[p], truth[p]) for p in ps):
                del self.rules[name]
                self.rest.update(ps)


def _close(a: Tensor, b: Tensor) -> bool:
    relative = max(1e-3, 8 * torch.finfo(b.dtype).eps)
    return a.shape == b.shape and bool((a - b).abs().max() <= relative * b.abs().max())


@torch.no_grad()
def _by_rules(
    rules: dict[str, tuple[nn.Module, Rule]],
    params: dict[str, nn.Parameter],
    calls: dict[str, list[Call]],
    z: Tensor,
    scores: list[Tensor],
) -> Sums:
    names = [n for n in rules if n in calls]
    if not names or not z.requires_grad:
        return {}
    outputs = [calls[n][0].output for n in names]
    lean = {n for n in names if needs_squares_only(rules[n][1], calls[n][0].input)}
    squares: dict[str, Tensor] = {}
    each: dict[str, list[Tensor]] = {n: [] for n in names if n not in lean}
    for g in scores:
        grads = torch.autograd.grad(z, outputs, g, retain_graph=True, allow_unused=True, materialize_grads=True)
        for name, gradient in zip(names, grads, strict=True):
            if name not in lean:
                each[name].append(gradient)
            elif name in squares:
                squares[name].addcmul_(gradient, gradient)
            else:
                squares[name] = gradient.square()
    sums: Sums = {}
    for name in names:
        layer, rule = rules[name]
        x = calls[name][0].input
        found = linear_of_squares(x, squares[name]) if name in lean else rule(layer, x, torch.stack(each[name]))
        for p, total in found.items():
            full = f"{name}.{p}" if name else p
            if full in params:
                sums[full] = total
    return sums


@torch.no_grad()  # the parameters that stay in the model need no graph
def _by_vmap(
    model: nn.Module, params: dict[str, nn.Parameter], x: Tensor, task: int | None, scores: list[Tensor]
) -> Sums:
    values = {n: p.detach() for n, p in params.items()}
    sums = {n: torch.zeros_like(v) for n, v in values.items()}

    def along(values: Sums, x: Tensor, g: Tensor) -> Tensor:
        args = (x.unsqueeze(0),) if task is None else (x.unsqueeze(0), task)
        return (functional_call(model, values, args)[0] * g).sum()

    per_sample = vmap(grad(along), in_dims=(None, 0, 0))
    part = max(1, MAX_ELEMENTS // sum(v.numel() for v in values.values()))
    for g in scores:
        for n in range(0, len(x), part):
            for name, grads in per_sample(values, x[n : n + part], g[n : n + part]).items():
                sums[name] += grads.square_().sum(0)
    return sums


def _by_loop(
    model: nn.Module, params: dict[str, nn.Parameter], x: Tensor, task: int | None, scores: list[Tensor]
) -> Sums:
    """The definition itself: a forward pass a sample, a backward pass a sample and score."""
    sums = {n: torch.zeros_like(p) for n, p in params.items()}
    for n in range(len(x)):
        z = _outputs(model, x[n : n + 1], task)
        for g in scores:
            grads = torch.autograd.grad(z, list(params.values()), g[n : n + 1], retain_graph=True, allow_unused=True)
            for total, gradient in zip(sums.values(), grads, strict=True):
                if gradient is not None:
                    total.addcmul_(gradient, gradient)
    return sums


def _outputs(model: nn.Module, x: Tensor, task: int | None) -> Tensor:
    return model(x) if task is None else model(x, task)


def _add(totals: Sums, sums: Sums) -> None:
    for name, value in sums.items():
        if name in totals:
            totals[name] += value
        else:
            totals[name] = value


@contextmanager
def _failing_module(model: nn.Module) -> Iterator[Callable[[], str]]:
    """Know which module was being called when something failed, by its name and type."""
    names = {module: name or type(model).__name__ for name, module in model.named_modules()}
    stack: list[nn.Module] = []
    enter = register_module_forward_pre_hook(lambda module, args: stack.append(module))

    def pop(module: nn.Module, args: tuple, output: object) -> None:
        stack.pop()

    leave = register_module_forward_hook(pop)

    def describe() -> str:
        inside = [m for m in stack if m in names]
        return f"{names[inside[-1]]} ({type(inside[-1]).__name__})" if inside else type(model).__name__

    try:
        yield describe
    finally:
        enter.remove()
        leave.remove()
