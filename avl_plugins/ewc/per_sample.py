"""Sums of squared per-sample gradients of a whole model: by layer rules, by `torch.func.vmap`, or sample by sample.

`SquaredGradients` picks the cheapest way that is right (sums.py) for every parameter:

1. rules (rules.py) for the layers that have one and are called once a forward pass on inputs of N rows, in every pass,
   checked against the definition on the first two samples seen (rule_check.py);
2. vmap, in bounded memory, for all other parameters that the outputs depend on;
3. a loop over samples where vmap cannot (nn.RNN and nn.GRU, for example), which is logged once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from avl_plugins.ewc.calls import Call, calls_of
from avl_plugins.ewc.rule_check import wrong_rules
from avl_plugins.ewc.rules import MAX_ELEMENTS, Rule, find_rule
from avl_plugins.ewc.selection import leaves
from avl_plugins.ewc.sums import Sums, by_loop, by_rules, by_vmap, outputs_of

log = logging.getLogger(__name__)


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
            y: labels, (N, ...), or None where they are not known.
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
            z = outputs_of(self.model, x, task)
        plan.revise(calls, z, len(x))
        scores = self.scores(z.detach(), y)
        plan.scores = max(plan.scores, len(scores), 1)
        if scores:
            _add(totals, by_rules(plan.rules, self.params, calls, z, scores))
            if plan.rest:
                _add(totals, self._without_rules(plan, x, task, scores))

    def _without_rules(self, plan: _Plan, x: Tensor, task: int | None, scores: list[Tensor]) -> Sums:
        rest = {n: p for n, p in self.params.items() if n in plan.rest}
        if not plan.loop:
            with _failing_module(self.model) as failing:
                try:
                    return by_vmap(self.model, rest, x, task, scores)
                except Exception as error:
                    plan.loop = True
                    log.info(
                        "vmap cannot batch per-sample gradients through %s (%s); using one backward pass a sample, "
                        "which is slow: pass max_samples to bound it",
                        failing(),
                        str(error).split("\n")[0],
                    )
        return by_loop(self.model, rest, x, task, scores)


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
        self.rest: set[str] = set()
        self.loop = False
        self.scores = 0
        layers = {n: (layer, rule) for n, layer in model.named_modules() if (rule := find_rule(layer))}
        self.rules: dict[str, tuple[nn.Module, Rule]] = {n: f for n, f in layers.items() if self.own(n, f[0])}
        with calls_of(self.layers) as calls:
            z = outputs_of(model, x, task)
        self.revise(calls, z, len(x))
        self.rules = {n: found for n, found in self.rules.items() if n in calls}
        own = {n: self.own(n, layer) for n, layer in self.layers.items()}
        for name, reason in wrong_rules(model, self.rules, own, x, task).items():
            self.give_up(name, reason)
        self.elements = sum(t.numel() for t in (z, *(calls[n][0].output for n in self.rules))) // len(x)

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
        used = leaves(z)
        for name, layer in self.layers.items():
            own = self.own(name, layer)
            its_calls = calls.get(name, [])
            if len(its_calls) > 1:
                self.give_up(name, f"is called {len(its_calls)} times in a forward pass")
            elif its_calls and not its_calls[0].fits(rows):
                self.give_up(name, "is not called with one tensor whose rows are the samples")
            elif not its_calls and any(id(self.params[p]) in used for p in own):
                self.give_up(name, "is used without being called")
        ruled = {p for name, layer in self.layers.items() for p in self.own(name, layer)}
        self.rest.update(n for n, p in self.params.items() if id(p) in used and n not in ruled)

    def give_up(self, name: str, reason: str) -> None:
        """Leave a layer's parameters to vmap or the loop."""
        layer, _ = self.rules.pop(name)
        self.rest.update(self.own(name, layer))
        kind = type(layer).__name__
        log.info("the Fisher of layer %r (%s) does without its rule, which is slower: it %s", name, kind, reason)


def _add(totals: Sums, sums: Sums) -> None:
    for name, value in sums.items():  # not in place: a rule may have returned one tensor for two parameters
        totals[name] = totals[name] + value if name in totals else value


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
