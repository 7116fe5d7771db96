"""The Kronecker-factored penalty against the explicit dense matrix, and what it keeps and refuses."""

import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kronecker_cases import F64, SHAPES, DenseReference, block, fisher, tensors
from torch import Tensor

from avl_plugins.ewc.kronecker import KroneckerFisher
from avl_plugins.ewc.kronecker_block import KroneckerBlock
from avl_plugins.ewc.kronecker_penalty import KroneckerPenalty
from avl_plugins.ewc.penalty import QuadraticPenalty


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(value: Tensor, theta: dict[str, Tensor]) -> list[Tensor]:
    value = value + sum(0 * t.sum() for t in theta.values())  # no None for what the penalty does not depend on
    return list(torch.autograd.grad(value, list(theta.values())))


def assert_equal_functions(penalty: KroneckerPenalty, reference: DenseReference, theta: dict[str, Tensor]) -> None:
    theta = {n: t.clone().requires_grad_() for n, t in theta.items()}
    value, expected = penalty.value(theta), reference.value(theta)
    torch.testing.assert_close(value.double(), expected, rtol=1e-8, atol=1e-8)
    penalty.add_gradient_(theta)
    for t, g, e in zip(theta.values(), gradients(value, theta), gradients(expected, theta), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(torch.zeros_like(t) if t.grad is None else t.grad, e, rtol=1e-8, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    online=st.booleans(),
    growth=st.lists(st.tuples(*[st.integers(0, 1)] * 3), min_size=1, max_size=4),
    scales=st.lists(st.sampled_from([0.0, 1e-3, 1.0, 100.0]), min_size=4, max_size=4),
    decays=st.lists(st.floats(0.1, 1.0), min_size=4, max_size=4),
    without=st.lists(st.sampled_from(["", "fc", "conv"]), min_size=4, max_size=4),
)
def test_equals_the_dense_matrix_while_layers_appear_and_grow(
    seed: int,
    online: bool,
    growth: list[tuple[int, int, int]],
    scales: list[float],
    decays: list[float],
    without: list[str],
) -> None:
    g = generator(seed)
    penalty, reference = KroneckerPenalty(), DenseReference(summed=online)
    shapes = dict(SHAPES)
    for t, (rows, columns, more) in enumerate(growth):
        out, inside = shapes["fc.weight"][0] + rows, shapes["fc.weight"][1] + columns
        _, channels, *kernel = shapes["conv.weight"]
        shapes |= {"fc.weight": (out, inside), "fc.bias": (out,), "conv.weight": (4, channels + more, *kernel)}
        shapes |= {"norm": (shapes["norm"][0] + more,)}
        importances, anchor = fisher(g, shapes, without[t]), tensors(g, shapes)
        if online:
            penalty.recentre(importances, anchor, scale=scales[t], decay=decays[t])
            reference.add(importances, anchor, scales[t], decays[t])
        else:
            penalty.merge(importances, anchor, scale=scales[t])
            reference.add(importances, anchor, scales[t])
        assert_equal_functions(penalty, reference, tensors(g, shapes))
    grown = {n: (s[0] + 2, s[1] + 1, *s[2:]) if len(s) > 1 else (s[0] + 2,) for n, s in shapes.items()}
    assert_equal_functions(penalty, reference, tensors(g, grown | {"untouched": (2,)}))


def test_memory_is_that_of_one_task_online_and_of_all_tasks_separately() -> None:
    online, separate = KroneckerPenalty(), KroneckerPenalty()
    for seed in range(5):
        importances, anchor = fisher(generator(seed), SHAPES), tensors(generator(seed), SHAPES)
        online.recentre(importances, anchor)
        separate.merge(importances, anchor)
    assert [len(terms) for terms in online.terms.values()] == [1, 1]
    assert [len(terms) for terms in separate.terms.values()] == [5, 5]


def test_scale_and_decay_multiply_as_in_the_quadratic_penalty() -> None:
    g = generator()
    importances, anchor, theta = fisher(g, SHAPES), tensors(g, SHAPES), tensors(g, SHAPES)
    plain, both = KroneckerPenalty(), KroneckerPenalty()
    plain.merge(importances, anchor)
    both.recentre(importances, anchor, scale=5.0, decay=0.7)
    torch.testing.assert_close(both.value(theta), 3.5 * plain.value(theta))
    both.recentre(KroneckerFisher({}, {}), anchor, decay=0.7)
    torch.testing.assert_close(both.value(theta), 0.7 * 3.5 * plain.value(theta))
    both.recentre(importances, theta, scale=0.0)
    assert both.value(theta).item() == 0.0
    torch.testing.assert_close(
        both.value({n: t + theta[n] - anchor[n] for n, t in theta.items()}).item(),
        0.7 * 3.5 * plain.value(theta).item(),
    )
    both.recentre(importances, anchor, decay=0.0)
    assert not both.terms
    assert not both.diagonal.precision


def test_tasks_that_are_alike_add_up_linearly_apart_and_quadratically_online() -> None:
    g = generator()
    importances, anchor, theta = fisher(g, SHAPES), tensors(g, SHAPES), tensors(g, SHAPES)
    importances = KroneckerFisher(importances.blocks, {})
    one, separate, online = KroneckerPenalty(), KroneckerPenalty(), KroneckerPenalty()
    one.merge(importances, anchor)
    for _ in range(3):
        separate.merge(importances, anchor)
        online.recentre(importances, anchor)
    torch.testing.assert_close(separate.value(theta), 3 * one.value(theta))
    torch.testing.assert_close(online.value(theta), 9 * one.value(theta))


def test_bias_and_single_inputs_are_the_quadratic_penalty() -> None:
    # Where both factors have one entry a parameter they are numbers, and there is nothing to approximate.
    g = generator()
    kronecker, quadratic = KroneckerPenalty(), QuadraticPenalty()
    for _ in range(3):
        importances = KroneckerFisher({"s": block(g, {"s": (1,)})}, {"n": tensors(g, {"n": (2,)})["n"] ** 2})
        anchor = tensors(g, {"s": (1,), "n": (2,)})
        kronecker.merge(importances, anchor, scale=2.0)
        quadratic.merge(importances.diagonal(), anchor, scale=2.0)
    theta = tensors(g, {"s": (1,), "n": (2,)})
    torch.testing.assert_close(kronecker.value(theta), quadratic.value(theta))


def test_what_is_zero_costs_nothing() -> None:
    g = generator()
    importances, anchor = fisher(g, SHAPES), tensors(g, SHAPES)
    fc = importances.blocks["fc"]
    idle = KroneckerFisher({"fc": KroneckerBlock(fc.shapes, fc.inputs, fc.outputs * 0)}, {"norm": torch.zeros(3)})
    for penalty in (KroneckerPenalty(), KroneckerPenalty()):
        penalty.merge(idle, anchor)
        penalty.recentre(idle, anchor)
        penalty.merge(importances, anchor, scale=0.0)
        assert not penalty.terms
        assert not penalty.diagonal.precision
        assert penalty.value(anchor).item() == 0.0
    penalty.recentre(importances, anchor)
    before = penalty.terms["fc"][0].block
    penalty.recentre(idle, anchor)  # another task's head: its inputs alone must not make it stiffer
    assert torch.equal(penalty.terms["fc"][0].block.inputs, before.inputs)


def test_a_layer_may_lose_and_regain_its_factors() -> None:
    g = generator()
    shapes = {n: SHAPES[n] for n in ("fc.weight", "fc.bias")}
    whole = KroneckerFisher({"fc": block(g, shapes)}, {})
    bias_only = whole.restricted({"fc.bias"})
    diagonal = KroneckerFisher({}, {n: t**2 for n, t in tensors(g, shapes).items()})
    for online in (True, False):
        penalty, reference = KroneckerPenalty(), DenseReference(summed=online)
        for importances in (bias_only, whole, diagonal, whole, bias_only):
            anchor = tensors(g, shapes)
            (penalty.recentre if online else penalty.merge)(importances, anchor, scale=2.0)
            reference.add(importances, anchor, 2.0)
            assert_equal_functions(penalty, reference, tensors(g, shapes))


def test_groups_may_be_added_but_not_grow() -> None:
    g = generator()
    old, more = {"c.weight": (2, 1, 3)}, {"c.weight": (3, 1, 3)}
    penalty, reference = KroneckerPenalty(), DenseReference(summed=True)
    for shapes, groups in ((old, 2), (more, 3)):
        importances, anchor = KroneckerFisher({"c": block(g, shapes, groups)}, {}), tensors(g, shapes)
        penalty.recentre(importances, anchor)
        reference.add(importances, anchor, 1.0)
    assert_equal_functions(penalty, reference, tensors(g, more))
    larger = {"c.weight": (6, 1, 3)}
    state = penalty.state_dict()
    with pytest.raises(ValueError, match=r"'c.weight' has 3 groups of 2 outputs, the penalty protects 3 of 1"):
        penalty.recentre(KroneckerFisher({"c": block(g, larger, 3)}, {}), tensors(g, larger))
    assert penalty.state_dict() == state
    penalty.merge(KroneckerFisher({"c": block(g, larger, 3)}, {}), tensors(g, larger))  # apart, they need no sum


def test_distance_by_names_is_of_the_terms_that_have_one_of_them() -> None:
    g = generator()
    penalty = KroneckerPenalty()
    for _ in range(2):
        penalty.merge(fisher(g, SHAPES), tensors(g, SHAPES))
    theta = {n: t.requires_grad_() for n, t in tensors(g, SHAPES).items()}
    whole, fc, conv, norm = (penalty.distance(theta, n) for n in (None, ["fc.bias"], ["conv.weight"], ["norm"]))
    torch.testing.assert_close(fc + conv + norm, whole)
    assert torch.equal(fc, penalty.distance(theta, ["fc.weight", "fc.bias", "other"]))
    assert penalty.distance(theta, []).item() == 0.0
    for names in ([], ["fc.bias"], ["norm", "conv.weight"], list(SHAPES)):
        parts = penalty.distance(theta, names), penalty.distance_without(theta, names)
        torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(penalty.value(theta), whole + penalty.constant)
    assert penalty.constant > 0
    of_bias = torch.autograd.grad(fc, list(theta.values()), allow_unused=True)
    assert [g is not None for g in of_bias] == [n == "fc.bias" for n in theta]
    torch.testing.assert_close(of_bias[1], torch.autograd.grad(whole, theta["fc.bias"])[0])


def test_add_gradient_scales_and_leaves_frozen_and_unnamed_parameters() -> None:
    g = generator()
    penalty = KroneckerPenalty()
    penalty.merge(fisher(g, SHAPES), tensors(g, SHAPES))
    theta = {n: t.requires_grad_(n != "fc.bias") for n, t in tensors(g, SHAPES).items()}
    (0.5 * penalty.value(theta)).backward()
    expected = {n: t.grad for n, t in theta.items()}
    for t in theta.values():
        t.grad = None
    theta["fc.weight"].grad = torch.ones(2, 3, dtype=F64)
    penalty.add_gradient_(theta, 0.5, names=["fc.weight", "fc.bias", "norm"])
    assert expected["fc.weight"] is not None
    torch.testing.assert_close(theta["fc.weight"].grad, 1 + expected["fc.weight"])
    torch.testing.assert_close(theta["norm"].grad, expected["norm"])
    assert theta["fc.bias"].grad is None
    assert theta["conv.weight"].grad is None


def test_can_be_differentiated_again() -> None:
    g = generator()
    penalty = KroneckerPenalty()
    penalty.merge(fisher(g, SHAPES), tensors(g, SHAPES))
    theta = {n: t.requires_grad_() for n, t in tensors(g, SHAPES).items() if n != "norm"} | {"norm": torch.ones(3)}
    inputs = [t for t in theta.values() if t.requires_grad]

    def value(*values: Tensor) -> Tensor:
        return penalty.value(dict(zip(theta, (*values, theta["norm"]), strict=True)))

    torch.autograd.gradcheck(value, inputs)
    torch.autograd.gradgradcheck(value, inputs)
    for t in inputs:
        t.grad = (t**2).clone()  # with a graph
    penalty.add_gradient_(theta)
    first = theta["fc.weight"]
    (hessian_row,) = torch.autograd.grad(first.grad[0, 0], first)  # type: ignore[index]
    factors = penalty.terms["fc"][0].block
    expected = torch.outer(factors.outputs[0, 0], factors.inputs[0, 0, :3])
    expected[0, 0] += 2 * first[0, 0].detach()
    torch.testing.assert_close(hessian_row, expected)


def test_backward_twice_through_a_retained_graph() -> None:
    penalty = KroneckerPenalty()
    two, one = torch.full((1, 1, 1), 2.0), torch.ones(1, 1, 1)
    penalty.merge(KroneckerFisher({"s": KroneckerBlock({"s": (1,)}, two, one)}, {}), {"s": torch.ones(1)})
    theta = torch.tensor([4.0], requires_grad=True)
    value = penalty.value({"s": theta})
    value.backward(retain_graph=True)
    (3 * value).backward()
    assert theta.grad is not None
    assert theta.grad.item() == pytest.approx(6.0 + 18.0)


def test_follows_dtype_and_memory_format_and_copies_what_it_keeps() -> None:
    g = generator()
    importances, anchor, theta = fisher(g, SHAPES), tensors(g, SHAPES), tensors(g, SHAPES)
    for join in ("merge", "recentre"):
        penalty, reference = KroneckerPenalty(), DenseReference()
        getattr(penalty, join)(importances, anchor)
        reference.add(importances, anchor, 1.0)
        written = [t.clone() for t in anchor.values()]
        for t in anchor.values():
            t.add_(100)
        for b in importances.blocks.values():
            b.inputs.mul_(100)
        last = theta | {"conv.weight": theta["conv.weight"].to(memory_format=torch.channels_last)}
        assert_equal_functions(penalty, reference, last)
        single = penalty.value({n: t.float() for n, t in theta.items()})
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), reference.value(theta), rtol=1e-5, atol=0)
        assert penalty.terms["fc"][0].centre.dtype == torch.float32
        for t, was in zip(anchor.values(), written, strict=True):
            t.copy_(was)
        for b in importances.blocks.values():
            b.inputs.div_(100)


def test_largest_eigenvalues_are_those_of_the_dense_blocks() -> None:
    g = generator()
    penalty, reference = KroneckerPenalty(), DenseReference()
    for _ in range(2):
        importances, anchor = fisher(g, SHAPES), tensors(g, SHAPES)
        penalty.merge(importances, anchor, scale=3.0)
        reference.add(importances, anchor, 3.0)
    largest = penalty.largest_eigenvalues()
    assert largest.keys() == SHAPES.keys()
    for layer in ("fc", "conv"):
        expected = max(float(torch.linalg.eigvalsh(reference.matrix(layer, t)[1])[-1]) for t in range(2))
        assert largest[f"{layer}.weight"] == pytest.approx(expected)
    assert largest["norm"] == float(penalty.diagonal.precision["norm"].max())


def test_joined_is_the_sum() -> None:
    g = generator()
    parts = [KroneckerPenalty() for _ in range(3)]
    for part in parts:
        part.merge(fisher(g, SHAPES), tensors(g, SHAPES))
    theta = tensors(g, SHAPES)
    torch.testing.assert_close(KroneckerPenalty.joined(parts).value(theta), sum(p.value(theta) for p in parts))
    assert [len(p.terms["fc"]) for p in parts] == [1, 1, 1]


# ---------------------------------------------------------------------- its state, and what it refuses


def test_state_round_trip_and_its_copies() -> None:
    g = generator()
    penalty, again = KroneckerPenalty(), KroneckerPenalty()
    for _ in range(2):
        penalty.merge(fisher(g, SHAPES), tensors(g, SHAPES))
    file = io.BytesIO()
    torch.save(penalty.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again.load_state_dict(state)
    theta = tensors(g, SHAPES)
    kept = penalty.value(theta)
    assert torch.equal(again.value(theta), kept)
    state["terms"]["fc"][0]["inputs"].mul_(2)
    held = penalty.state_dict()
    penalty.merge(fisher(g, SHAPES), tensors(g, SHAPES))
    assert torch.equal(again.value(theta), kept)
    again.load_state_dict(held)  # a state is a snapshot
    assert torch.equal(again.value(theta), kept)


def term(state: dict[str, Any]) -> dict[str, Any]:
    return state["terms"]["fc"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("terms"), "entries"),
        (lambda s: s.update(extra=1), "entries"),
        (lambda s: s.update(terms=[]), "terms must be lists by layer name, got"),
        (lambda s: s["terms"].update(fc=3), "terms must be lists by layer name, got"),
        (lambda s: s["terms"]["fc"].append(3), "a term's state has the entries .*, got int"),
        (lambda s: term(s).pop("centre"), "a term's state has the entries"),
        (
            lambda s: term(s).update(inputs=torch.ones(1, 3, 3, dtype=F64)),
            r"'inputs' of \['fc.weight', 'fc.bias'\] .* shape \(1, 4, 4\), got \(1, 3, 3\)",
        ),
        (lambda s: term(s).update(outputs=torch.ones(1, 2, 3)), r"'outputs' of .* shape \(1, 2, 2\), got \(1, 2, 3\)"),
        (lambda s: term(s).update(outputs=torch.ones(3, 2, 2)), "factors for 3 groups do not fit"),
        (lambda s: term(s).update(shapes={}), "do not fit parameters of shapes {}"),
        (lambda s: term(s).update(shapes={"fc.weight": 3}), "shapes of a term must be tuples"),
        (lambda s: term(s).update(centre=torch.ones(2)), "centre .* must be finite and of shape"),
        (lambda s: term(s)["centre"].fill_(float("nan")), "centre .* must be finite"),
        (lambda s: term(s)["inputs"].fill_(float("inf")), "'inputs' of .* has NaN or infinite"),
        (lambda s: term(s)["outputs"].neg_(), "'outputs' of .* has negative"),
        (lambda s: term(s)["outputs"][0, 0, 1].add_(1), "'outputs' of .* is not symmetric"),
        (lambda s: term(s).update(inputs=torch.ones(1, 4, 4).int()), "inputs of a term must be a tensor of floats"),
        (lambda s: term(s).update(inputs=None), "inputs of a term must be a tensor of floats, got NoneType"),
        (lambda s: s["diagonal"].update(constant=float("nan")), "constant"),
        (lambda s: s.update(diagonal=KroneckerPenalty().state_dict()), "entries"),
    ],
)
def test_load_refuses_what_is_not_a_penalty(change: Any, message: str) -> None:
    g = generator()
    penalty, other = KroneckerPenalty(), KroneckerPenalty()
    for _ in range(2):
        penalty.merge(fisher(g, SHAPES), tensors(g, SHAPES))
    other.merge(fisher(g, SHAPES), tensors(g, SHAPES))
    theta = tensors(g, SHAPES)
    before = other.value(theta)
    file = io.BytesIO()
    torch.save(penalty.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    change(state)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
    assert torch.equal(other.value(theta), before)


def changed(importances: KroneckerFisher, **factors: Any) -> KroneckerFisher:
    fc = importances.blocks["fc"]
    parts = {"shapes": fc.shapes, "inputs": fc.inputs, "outputs": fc.outputs} | factors
    return KroneckerFisher(importances.blocks | {"fc": KroneckerBlock(**parts)}, importances.rest)


@pytest.mark.parametrize("join", ["merge", "recentre"])
@pytest.mark.parametrize(
    ("change", "anchor", "scale", "message"),
    [
        (lambda f: changed(f, inputs=f.blocks["fc"].inputs * float("nan")), {}, 1.0, "'inputs' of .* has NaN"),
        (lambda f: changed(f, outputs=-f.blocks["fc"].outputs), {}, 1.0, "'outputs' of .* has negative"),
        (lambda f: changed(f, inputs=torch.ones(1, 2, 2)), {}, 1.0, r"'inputs' of .* got \(1, 2, 2\)"),
        (lambda f: f, {"fc.weight": torch.full((2, 3), float("nan"))}, 1.0, "parameter 'fc.weight' has NaN"),
        (lambda f: f, {"norm": torch.full((3,), float("nan"))}, 1.0, "parameter 'norm' has NaN"),
        (lambda f: f, {"fc.weight": torch.ones(1, 3)}, 1.0, "may grow, not shrink"),
        (
            lambda f: f,
            {"fc.weight": torch.ones(3, 3)},
            1.0,
            r"Fisher of 'fc.weight' is for shape \(2, 3\), .* \(3, 3\)",
        ),
        (lambda f: f, {"fc.bias": None}, 1.0, "'fc.bias' is protected .* not in the model"),
        (lambda f: f, {"norm": None}, 1.0, "'norm' is protected .* not in the model"),
        (lambda f: f, {}, -1.0, r"scale \(lambda\) must be a number >= 0"),
        (lambda f: f, {}, float("nan"), r"scale \(lambda\) must be a number >= 0"),
        (lambda f: changed(f, outputs=f.blocks["fc"].outputs * 1e300), {}, 1e300, "'fc.weight'.* overflows"),
    ],
)
def test_bad_tasks_are_refused_and_change_nothing(
    join: str, change: Any, anchor: dict[str, Any], scale: float, message: str
) -> None:
    g = generator()
    penalty = KroneckerPenalty()
    penalty.merge(fisher(g, SHAPES), tensors(g, SHAPES))
    theta = tensors(g, SHAPES)
    before = penalty.value(theta)
    importances = change(fisher(g, SHAPES))
    parameters = {n: t for n, t in (tensors(g, SHAPES) | anchor).items() if t is not None}
    with pytest.raises(ValueError, match=message):
        getattr(penalty, join)(importances, parameters, scale=scale)
    assert torch.equal(penalty.value(theta), before)


def test_protected_parameters_that_are_gone_or_smaller_are_named() -> None:
    g = generator()
    penalty = KroneckerPenalty()
    penalty.merge(fisher(g, SHAPES), tensors(g, SHAPES))
    for theta, message in (
        ({n: t for n, t in tensors(g, SHAPES).items() if n != "fc.bias"}, "'fc.bias' is protected"),
        ({n: t for n, t in tensors(g, SHAPES).items() if n != "norm"}, "'norm' is protected"),
        (tensors(g, SHAPES) | {"conv.weight": torch.ones(4, 2, 1, 2)}, r"'conv.weight' has shape \(4, 2, 1, 2\)"),
        (tensors(g, SHAPES) | {"fc.weight": torch.ones(6)}, "number of dimensions"),
    ):
        for use in (penalty.value, penalty.check, penalty.add_gradient_):
            with pytest.raises(ValueError, match=message):
                use(theta)  # type: ignore[operator]
