"""The folded penalty against the explicit sum, and its two kinds of step against closed forms."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import QuadraticReference
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from avl_plugins.ewc.penalty import QuadraticPenalty
from avl_plugins.ewc.proximal import proximal_step_

F64 = torch.float64


def tensors(generator: torch.Generator, shapes: dict[str, tuple[int, ...]], *, positive: bool) -> dict[str, Tensor]:
    made = {n: torch.randn(s, generator=generator, dtype=F64) for n, s in shapes.items()}
    if not positive:
        return made
    # squares, half of them exactly zero
    return {n: t**2 * (torch.rand(t.shape, generator=generator) < 0.5) for n, t in made.items()}


def explicit_and_folded(value: Tensor, parameters: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    zeros = {n: torch.zeros_like(p) for n, p in parameters.items()}
    return value.item(), {n: zeros[n] if g is None else g for n, g in zip(parameters, grads, strict=True)}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    growth=st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=5),
    scales=st.lists(st.floats(0.0, 1e4), min_size=5, max_size=5),
    late=st.integers(0, 5),
)
def test_equals_the_explicit_sum_while_parameters_appear_and_grow(
    seed: int, growth: list[tuple[int, int, int]], scales: list[float], late: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    folded, explicit = QuadraticPenalty(), QuadraticReference()
    shapes: dict[str, tuple[int, ...]] = {"w": (2, 3, 1), "b": (2,), "s": ()}
    for t, (rows, columns, depth) in enumerate(growth):
        shapes |= {"w": (shapes["w"][0] + rows, shapes["w"][1] + columns, shapes["w"][2] + depth)}
        if t >= late:
            shapes |= {"new": (1, 2)}
        importances, anchor = tensors(generator, shapes, positive=True), tensors(generator, shapes, positive=False)
        folded.merge(importances, anchor, scale=scales[t])
        explicit.add(importances, anchor, scales[t])
        shapes |= {"untouched": (3,)}
        theta = {n: p.requires_grad_() for n, p in tensors(generator, shapes, positive=False).items()}
        value, grads = explicit_and_folded(folded.value(theta), theta) if folded.precision else (0.0, {})
        expected, expected_grads = explicit_and_folded(explicit.value(theta) + 0 * theta["s"], theta)
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-12)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, expected_grads[name], rtol=1e-6, atol=1e-9)


def test_grown_in_training_before_the_next_merge() -> None:
    penalty = QuadraticPenalty()
    penalty.merge({"w": torch.ones(2, 2)}, {"w": torch.zeros(2, 2)}, scale=4.0)
    theta = torch.full((3, 4), 10.0, requires_grad=True)
    value = penalty.value({"w": theta})
    value.backward()
    expected = torch.zeros(3, 4)
    expected[:2, :2] = 40.0
    assert value.item() == 4 * 0.5 * 4 * 100
    assert torch.equal(theta.grad, expected)  # type: ignore[arg-type]


def test_no_precision_means_no_nan_and_no_cost() -> None:
    penalty = QuadraticPenalty()
    penalty.merge({"a": torch.zeros(3), "b": torch.tensor([0.0, 1.0])}, {"a": torch.ones(3), "b": torch.ones(2)})
    assert penalty.precision.keys() == {"b"}
    penalty.merge({"b": torch.tensor([0.0, 2.0])}, {"b": torch.tensor([7.0, 4.0])})
    assert torch.equal(penalty.centre["b"], torch.tensor([1.0, 3.0]))
    assert penalty.constant == pytest.approx(0.5 * 1 * 2 / 3 * 9)
    assert float(penalty.value({"b": torch.tensor([5.0, 3.0])})) == pytest.approx(3.0)


def test_memory_does_not_grow_with_tasks() -> None:
    penalty = QuadraticPenalty()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        penalty.merge(
            tensors(generator, {"w": (4, 4)}, positive=True), tensors(generator, {"w": (4, 4)}, positive=False)
        )
    assert [t.shape for t in (*penalty.precision.values(), *penalty.centre.values())] == [(4, 4)] * 2


def test_add_gradient_equals_backward_and_scales() -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = {"w": (3, 2), "b": (3,), "frozen": (2,), "idle": (2,)}
    penalty = QuadraticPenalty()
    penalty.merge(tensors(generator, shapes, positive=True), tensors(generator, shapes, positive=False))
    theta = {n: t.requires_grad_(n != "frozen") for n, t in tensors(generator, shapes, positive=False).items()}
    (0.5 * penalty.value(theta)).backward()
    by_autograd = {n: t.grad.clone() for n, t in theta.items() if t.grad is not None}
    for t in theta.values():
        t.grad = None
    theta["w"].grad = torch.ones(3, 2, dtype=F64)
    penalty.add_gradient_(theta, 0.5, names=["w", "b", "frozen"])
    torch.testing.assert_close(theta["w"].grad, 1 + by_autograd["w"])
    torch.testing.assert_close(theta["b"].grad, by_autograd["b"])
    assert theta["frozen"].grad is None
    assert theta["idle"].grad is None


def test_backward_twice_through_a_retained_graph() -> None:
    penalty = QuadraticPenalty()
    penalty.merge({"w": torch.tensor([2.0])}, {"w": torch.tensor([1.0])})
    theta = torch.tensor([4.0], requires_grad=True)
    value = penalty.value({"w": theta})
    value.backward(retain_graph=True)
    (3 * value).backward()
    assert theta.grad is not None
    assert theta.grad.item() == 6.0 + 18.0


def test_recentre_is_online_ewc() -> None:
    # Schwarz et al. 2018: penalty lambda/2 gamma F* (theta - theta*)^2, then F* <- gamma F* + F.
    generator = torch.Generator().manual_seed(2)
    penalty, total = QuadraticPenalty(), torch.zeros(3, dtype=F64)
    lam, gamma = 7.0, 0.9
    for _ in range(4):
        fisher = tensors(generator, {"w": (3,)}, positive=True)
        anchor = tensors(generator, {"w": (3,)}, positive=False)
        penalty.recentre(fisher, anchor, scale=lam, decay=gamma)
        total = gamma * total + fisher["w"]
        theta = tensors(generator, {"w": (3,)}, positive=False)
        expected = lam / 2 * gamma * (total * (theta["w"] - anchor["w"]) ** 2).sum()
        torch.testing.assert_close(penalty.value(theta), expected, rtol=1e-12, atol=0)


def test_recentre_moves_the_centre_of_parameters_without_new_importance() -> None:
    penalty = QuadraticPenalty()
    penalty.recentre({"w": torch.ones(2), "head": torch.ones(1)}, {"w": torch.zeros(2), "head": torch.zeros(1)})
    penalty.recentre({"w": torch.ones(3)}, {"w": torch.ones(3), "head": torch.ones(1)})
    assert torch.equal(penalty.precision["w"], torch.tensor([2.0, 2.0, 1.0]))
    assert torch.equal(penalty.precision["head"], torch.ones(1))
    assert torch.equal(penalty.centre["head"], torch.ones(1))


def test_follows_dtype_and_copies_what_it_keeps() -> None:
    penalty = QuadraticPenalty()
    fisher, anchor = torch.ones(2, dtype=F64), torch.zeros(2, dtype=F64)
    penalty.merge({"w": fisher}, {"w": anchor})
    fisher.mul_(100)
    anchor.add_(100)
    value = penalty.value({"w": torch.ones(2)})
    assert value.dtype == torch.float32
    assert value.item() == 1.0
    assert penalty.precision["w"].dtype == torch.float32


def test_channels_last_parameters() -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = {"w": (2, 3, 4, 4)}
    penalty, explicit = QuadraticPenalty(), QuadraticReference()
    fisher, anchor = tensors(generator, shapes, positive=True), tensors(generator, shapes, positive=False)
    penalty.merge(fisher, anchor)
    explicit.add(fisher, anchor)
    theta = {n: t.to(memory_format=torch.channels_last) for n, t in tensors(generator, shapes, positive=False).items()}
    torch.testing.assert_close(penalty.value(theta), explicit.value(theta))


def test_state_round_trip_and_its_copies() -> None:
    generator = torch.Generator().manual_seed(4)
    shapes = {"w": (2, 3), "b": (2,)}
    penalty, again = QuadraticPenalty(), QuadraticPenalty()
    for _ in range(3):
        penalty.merge(tensors(generator, shapes, positive=True), tensors(generator, shapes, positive=False))
    state = penalty.state_dict()
    again.load_state_dict(state)
    theta = tensors(generator, shapes, positive=False)
    assert torch.equal(again.value(theta), penalty.value(theta))
    penalty.merge(tensors(generator, shapes, positive=True), tensors(generator, shapes, positive=False))
    assert torch.equal(state["precision"]["w"], again.precision["w"])  # a state is a snapshot


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("constant"), "entries"),
        (lambda s: s.update(extra=1), "entries"),
        (lambda s: s["precision"].update(other=torch.ones(1)), "other"),
        (lambda s: s["centre"].update(w=torch.ones(3)), "'w' has shape"),
        (lambda s: s["precision"].update(w=torch.tensor([1.0, float("nan")])), "'w' has NaN"),
        (lambda s: s["centre"].update(w=torch.tensor([1.0, float("inf")])), "'w' has NaN or infinite"),
        (lambda s: s["precision"].update(w=torch.tensor([1.0, -1.0])), "'w' has negative"),
        (lambda s: s.update(constant=float("nan")), "constant"),
    ],
)
def test_load_refuses_what_is_not_a_penalty(change: Any, message: str) -> None:
    penalty = QuadraticPenalty()
    penalty.merge({"w": torch.ones(2)}, {"w": torch.ones(2)})
    state = penalty.state_dict()
    change(state)
    other = QuadraticPenalty()
    other.merge({"v": torch.ones(1)}, {"v": torch.zeros(1)})
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
    assert other.precision.keys() == {"v"}


@pytest.mark.parametrize("join", ["merge", "recentre"])
@pytest.mark.parametrize(
    ("importances", "anchor", "scale", "message"),
    [
        ({"w": torch.tensor([float("nan"), 1])}, {"w": torch.ones(2)}, 1.0, "Fisher.*'w' has NaN"),
        ({"w": torch.tensor([float("inf"), 1])}, {"w": torch.ones(2)}, 1.0, "Fisher.*'w' has NaN or inf"),
        ({"w": -torch.ones(2)}, {"w": torch.ones(2)}, 1.0, "negative"),
        ({"w": torch.ones(2)}, {"w": torch.full((2,), float("nan"))}, 1.0, "parameter 'w' has NaN"),
        ({"w": torch.ones(3)}, {"w": torch.ones(2)}, 1.0, r"importance of 'w' has shape \(3,\)"),
        ({"w": torch.ones(1)}, {"w": torch.ones(1)}, 1.0, "may grow, not shrink"),
        ({"w": torch.ones(2, 2)}, {"w": torch.ones(2, 2)}, 1.0, "number of dimensions"),
        ({"v": torch.ones(2)}, {"w": torch.ones(2)}, 1.0, "'v'"),
        ({"w": torch.ones(2)}, {"w": torch.ones(2)}, -1.0, "lambda"),
        ({"w": torch.ones(2)}, {"w": torch.ones(2)}, float("nan"), "lambda"),
        ({"w": torch.full((2,), 3e38)}, {"w": torch.ones(2)}, 1e3, "overflows"),
    ],
)
def test_bad_tasks_are_refused_and_change_nothing(
    join: str, importances: dict[str, Tensor], anchor: dict[str, Tensor], scale: float, message: str
) -> None:
    penalty = QuadraticPenalty()
    penalty.merge({"u": torch.ones(1), "w": torch.ones(2)}, {"u": torch.ones(1), "w": torch.ones(2)})
    before = penalty.state_dict()
    with pytest.raises(ValueError, match=message):
        getattr(penalty, join)({"u": torch.ones(1), **importances}, {"u": torch.zeros(1), **anchor}, scale=scale)
    after = penalty.state_dict()
    assert after["constant"] == before["constant"]
    for part in ("precision", "centre"):
        assert after[part].keys() == before[part].keys()
        assert all(torch.equal(after[part][n], before[part][n]) for n in before[part])


def test_a_protected_parameter_that_is_gone_is_named() -> None:
    penalty = QuadraticPenalty()
    penalty.merge({"w": torch.ones(2)}, {"w": torch.ones(2)})
    with pytest.raises(ValueError, match=r"'w' is protected .* not in the model: it has 'v'"):
        penalty.value({"v": torch.ones(2)})


# ---------------------------------------------------------------------- the two kinds of step

OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.02, momentum=0.9),
    "dampening": lambda p: SGD(p, lr=0.05, momentum=0.8, dampening=0.3),
    "nesterov": lambda p: SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.1, eps=1e-3),
    "adamw-amsgrad": lambda p: AdamW(p, lr=0.1, eps=1e-3, weight_decay=0.0, amsgrad=True),
    "rmsprop": lambda p: RMSprop(p, lr=0.05, eps=1e-3),
    "rmsprop-momentum": lambda p: RMSprop(p, lr=0.01, momentum=0.8, eps=1e-2),
}


@pytest.mark.parametrize("step", ["gradient", "proximal"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_minimiser_of_a_small_quadratic(name: str, step: str) -> None:
    # 1/2 h (theta - a)^2 + 1/2 A (theta - c)^2 is minimal at (h a + A c)/(h + A).
    h, a = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=F64), torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=F64)
    precision, centre = torch.tensor([0.0, 1.0, 3.0, 0.5], dtype=F64), torch.tensor([9.0, 1.0, -1.0, 2.0], dtype=F64)
    penalty = QuadraticPenalty()
    penalty.merge({"w": precision}, {"w": centre})
    theta = nn.Parameter(torch.zeros(4, dtype=F64))
    optimizer = OPTIMIZERS[name]([theta])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.997)
    for _ in range(2000):
        optimizer.zero_grad()
        loss = 0.5 * (h * (theta - a) ** 2).sum()
        (loss + penalty.value({"w": theta}) if step == "gradient" else loss).backward()
        optimizer.step()
        if step == "proximal":
            proximal_step_(penalty, optimizer, {"w": theta})
        schedule.step()
    torch.testing.assert_close(theta.data, (h * a + precision * centre) / (h + precision), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "make", [lambda p: SGD(p, lr=0.3), lambda p: Adam(p, lr=0.3), lambda p: RMSprop(p, lr=0.3, centered=True)]
)
def test_pull_uses_what_the_optimizer_just_did(make: Any) -> None:
    # Where the first moment equals the gradient, P is (step taken)/(lr g): measure it and compare.
    theta = nn.Parameter(torch.tensor([1.0, -1.0, 2.0], dtype=F64))
    start, optimizer = theta.detach().clone(), make([theta])
    gradient = torch.tensor([0.5, 2.0, -3.0], dtype=F64)
    for _ in range(3):
        before = theta.detach().clone()
        theta.grad = gradient.clone()
        optimizer.step()
    scaled_lr = (before - theta.detach()) / gradient
    penalty = QuadraticPenalty()
    penalty.merge({"w": torch.tensor([2.0, 0.0, 50.0], dtype=F64)}, {"w": start})
    moved = theta.detach().clone()
    proximal_step_(penalty, optimizer, {"w": theta})
    s = scaled_lr * penalty.precision["w"]
    torch.testing.assert_close(theta.data, moved - (moved - start) * s / (1 + s), rtol=1e-9, atol=0)


def test_each_group_has_its_own_rate_and_zero_precision_is_bit_equal() -> None:
    torch.manual_seed(0)
    first, second, bystander = (nn.Parameter(torch.randn(50)) for _ in range(3))
    optimizer = SGD([{"params": [first], "lr": 0.1}, {"params": [second, bystander], "lr": 2.0}])
    penalty = QuadraticPenalty()
    precision = torch.ones(50) * (torch.arange(50) % 2)
    penalty.merge({"a": precision, "b": precision}, {"a": torch.zeros(50), "b": torch.zeros(50)}, scale=10.0)
    for p in (first, second, bystander):
        p.grad = torch.zeros(50)
    before = {n: p.detach().clone() for n, p in (("a", first), ("b", second), ("c", bystander))}
    optimizer.step()
    proximal_step_(penalty, optimizer, {"a": first, "b": second, "c": bystander})
    assert torch.equal(bystander.data, before["c"])
    for name, p, lr in (("a", first, 0.1), ("b", second, 2.0)):
        assert torch.equal(p.data[::2], before[name][::2])
        torch.testing.assert_close(p.data[1::2], before[name][1::2] / (1 + lr * 10.0))


def test_a_parameter_the_optimizer_did_not_move_is_not_pulled() -> None:
    theta = nn.Parameter(torch.ones(2))
    penalty = QuadraticPenalty()
    penalty.merge({"w": torch.ones(2)}, {"w": torch.zeros(2)})
    proximal_step_(penalty, Adam([theta]), {"w": theta})
    assert torch.equal(theta.data, torch.ones(2))


class OtherSGD(SGD):
    """An optimizer that might do anything."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (torch.optim.Adagrad, "not Adagrad: use penalty_step='gradient'"),
        (torch.optim.NAdam, "not NAdam"),
        (OtherSGD, "not OtherSGD"),
        (lambda p: SGD(p, lr=0.1, maximize=True), "maximize=False"),
    ],
)
def test_unknown_optimizers_are_refused(make: Any, message: str) -> None:
    theta = nn.Parameter(torch.ones(2))
    optimizer: Optimizer = make([theta])
    penalty = QuadraticPenalty()
    penalty.merge({"w": torch.ones(2)}, {"w": torch.zeros(2)})
    with pytest.raises(ValueError, match=message):
        proximal_step_(penalty, optimizer, {"w": theta})
    assert torch.equal(theta.data, torch.ones(2))
