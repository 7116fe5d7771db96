"""The sum of all tasks' quadratic penalties, folded into one quadratic."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from avl_plugins.tasks.arguments import check_number


class QuadraticPenalty:
    r"""The sum over tasks t of 1/2 F_t (theta - theta_t)^2, exact, in memory and time independent of t.

    A sum of quadratics is a quadratic: with precision A = sum_t F_t and centre c = sum_t F_t theta_t / A

        sum_t 1/2 F_t (theta - theta_t)^2  =  1/2 A (theta - c)^2 + K,

    elementwise and summed over all parameters (arXiv:1612.00796, eq. 3 and the remark below it that a sum of
    quadratic penalties is itself one). lambda is part of the importances: `merge(..., scale=ewc_lambda)`, so each
    task may have its own.

    Parameters are known by name. A parameter may appear in a later task, and may grow in any dimension: its old
    region, at the low indices, keeps its precision, and the new region has precision 0. Where A is 0 the centre has
    no influence. Tensors follow the device and dtype of the parameters they are used with.

    Attributes:
        precision: A by parameter name, each of the parameter's shape. All-zero parameters are left out: they cost
            nothing. Tensors are replaced, never written in place.
        centre: c by parameter name, same names and shapes.
        constant: K, a float64 number, which makes the value (not only the gradient) that of the explicit sum.

    Example:
        >>> penalty, theta = QuadraticPenalty(), {"weight": torch.tensor([1.0, 2.0])}
        >>> penalty.merge({"weight": torch.tensor([3.0, 0.0])}, theta, scale=10.0)  # when a task ends; scale is lambda
        >>> float(penalty.value({"weight": torch.tensor([2.0, 7.0])}))  # 10/2 * 3 * (2 - 1)^2, added to the loss
        15.0
    """

    def __init__(self) -> None:
        self.precision: dict[str, Tensor] = {}
        self.centre: dict[str, Tensor] = {}
        self.constant = 0.0

    @classmethod
    def joined(cls, penalties: Iterable["QuadraticPenalty"]) -> "QuadraticPenalty":
        """The sum of several penalties, but for their constants."""
        whole = cls()
        for penalty in penalties:
            whole.merge(penalty.precision, penalty.centre)
        return whole

    @torch.no_grad()
    def merge(self, importances: Mapping[str, Tensor], anchor: Mapping[str, Tensor], *, scale: float = 1.0) -> None:
        """Add the term scale/2 F (theta - anchor)^2.

        With B = scale F:  K += 1/2 sum A B/(A + B) (anchor - c)^2;  c += B/(A + B) (anchor - c);  A += B.

        Args:
            importances: F by parameter name, finite and >= 0.
            anchor: theta at the task's end; it must hold every name of `importances`, same shapes.
            scale: factor of this task's importances, lambda.

        Raises:
            ValueError: a value is NaN, infinite or negative, a name is missing, or a shape differs or has shrunk.
                The penalty is then as before.
        """
        precision, centre, constant = dict(self.precision), dict(self.centre), self.constant
        for name, added in _scaled(importances, anchor, scale).items():
            theta = anchor[name].detach()
            if name not in precision:
                if added.any():
                    precision[name], centre[name] = added, theta.clone()
                continue
            old, old_centre = self._fitted(name, theta)
            total = old + added
            share = (added / total).nan_to_num_(nan=0.0)  # 0/0 where neither has any precision
            step = theta - old_centre
            constant += 0.5 * float((old * share * step.square()).sum(dtype=torch.float64))
            precision[name], centre[name] = total, old_centre + share * step
        self._assign(precision, centre, constant)

    @torch.no_grad()
    def recentre(
        self,
        importances: Mapping[str, Tensor],
        anchor: Mapping[str, Tensor],
        *,
        scale: float = 1.0,
        decay: float = 1.0,
    ) -> None:
        """Replace the penalty by one centred at `anchor`: A <- decay (A + scale F), c <- anchor, K <- 0.

        This is online EWC (Schwarz et al. 2018, eq. 8 and 9): its penalty 1/2 lambda gamma F* with
        F* <- gamma F* + F is this one with scale = lambda and decay = gamma, since A = lambda gamma F*. With
        decay = 1 it is the recursive Laplace approximation (Huszar 2018).

        Args:
            importances: F by parameter name, finite and >= 0.
            anchor: theta at the task's end, with every name of `importances` and of the penalty so far.
            scale: factor of this task's importances, lambda.
            decay: gamma.

        Raises:
            ValueError: as in `merge`. The penalty is then as before.
        """
        check_number("decay", decay, low=0)
        precision, centre = {}, {}
        added = _scaled(importances, anchor, scale)
        for name in {**self.precision, **added}:
            theta = _parameter(anchor, name).detach()
            total = added[name] if name in added else torch.zeros_like(theta)
            if name in self.precision:
                total = total + self._fitted(name, theta)[0]
            if decay > 0 and total.any():
                precision[name], centre[name] = decay * total, theta.clone()
        self._assign(precision, centre, 0.0)

    def value(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """1/2 sum A (theta - c)^2 + K, a 0-d tensor, differentiable in `parameters`, as often as one likes.

        Raises:
            ValueError: a protected parameter is missing from `parameters`, or has shrunk.
        """
        return self.distance(parameters) + self.constant

    def distance(self, parameters: Mapping[str, Tensor], names: Collection[str] | None = None) -> Tensor:
        """1/2 sum A (theta - c)^2 without K, over the protected parameters in `names` (default: all of them)."""
        thetas, precisions, centres = self._lists(parameters, names)
        if not thetas:
            return torch.zeros(())
        return _Distance.apply(precisions, centres, *thetas)  # type: ignore[no-untyped-call]

    def distance_without(self, parameters: Mapping[str, Tensor], names: Collection[str]) -> Tensor:
        """What `distance` over all protected parameters has beside `distance` over those in `names`."""
        return self.distance(parameters, [name for name in self.precision if name not in names])

    @torch.no_grad()
    def add_gradient_(
        self, parameters: Mapping[str, Tensor], scale: float = 1.0, *, names: Collection[str] | None = None
    ) -> None:
        """Add scale A (theta - c) to `.grad` of the protected parameters that need gradients (default: all).

        For training loops that do not differentiate `value`. A missing `.grad` is created. A `.grad` with a graph of
        its own (`create_graph=True`) gets the penalty's as well, so that it can be differentiated.
        """
        names = self.precision.keys() if names is None else names
        trained = [n for n in names if n in self.precision and _parameter(parameters, n).requires_grad]
        thetas, precisions, centres = self._lists(parameters, trained)
        if not thetas:
            return
        pulls = torch._foreach_sub(thetas, centres)
        torch._foreach_mul_(pulls, precisions)
        torch._foreach_mul_(pulls, scale)
        for theta, precision, centre, pull in zip(thetas, precisions, centres, pulls, strict=True):
            if theta.grad is not None and theta.grad.requires_grad:
                with torch.enable_grad():
                    theta.grad = theta.grad + (theta - centre) * precision * scale
            elif theta.grad is not None and theta.grad.layout == torch.strided:
                theta.grad.add_(pull)
            else:  # none, or a sparse one, to which nothing dense can be added in place
                theta.grad = pull if theta.grad is None else pull + theta.grad

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise ValueError, naming it, if a protected parameter is missing from `parameters` or has shrunk."""
        self._lists(parameters, None)

    def largest_eigenvalues(self) -> dict[str, float]:
        """The largest entry of A by parameter name."""
        return {name: float(precision.max()) for name, precision in self.precision.items()}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: precision, centre (by parameter name) and constant."""
        return {"precision": dict(self.precision), "centre": dict(self.centre), "constant": self.constant}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the state of `state_dict()`; tensors are copied.

        Raises:
            ValueError: entries are missing or unknown, the names or shapes of precision and centre differ, or values
                are not finite. The penalty is then as before.
        """
        expected = {"precision", "centre", "constant"}
        if not isinstance(state, Mapping) or set(state) != expected:
            got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"a penalty's state has the entries {sorted(expected)}, got {got}")
        precision, centre = (_tensors(entry, state[entry]) for entry in ("precision", "centre"))
        if precision.keys() != centre.keys():
            odd = sorted(precision.keys() ^ centre.keys())
            raise ValueError(f"precision and centre of the loaded penalty name different parameters: {odd}")
        constant = state["constant"]
        if isinstance(constant, bool) or not isinstance(constant, int | float):
            raise ValueError(f"the penalty's constant must be a number, got {constant!r}")
        _scaled(precision, centre, 1.0)
        self._assign(precision, centre, float(constant))

    def _assign(self, precision: dict[str, Tensor], centre: dict[str, Tensor], constant: float) -> None:
        for name, tensor in precision.items():
            if not tensor.isfinite().all():
                raise ValueError(f"the precision of {name!r} overflows {tensor.dtype}: lower lambda")
        if not (math.isfinite(constant) and constant >= 0):
            raise ValueError(f"the penalty's constant must be finite and >= 0, got {constant}")
        self.precision, self.centre, self.constant = precision, centre, constant

    def _lists(
        self, parameters: Mapping[str, Tensor], names: Collection[str] | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Parameters, precisions and centres; the latter two brought to the parameters' shape and device for good."""
        thetas, precisions, centres = [], [], []
        for name in list(self.precision):  # always in this order: sums then round the same
            if names is not None and name not in names:
                continue
            theta = _parameter(parameters, name)
            precision = self.precision[name]
            if precision.shape != theta.shape or precision.dtype != theta.dtype or precision.device != theta.device:
                self.precision[name], self.centre[name] = self._fitted(name, theta)
            thetas.append(theta)
            precisions.append(self.precision[name])
            centres.append(self.centre[name])
        return thetas, precisions, centres

    def _fitted(self, name: str, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Precision and centre of `name` at theta's shape, device and dtype; what is new gets zeros."""
        return _grown(name, self.precision[name], theta), _grown(name, self.centre[name], theta)


class _Distance(torch.autograd.Function):
    """1/2 sum A (theta - c)^2 in three passes over the parameters and one node in the graph."""

    @staticmethod
    def forward(ctx: Any, precisions: list[Tensor], centres: list[Tensor], *thetas: Tensor) -> Tensor:
        if thetas[0].device.type == "cpu":  # one parameter at a time stays in the cache
            pulls, terms = [], []
            for theta, precision, centre in zip(thetas, precisions, centres, strict=True):
                step = theta - centre
                pulls.append(step * precision)
                terms.append(torch.dot(step.reshape(-1), pulls[-1].reshape(-1)))
        else:  # few kernels
            steps = torch._foreach_sub(list(thetas), centres)
            pulls = list(torch._foreach_mul(steps, precisions))
            terms = [torch.dot(s.reshape(-1), p.reshape(-1)) for s, p in zip(steps, pulls, strict=True)]
        ctx.save_for_backward(*thetas)
        ctx.quadratic, ctx.pulls = (precisions, centres), pulls
        return 0.5 * torch.stack([term.to(terms[0]) for term in terms]).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        thetas = ctx.saved_tensors  # raises if they have changed since
        pulls, ctx.pulls = ctx.pulls, None  # given away: autograd then adds the loss's gradient in place
        again = torch.is_grad_enabled()  # create_graph: the gradient is to be differentiated in its turn
        if pulls is None or again:
            pulls = [(t - c) * a for t, a, c in zip(thetas, *ctx.quadratic, strict=True)]
        if not again and grad.device.type == "cpu" and grad == 1:  # as in loss + penalty: spare a pass
            return None, None, *pulls  # (on other devices the comparison would wait for them)
        return None, None, *(grad.to(pull) * pull for pull in pulls)


def _tensors(entry: str, value: Any) -> dict[str, Tensor]:
    """Copies of the tensors of a state's entry."""
    if not isinstance(value, Mapping):
        raise ValueError(f"the penalty's {entry} must be tensors by parameter name, got {type(value).__name__}")
    for name, tensor in value.items():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        if not (isinstance(name, str) and isinstance(tensor, Tensor) and tensor.is_floating_point()):
            raise ValueError(f"the penalty's {entry} of {name!r} must be a tensor of floats, got {kind}")
    return {name: tensor.detach().clone() for name, tensor in value.items()}


def _parameter(parameters: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in parameters:
        raise ValueError(f"parameter {name!r} is protected by the penalty but is not in the model: {_some(parameters)}")
    return parameters[name]


def _some(names: Collection[str]) -> str:
    listed = ", ".join(map(repr, list(names)[:8]))
    return f"it has {listed}{', ...' if len(names) > 8 else ''}"


def check_protected(parameters: Mapping[str, Tensor], name: str, shape: Sequence[int]) -> None:
    """Raise ValueError if the parameter is missing, or smaller than `shape` in some dimension."""
    theta = _parameter(parameters, name)
    if len(shape) != theta.dim() or any(old > new for old, new in zip(shape, theta.shape, strict=True)):
        raise ValueError(
            f"parameter {name!r} has shape {tuple(theta.shape)}, the penalty protects {tuple(shape)}: "
            "a protected parameter may grow, not shrink or change its number of dimensions"
        )


def _grown(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    if tensor.shape == like.shape:
        return tensor.to(like)
    check_protected({name: like}, name, tensor.shape)
    grown = torch.zeros_like(like, requires_grad=False)
    grown[tuple(slice(0, n) for n in tensor.shape)] = tensor.to(like)
    return grown


def _scaled(importances: Mapping[str, Tensor], anchor: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Scaled importances at the anchor's device and dtype, every value checked."""
    check_number("scale (lambda)", scale, low=0)
    scaled = {}
    for name, importance in importances.items():
        theta = _parameter(anchor, name)
        if importance.shape != theta.shape:
            raise ValueError(
                f"importance of {name!r} has shape {tuple(importance.shape)}, its parameter {tuple(theta.shape)}"
            )
        if not importance.isfinite().all():
            raise ValueError(f"the importance (Fisher) of parameter {name!r} has NaN or infinite entries")
        if (importance < 0).any():
            raise ValueError(f"the importance (Fisher) of parameter {name!r} has negative entries")
        if not theta.isfinite().all():
            raise ValueError(f"parameter {name!r} has NaN or infinite entries: nothing to anchor to")
        scaled[name] = (importance.detach() * scale).to(theta)
    return scaled
