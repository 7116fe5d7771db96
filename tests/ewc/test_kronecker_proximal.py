"""The proximal step of the Kronecker-factored penalty against dense solves."""

from typing import Any

import pytest
import torch
from kronecker_cases import F64, SHAPES, block, fisher, tensors
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, RMSprop

from avl_plugins.ewc.kronecker import KroneckerFisher
from avl_plugins.ewc.kronecker_penalty import KroneckerPenalty
from avl_plugins.ewc.kronecker_proximal import check_kronecker_proximal, kronecker_proximal_step_


def online(generator: torch.Generator, scale: float = 1.0, tasks: int = 2) -> KroneckerPenalty:
    penalty = KroneckerPenalty()
    for _ in range(tasks):
        penalty.recentre(fisher(generator, SHAPES), tensors(generator, SHAPES), scale=scale)
    return penalty


def trained(generator: torch.Generator, **changed: Tensor) -> dict[str, Tensor]:
    theta = {n: t.requires_grad_() for n, t in (tensors(generator, SHAPES) | changed).items()}
    for t in theta.values():
        t.grad = torch.zeros_like(t)
    return theta


def gradient(penalty: KroneckerPenalty, theta: dict[str, Tensor], moved: Tensor) -> Tensor:
    """Of the whole penalty over all parameters one after another, at theta moved by this much."""
    parts = moved.split([t.numel() for t in theta.values()])
    copies = {
        n: (t.detach() + part.view_as(t)).requires_grad_() for (n, t), part in zip(theta.items(), parts, strict=True)
    }
    return torch.cat([g.flatten() for g in torch.autograd.grad(penalty.value(copies), list(copies.values()))])


def implicit(penalty: KroneckerPenalty, theta: dict[str, Tensor], steps: dict[str, float]) -> dict[str, Tensor]:
    """theta' = theta - S grad(theta') for step sizes S by name; 0 where there is none."""
    sizes = [t.numel() for t in theta.values()]
    eye = torch.eye(sum(sizes), dtype=F64)
    here = gradient(penalty, theta, 0 * eye[0])
    hessian = torch.stack([gradient(penalty, theta, e) - here for e in eye])
    step = torch.cat([torch.full((t.numel(),), steps.get(n, 0.0), dtype=F64) for n, t in theta.items()])
    change = torch.linalg.solve(eye + step.unsqueeze(1) * hessian, step * here)
    return {n: t.detach() - c.view_as(t) for (n, t), c in zip(theta.items(), change.split(sizes), strict=True)}


def assert_close(theta: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for n, t in theta.items():
        torch.testing.assert_close(t.detach(), expected[n], rtol=1e-8, atol=1e-8)


GROUPS: dict[str, Any] = {
    "one rate": (lambda p: [{"params": list(p.values()), "lr": 0.3}], dict.fromkeys(SHAPES, 0.3)),
    "momentum": (
        lambda p: [{"params": list(p.values()), "lr": 0.3, "momentum": 0.8, "dampening": 0.4}],
        dict.fromkeys(SHAPES, 0.3 * 0.6 / 0.2),
    ),
    "a rate each": (
        lambda p: [{"params": [t], "lr": 0.1 * (k + 1)} for k, t in enumerate(p.values())],
        {n: 0.1 * (k + 1) for k, n in enumerate(SHAPES)},
    ),
    "biases at rest": (
        lambda p: [{"params": [t], "lr": 0.0 if n == "fc.bias" else 0.3} for n, t in p.items()],
        {n: 0.0 if n == "fc.bias" else 0.3 for n in SHAPES},
    ),
    "weights at rest": (
        lambda p: [{"params": [p["fc.bias"], p["norm"]], "lr": 0.3}],
        {"fc.bias": 0.3, "norm": 0.3},
    ),
}


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_equals_the_implicit_step(groups: str, scale: float) -> None:
    g = torch.Generator().manual_seed(0)
    penalty, theta = online(g, scale), trained(g)
    make, steps = GROUPS[groups]
    expected = implicit(penalty, theta, steps)
    optimizer = SGD(make(theta), lr=1.0)
    for _ in range(2):  # the second time with the bases at hand
        kronecker_proximal_step_(penalty, optimizer, theta)
        assert_close(theta, expected)
        expected = implicit(penalty, theta, steps)
    for group in optimizer.param_groups:
        group["lr"] *= 0.1
    expected = implicit(penalty, theta, {n: 0.1 * s for n, s in steps.items()})
    kronecker_proximal_step_(penalty, optimizer, theta)
    assert_close(theta, expected)


def test_grown_parameters_are_pulled_where_they_are_old() -> None:
    g = torch.Generator().manual_seed(0)
    penalty = online(g)
    grown = {"fc.weight": (3, 5), "fc.bias": (3,), "conv.weight": (4, 4, 2, 2), "norm": (5,)}
    theta = trained(g, **tensors(g, grown))
    expected = implicit(penalty, theta, dict.fromkeys(SHAPES, 0.2))
    before = {n: t.detach().clone() for n, t in theta.items()}
    kronecker_proximal_step_(penalty, SGD(theta.values(), lr=0.2), theta)
    assert_close(theta, expected)
    assert torch.equal(theta["fc.weight"][2:], before["fc.weight"][2:])
    assert torch.equal(theta["fc.weight"][:, 3:], before["fc.weight"][:, 3:])


def test_parameters_without_a_gradient_stay_and_still_count() -> None:
    g = torch.Generator().manual_seed(0)
    penalty, theta = online(g), trained(g)
    theta["fc.weight"].grad = theta["norm"].grad = None
    expected = implicit(penalty, theta, {"fc.bias": 0.3, "conv.weight": 0.3})
    before = theta["fc.weight"].detach().clone()
    kronecker_proximal_step_(penalty, SGD(theta.values(), lr=0.3), theta)
    assert_close(theta, expected)
    assert torch.equal(theta["fc.weight"], before)


def test_what_the_penalty_does_not_hold_keeps_its_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    importances = KroneckerFisher({"fc": block(generator, {"fc.weight": (4, 4)})}, {})
    factors = importances.blocks["fc"]
    factors.inputs[:, 2:] = 0
    factors.inputs[:, :, 2:] = 0
    penalty, theta = KroneckerPenalty(), torch.randn(4, 4, generator=generator)
    penalty.recentre(importances, {"fc.weight": torch.zeros(4, 4)}, scale=100.0)
    theta.requires_grad_().grad = torch.zeros_like(theta)
    before = theta.detach().clone()
    for _ in range(5):
        kronecker_proximal_step_(penalty, SGD([theta], lr=0.1), {"fc.weight": theta})
    assert torch.equal(theta[:, 2:], before[:, 2:])
    assert not torch.equal(theta[:, :2], before[:, :2])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_ends_where_loss_plus_penalty_is_stationary_however_strong_it_is(momentum: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    shapes = {"weight": (2, 3), "bias": (2,)}
    penalty = KroneckerPenalty()
    g = torch.Generator().manual_seed(1)
    penalty.recentre(KroneckerFisher({"": block(g, shapes)}, {}), tensors(g, shapes), scale=1e4)
    x, y = torch.randn(20, 3, dtype=F64), torch.randn(20, 2, dtype=F64)
    optimizer = SGD(model.parameters(), lr=0.2 * (1 - momentum), momentum=momentum)
    theta: dict[str, Tensor] = dict(model.named_parameters())
    assert optimizer.param_groups[0]["lr"] * penalty.largest_eigenvalues()["weight"] > 100  # a gradient step diverges
    for _ in range(800):
        optimizer.zero_grad()
        (0.5 * (model(x) - y).square().sum(1).mean()).backward()
        optimizer.step()
        kronecker_proximal_step_(penalty, optimizer, theta)
    optimizer.zero_grad()
    (0.5 * (model(x) - y).square().sum(1).mean() + penalty.value(theta)).backward()
    for t in theta.values():
        assert t.grad is not None
        assert t.grad.abs().max() < 1e-6


@pytest.mark.parametrize("other", [Adam, AdamW, RMSprop])
def test_optimizers_with_a_scale_for_each_parameter_are_refused(other: Any) -> None:
    theta = trained(torch.Generator())
    with pytest.raises(ValueError, match=rf"needs torch.optim.SGD, not {other.__name__}: .* no common eigenbasis"):
        kronecker_proximal_step_(KroneckerPenalty(), other(theta.values()), theta)


def test_what_has_no_common_eigenbasis_is_refused_before_anything_moves() -> None:
    g = torch.Generator().manual_seed(0)
    several, mixed = KroneckerPenalty(), online(g)
    for _ in range(2):
        several.merge(fisher(g, SHAPES), tensors(g, SHAPES))
    mixed.recentre(KroneckerFisher({}, {"fc.bias": torch.ones(2)}), tensors(g, SHAPES))
    theta = trained(g)
    before = {n: t.detach().clone() for n, t in theta.items()}
    for penalty, message in ((several, "layer 'fc', which has 2: .* mode='online'"), (mixed, "has 1 and a diagonal")):
        with pytest.raises(ValueError, match=message):
            kronecker_proximal_step_(penalty, SGD(theta.values(), lr=0.1), theta)
    with pytest.raises(ValueError, match="maximize=False"):
        check_kronecker_proximal(online(g), SGD(theta.values(), lr=0.1, maximize=True))
    with pytest.raises(ValueError, match=r"'fc\.bias' is protected"):
        kronecker_proximal_step_(
            online(g), SGD(theta.values(), lr=0.1), {k: t for k, t in theta.items() if k != "fc.bias"}
        )
    assert all(torch.equal(theta[n], before[n]) for n in theta)
