"""Penalties that are differentiated more than once, and gradients that they are added to."""

from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from ewc_cases import assert_same, mlp, naive
from torch import Tensor, nn

from avl_plugins.ewc.penalty import QuadraticPenalty
from avl_plugins.ewc.plugin import EWCPlugin

F64 = torch.float64


def quadratic(precision: list[float], centre: list[float], dtype: torch.dtype = F64) -> QuadraticPenalty:
    penalty = QuadraticPenalty()
    penalty.merge({"w": torch.tensor(precision, dtype=dtype)}, {"w": torch.tensor(centre, dtype=dtype)})
    return penalty


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", ["value", "distance"])
def test_half_the_squared_gradient_has_the_penaltys_hessian(method: str, dtype: torch.dtype) -> None:
    # g = h w + A (w - c) = (3, 3) with h = (2, 4) and A = 1; the gradient of |g|^2 / 2 is (h + A) g, not h g.
    penalty = quadratic([1.0, 1.0], [0.0, 2.0], dtype)
    h, w = torch.tensor([2.0, 4.0], dtype=dtype), torch.ones(2, dtype=dtype, requires_grad=True)
    loss = 0.5 * (h * w.square()).sum() + getattr(penalty, method)({"w": w})
    (g,) = torch.autograd.grad(loss, w, create_graph=True)
    assert g.tolist() == [3, 3]
    (0.5 * g.square().sum()).backward()
    assert w.grad is not None
    assert w.grad.tolist() == [9, 15]


def test_hessian_and_third_derivative() -> None:
    penalty = quadratic([2.0, 0.5, 3.0], [1.0, -1.0, 0.0])
    w = torch.tensor([0.3, 2.0, -1.0], dtype=F64, requires_grad=True)
    hessian = torch.autograd.functional.hessian(lambda w: penalty.value({"w": w}), w)
    assert torch.equal(hessian, torch.diag(torch.tensor([2.0, 0.5, 3.0], dtype=F64)))
    cubed = torch.autograd.functional.hessian(lambda w: penalty.value({"w": w}) ** 3, w)
    value, g = penalty.value({"w": w}).detach(), penalty.precision["w"] * (w.detach() - penalty.centre["w"])
    torch.testing.assert_close(cubed, 3 * value**2 * hessian + 6 * value * torch.outer(g, g))
    assert torch.autograd.gradcheck(lambda w: penalty.value({"w": w}), w)
    assert torch.autograd.gradgradcheck(lambda w: penalty.value({"w": w}).sin(), w)


def test_first_and_second_derivatives_from_one_graph() -> None:
    # The first gradient is given away to autograd: what becomes of it must not show in the second, nor in the Hessian.
    penalty = quadratic([2.0], [1.0])
    w = torch.tensor([4.0], dtype=F64, requires_grad=True)
    value = penalty.value({"w": w})
    value.backward(retain_graph=True)
    assert w.grad is not None
    w.grad.mul_(100)
    (g,) = torch.autograd.grad(value, w, create_graph=True)
    assert g.item() == 6
    (second,) = torch.autograd.grad(g, w, retain_graph=True)
    assert second.item() == 2
    assert torch.autograd.grad(value, w)[0].item() == 6


def test_two_parameters_get_gradients_of_their_own() -> None:
    penalty = QuadraticPenalty()
    penalty.merge({n: torch.ones(2) for n in "ab"}, {n: torch.zeros(2) for n in "ab"})
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    (penalty.value({"a": a, "b": b}) + (a + b).sum()).backward()
    a.grad.mul_(0)  # type: ignore[union-attr]
    assert b.grad.tolist() == [2, 2]  # type: ignore[union-attr]
    assert [t.tolist() for t in penalty.precision.values()] == [[1, 1], [1, 1]]
    assert [t.tolist() for t in penalty.centre.values()] == [[0, 0], [0, 0]]


def test_adding_to_a_gradient_with_a_graph_adds_the_hessian() -> None:
    penalty = quadratic([1.0, 1.0], [0.0, 2.0])
    h, w = torch.tensor([2.0, 4.0], dtype=F64), torch.ones(2, dtype=F64, requires_grad=True)
    (w.grad,) = torch.autograd.grad(0.5 * (h * w.square()).sum(), w, create_graph=True)
    penalty.add_gradient_({"w": w}, 0.5)
    penalty.add_gradient_({"w": w}, 0.5)
    assert w.grad.tolist() == [3, 3]
    (twice,) = torch.autograd.grad(0.5 * w.grad.square().sum(), w)
    assert twice.tolist() == [9, 15]


@pytest.mark.parametrize("by", ["autograd", "hand"])
def test_sparse_gradients(by: str) -> None:
    embed = nn.Embedding(4, 2, sparse=True)
    penalty = QuadraticPenalty()
    penalty.merge({"weight": torch.ones(4, 2)}, {"weight": torch.zeros(4, 2)})
    parameters = dict(embed.named_parameters())
    loss = embed(torch.tensor([1, 1])).sum()
    (loss + penalty.value(parameters) if by == "autograd" else loss).backward()
    if by == "hand":
        penalty.add_gradient_(parameters)
    expected = embed.weight.detach() + torch.tensor([0.0, 2, 0, 0]).unsqueeze(1)
    torch.testing.assert_close(embed.weight.grad.to_dense(), expected)  # type: ignore[union-attr]


class GradientPenalty(SupervisedPlugin):
    """Adds half the squared gradient of the loss so far to it, as sharpness-aware methods do; the step is not taken."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: dict[str, Tensor] = {}
        self.found: dict[str, Tensor] = {}

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        parameters = dict(strategy.model.named_parameters())
        gradients = torch.autograd.grad(strategy.loss, list(parameters.values()), create_graph=True)
        strategy.loss = strategy.loss + 0.5 * sum(g.square().sum() for g in gradients)

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        self.found = {n: p.grad.clone() for n, p in strategy.model.named_parameters()}
        strategy.optimizer.zero_grad()
        strategy.stop_training()


@pytest.mark.parametrize("step", ["gradient", "proximal"])
def test_beside_a_plugin_that_differentiates_the_loss(digits_permuted: Any, step: Any) -> None:
    torch.manual_seed(0)
    model, ewc, twice = mlp(), EWCPlugin(ewc_lambda=30.0, penalty_step=step), GradientPenalty()
    first, second = digits_permuted.train_stream[:2]
    strategy = naive(model, ewc)
    strategy.train(first, eval_streams=[])
    strategy.plugins.insert(1, twice)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    parameters = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    terms = [(n, a, ewc.penalty.centre[n]) for n, a in ewc.penalty.precision.items()]
    batch: list[Any] = []

    class Batch(SupervisedPlugin):
        def before_forward(self, strategy: Any, **kwargs: Any) -> None:
            batch[:] = strategy.mbatch[:2]

    strategy.plugins.append(Batch())
    strategy.train(second, eval_streams=[])
    loss = nn.functional.cross_entropy(torch.func.functional_call(model, parameters, batch[0]), batch[1])
    if step == "gradient":  # the slow way: every term written
        loss = loss + sum(0.5 * (a * (parameters[n] - c) ** 2).sum() for n, a, c in terms)
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    whole = loss + 0.5 * sum(g.square().sum() for g in gradients)
    expected = dict(zip(parameters, torch.autograd.grad(whole, list(parameters.values())), strict=True))
    assert_same(twice.found, expected, rtol=1e-4, atol=1e-6)
