"""One quadratic term of a penalty: a Kronecker-factored precision and the parameters it is centred at."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from avl_plugins.ewc.kronecker_block import KroneckerBlock
from avl_plugins.ewc.penalty import check_protected


class KroneckerTerm:
    """1/2 <W - C, G (W - C) A> for the parameters W of one layer.

    Attributes:
        block: F = G (x) A, lambda included.
        centre: C, laid out as `block.matrix` lays out W.
    """

    def __init__(self, block: KroneckerBlock, centre: Tensor):
        self.block, self.centre = block, centre
        self._largest: float | None = None
        self._bases: dict[Any, tuple[Tensor, ...]] = {}

    def value(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The term, a 0-d tensor, differentiable in `parameters`."""
        return _Value.apply(self.difference(parameters), self.block)  # type: ignore[no-untyped-call]

    def gradient(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """G (W - C) A by parameter name, each of the shape that the parameter had when it was anchored."""
        return self.block.tensors(self.block.times(self.difference(parameters)))

    def difference(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """W - C."""
        return self.block.matrix(parameters) - self.centre

    def largest_eigenvalue(self) -> float:
        """The largest eigenvalue of F; that of its largest group."""
        if self._largest is None:
            a, g = (torch.linalg.eigvalsh(f.double())[:, -1] for f in (self.block.inputs, self.block.outputs))
            self._largest = float((a * g).max())
        return self._largest

    def pull(self, parameters: Mapping[str, Tensor], steps: Mapping[str, float]) -> dict[str, Tensor]:
        """What an implicit gradient step of these sizes subtracts, by name of the parameters that `steps` names.

        With step sizes S it is S (I + F S)^-1 F (w - c) over these parameters, w and c being W and C as vectors, while
        the others stay. With Q^T (R A R) Q and P^T G P diagonal for the relative steps' roots R, it is elementwise.
        """
        largest = max(steps.values())
        sizes = {n: steps[n] / largest for n in self.block.shapes if steps.get(n, 0) > 0}
        if not sizes:
            return {}
        moving, roots, q, p, eigenvalues = self._basis(sizes)
        gradient = self.block.times(self.difference(parameters))
        in_basis = p.mT @ (gradient[:, :, moving] * roots) @ q
        change = torch.zeros_like(gradient)
        change[:, :, moving] = p @ (in_basis / (1 / largest + eigenvalues)) @ q.mT * roots
        return {n: pull for n, pull in self.block.tensors(change).items() if n in sizes}

    def _basis(self, sizes: dict[str, float]) -> tuple[Tensor, ...]:
        """The columns that move, the roots of their relative steps, and R A R's and G's eigenvectors and values."""
        key = tuple((n, round(size, 9)) for n, size in sizes.items())  # a schedule's rounding makes no new basis
        if key not in self._bases:
            part = self.block.restricted(sizes)
            roots = [part.inputs.new_full((prod(shape[1:]),), sizes[n] ** 0.5) for n, shape in part.shapes.items()]
            root = torch.cat(roots)
            (a, q), (g, p) = (_eigh(f) for f in (part.inputs * root * root.unsqueeze(1), part.outputs))
            self._bases = {key: (self.block.columns(sizes), root, q, p, g.unsqueeze(2) * a.unsqueeze(1))}
        return self._bases[key]

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise ValueError, naming it, if a parameter is missing from `parameters` or has shrunk."""
        for name, shape in self.block.shapes.items():
            check_protected(parameters, name, shape)

    def fitted(self, parameters: Mapping[str, Tensor]) -> KroneckerTerm:
        """The same on the parameters' device and in their dtype: itself, where it is."""
        like = parameters[next(iter(self.block.shapes))]
        if self.centre.dtype == like.dtype and self.centre.device == like.device:
            return self
        return KroneckerTerm(self.block.to(like), self.centre.to(like))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        block = self.block
        return {"shapes": block.shapes, "inputs": block.inputs, "outputs": block.outputs, "centre": self.centre}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> KroneckerTerm:
        """Make the term of a `state_dict()`; tensors are copied.

        Raises:
            ValueError: entries are missing or unknown, shapes do not fit, or values are not finite.
        """
        expected = {"shapes", "inputs", "outputs", "centre"}
        if not isinstance(state, Mapping) or set(state) != expected:
            got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"a term's state has the entries {sorted(expected)}, got {got}")
        for entry in ("inputs", "outputs", "centre"):
            value = state[entry]
            if not isinstance(value, Tensor) or not value.is_floating_point():
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"the {entry} of a term must be a tensor of floats, got {kind}")
        shapes = state["shapes"]
        if not isinstance(shapes, Mapping) or not all(isinstance(shape, tuple | list) for shape in shapes.values()):
            raise ValueError(f"the shapes of a term must be tuples by parameter name, got {shapes!r}")
        shapes = {name: tuple(shape) for name, shape in shapes.items()}
        inputs, outputs, centre = (state[entry].detach().clone() for entry in ("inputs", "outputs", "centre"))
        block = KroneckerBlock(shapes, inputs, outputs)
        block.check()
        if centre.shape != (len(inputs), outputs.shape[1], inputs.shape[1]) or not centre.isfinite().all():
            raise ValueError(
                f"the centre of {list(shapes)} must be finite and of shape "
                f"{(len(inputs), outputs.shape[1], inputs.shape[1])}, got shape {tuple(centre.shape)}"
            )
        return cls(block, centre)


def _eigh(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, not negative, and eigenvectors, found in double precision."""
    values, vectors = torch.linalg.eigh(factor.double())
    return values.clamp_min(0).to(factor), vectors.to(factor)


class _Value(torch.autograd.Function):
    """1/2 <D, G D A>, with its gradient G D A at hand."""

    @staticmethod
    def forward(ctx: Any, difference: Tensor, block: KroneckerBlock) -> Tensor:
        gradient = block.times(difference)
        ctx.block = block
        ctx.save_for_backward(difference, gradient)
        return 0.5 * torch.dot(difference.reshape(-1), gradient.reshape(-1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        difference, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: the gradient is to be differentiated in its turn
            gradient = ctx.block.times(difference)
        return grad * gradient, None
