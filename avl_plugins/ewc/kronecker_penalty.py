"""The sum of tasks' quadratic penalties with Kronecker-factored precisions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from avl_plugins.ewc.kronecker import KroneckerFisher
from avl_plugins.ewc.kronecker_block import KroneckerBlock, region
from avl_plugins.ewc.kronecker_term import KroneckerTerm
from avl_plugins.ewc.penalty import QuadraticPenalty, check_protected
from avl_plugins.tasks.arguments import check_number


class KroneckerPenalty:
    r"""The sum over tasks t of 1/2 (theta - theta_t)^T F_t (theta - theta_t), F_t as `kronecker_fisher` gives it.

    With W the parameters of a layer as a matrix and F_t = G_t (x) A_t a layer's term is

        1/2 <W - W_t, G_t (W - W_t) A_t>;

    parameters without factors have the diagonal terms of `QuadraticPenalty`. Two ways to go on from task to task:

    `merge` keeps a pair of factors and a centre for every task: the sum is exact, memory and time grow with the number
    of tasks (a sum of Kronecker products is not one).

    `recentre` keeps one pair of factors, the sums of the tasks', and the latest parameters as their centre: the online
    approximation of Ritter et al. 2018 (arXiv:1805.07810), in memory and time independent of t. It has the products
    G_s (x) A_t of different tasks in it, so with t tasks that are alike it is t times as strong as the sum of terms.

    Parameters are known by name and may appear or grow as in `QuadraticPenalty`; lambda is part of the factors. Tensors
    follow the device and dtype of the parameters they are used with.

    Attributes:
        terms: the layers' terms by layer name, in the order in which they were added.
        diagonal: the penalty of the parameters without factors.

    Example:
        >>> from torch import nn
        >>> from avl_plugins.ewc import kronecker_fisher
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> fisher = kronecker_fisher(model, [(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))])
        >>> penalty = KroneckerPenalty()
        >>> penalty.merge(fisher, dict(model.named_parameters()), scale=8.0)  # when a task ends; scale is lambda
        >>> one, both = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> round(float(penalty.value({"weight": one})), 3), float(penalty.value({"weight": both}))
        (1.0, 0.0)
    """

    def __init__(self) -> None:
        self.terms: dict[str, list[KroneckerTerm]] = {}
        self.diagonal = QuadraticPenalty()

    @classmethod
    def joined(cls, penalties: Iterable[KroneckerPenalty]) -> KroneckerPenalty:
        """The sum of several penalties, but for their constants."""
        whole, penalties = cls(), list(penalties)
        for penalty in penalties:
            for layer, terms in penalty.terms.items():
                whole.terms.setdefault(layer, []).extend(terms)
        whole.diagonal = QuadraticPenalty.joined(penalty.diagonal for penalty in penalties)
        return whole

    @torch.no_grad()
    def merge(self, importances: KroneckerFisher, anchor: Mapping[str, Tensor], *, scale: float = 1.0) -> None:
        """Add the term scale/2 (theta - anchor)^T F (theta - anchor).

        Args:
            importances: F.
            anchor: theta at the task's end; it must hold every parameter of `importances`, in the same shapes.
            scale: factor of this task's importances, lambda.

        Raises:
            ValueError: a value is NaN or infinite, F or `scale` is negative, a name is missing, or a shape differs or
                has shrunk. The penalty is then as before.
        """
        terms = dict(self.terms)
        for layer, block in _scaled(importances, anchor, scale).items():
            for term in self.terms.get(layer, []):
                term.check(anchor)
            terms[layer] = [*self.terms.get(layer, []), KroneckerTerm(block, block.matrix(anchor))]
        self.diagonal.merge(importances.rest, anchor, scale=scale)
        self.terms = terms

    @torch.no_grad()
    def recentre(
        self,
        importances: KroneckerFisher,
        anchor: Mapping[str, Tensor],
        *,
        scale: float = 1.0,
        decay: float = 1.0,
    ) -> None:
        """Replace the penalty by one centred at `anchor`, whose factors are the sums of the old and the new ones.

            A <- sqrt(decay) (A + sqrt(scale) A_t),    G <- sqrt(decay) (G + sqrt(scale) G_t),

        so that scale and decay multiply F = G (x) A as they do in `QuadraticPenalty.recentre`.

        Args:
            importances: F.
            anchor: theta at the task's end, with every parameter of `importances` and of the penalty so far.
            scale: factor of this task's importances, lambda.
            decay: gamma.

        Raises:
            ValueError: as in `merge`; or the outputs of a convolution with groups have grown. The penalty is then as
                before.
        """
        check_number("decay", decay, low=0)
        added = _scaled(importances, anchor, scale)
        terms = {}
        for layer in {**self.terms, **added}:
            for term in self.terms.get(layer, []):
                term.check(anchor)
            blocks = [term.block for term in self.terms.get(layer, [])]
            whole = _sum([*blocks, added[layer]] if layer in added else blocks, anchor).scaled(decay)
            if decay > 0:
                terms[layer] = [KroneckerTerm(whole, whole.matrix(anchor))]
        self.diagonal.recentre(importances.rest, anchor, scale=scale, decay=decay)
        self.terms = terms

    @property
    def constant(self) -> float:
        """What the value has beside the distances: the constant of `diagonal`."""
        return self.diagonal.constant

    def value(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The whole sum, a 0-d tensor, differentiable in `parameters`.

        Raises:
            ValueError: a protected parameter is missing from `parameters`, or has shrunk.
        """
        return self.distance(parameters) + self.constant

    def distance(self, parameters: Mapping[str, Tensor], names: Collection[str] | None = None) -> Tensor:
        """The value without the constant, in all terms that have a parameter in `names` (default: all terms).

        It is differentiable in the parameters in `names`.
        """
        if names is not None:
            parameters = {n: theta if n in names else theta.detach() for n, theta in parameters.items()}
        values = [term.value(parameters) for term in self.used(parameters, names)]
        return _total(values, self.diagonal.distance(parameters, names))

    def distance_without(self, parameters: Mapping[str, Tensor], names: Collection[str]) -> Tensor:
        """What `distance` over all terms has beside `distance` over those that have a parameter in `names`."""
        touched = set(self.used(parameters, names))
        values = [term.value(parameters) for term in self.used(parameters) if term not in touched]
        return _total(values, self.diagonal.distance_without(parameters, names))

    @torch.no_grad()
    def add_gradient_(
        self, parameters: Mapping[str, Tensor], scale: float = 1.0, *, names: Collection[str] | None = None
    ) -> None:
        """Add scale times the gradient to `.grad` of the protected parameters that need gradients (default: all).

        For training loops that do not differentiate `value`. A missing `.grad` is created; one with a graph of its own
        gets the penalty's as well.
        """
        self.diagonal.add_gradient_(parameters, scale, names=names)
        for term in self.used(parameters, names):
            grads = [grad for n in term.block.shapes if (grad := parameters[n].grad) is not None]
            with torch.set_grad_enabled(any(grad.requires_grad for grad in grads)):
                for name, gradient in term.gradient(parameters).items():
                    theta = parameters[name]
                    if theta.requires_grad and (names is None or name in names):
                        pull = torch.zeros_like(theta, requires_grad=False)
                        pull[region(gradient.shape)] = gradient * scale
                        theta.grad = pull if theta.grad is None else pull + theta.grad

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise ValueError, naming it, if a protected parameter is missing from `parameters` or has shrunk."""
        for terms in self.terms.values():
            for term in terms:
                term.check(parameters)
        self.diagonal.check(parameters)

    def largest_eigenvalues(self) -> dict[str, float]:
        """The largest eigenvalue of the precision of each term, by parameter name: the largest of its terms."""
        largest = {name: float(precision.max()) for name, precision in self.diagonal.precision.items()}
        for terms in self.terms.values():
            for term in terms:
                for name in term.block.shapes:
                    largest[name] = max(term.largest_eigenvalue(), largest.get(name, 0.0))
        return largest

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: the terms by layer name, and the state of `diagonal`."""
        terms = {layer: [term.state_dict() for term in terms] for layer, terms in self.terms.items()}
        return {"terms": terms, "diagonal": self.diagonal.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the state of `state_dict()`; tensors are copied.

        Raises:
            ValueError: entries are missing or unknown, factors, centres and shapes do not fit, or values are not
                finite. The penalty is then as before.
        """
        expected = {"terms", "diagonal"}
        if not isinstance(state, Mapping) or set(state) != expected:
            got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"a Kronecker penalty's state has the entries {sorted(expected)}, got {got}")
        if not isinstance(state["terms"], Mapping) or not all(isinstance(t, list) for t in state["terms"].values()):
            raise ValueError(f"a Kronecker penalty's terms must be lists by layer name, got {state['terms']!r}")
        terms = {layer: [KroneckerTerm.from_state(term) for term in states] for layer, states in state["terms"].items()}
        self.diagonal.load_state_dict(state["diagonal"])
        self.terms = terms

    def used(self, parameters: Mapping[str, Tensor], names: Collection[str] | None = None) -> Iterator[KroneckerTerm]:
        """The terms that have a parameter in `names`, brought to the parameters' device and dtype for good."""
        for terms in self.terms.values():
            for k, term in enumerate(terms):
                if names is None or any(name in names for name in term.block.shapes):
                    term.check(parameters)
                    terms[k] = term.fitted(parameters)
                    yield terms[k]


def _total(values: list[Tensor], diagonal: Tensor) -> Tensor:
    """The sum of terms, on the first one's device and in its dtype."""
    values = [*values, diagonal]
    return torch.stack([value.to(values[0]) for value in values]).sum()


def _scaled(importances: KroneckerFisher, anchor: Mapping[str, Tensor], scale: float) -> dict[str, KroneckerBlock]:
    """Scaled blocks that are not zero, in the anchor's dtype and on its device, every value checked."""
    check_number("scale (lambda)", scale, low=0)
    scaled = {}
    for layer, block in importances.blocks.items():
        block.check()
        for name, shape in block.shapes.items():
            check_protected(anchor, name, shape)
            theta = anchor[name]
            if theta.shape != shape:
                raise ValueError(f"the Fisher of {name!r} is for shape {shape}, its parameter has {tuple(theta.shape)}")
            if not theta.isfinite().all():
                raise ValueError(f"parameter {name!r} has NaN or infinite entries: nothing to anchor to")
        block = block.scaled(scale).to(anchor[name].detach())
        if block.inputs.any() and block.outputs.any():
            scaled[layer] = _finite(block)
    return scaled


def _sum(blocks: list[KroneckerBlock], anchor: Mapping[str, Tensor]) -> KroneckerBlock:
    """The block of the sums of factors, at the anchor's shapes."""
    shapes = {name: tuple(anchor[name].shape) for block in blocks for name in block.shapes}
    groups = max(len(block.outputs) for block in blocks)
    grown = [block.grown(shapes, groups).to(anchor[next(iter(shapes))]) for block in blocks]
    inputs, outputs = (sum(getattr(block, factor) for block in grown) for factor in ("inputs", "outputs"))
    return _finite(KroneckerBlock(shapes, inputs, outputs))


def _finite(block: KroneckerBlock) -> KroneckerBlock:
    for factor in (block.inputs, block.outputs):
        if not factor.isfinite().all():
            raise ValueError(f"the precision of {list(block.shapes)} overflows {factor.dtype}: lower lambda")
    return block
