"""`diagonal_fisher` against a batch-size-1 loop in float64, its invariants and its errors."""

import copy
import logging

import pytest
import torch
from fisher_cases import ALL_MODELS, assert_same, batches, make
from reference import fisher_reference
from routing_cases import Cell, Experts, two_heads
from torch import nn
from torch.nn import functional

from avl_plugins import diagonal_fisher, register_fisher_rule
from avl_plugins.ewc.rules import linear


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["64", "32"])  # kernels differ
@pytest.mark.parametrize("labels", ["exact", "sampled", "empirical"])
@pytest.mark.parametrize("name", ALL_MODELS)
def test_equals_the_loop_over_samples(name, labels, dtype):
    model, x, y = make(name, dtype=dtype)
    uniforms = torch.rand(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = fisher_reference(model, x, y, labels=labels, uniforms=uniforms)
    assert max(f.max() for f in expected.values()) > 1e-4
    for size in (5, 2):
        generator = torch.Generator().manual_seed(3)
        assert_same(diagonal_fisher(model, batches(x, y, size), labels=labels, generator=generator), expected)


def test_multi_head_uses_each_samples_own_head_and_leaves_the_others_zero():
    model, x, y, t = two_heads()
    expected = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for task in (0, 1):
        part = fisher_reference(model, x[t == task], task=task)
        expected = {n: expected[n] + part[n] / 2 for n in expected}
    fisher = diagonal_fisher(model, [(x[:4], y[:4], t[:4]), {"x": x[4:], "y": y[4:], "t": t[4:]}])
    assert_same(fisher, expected)
    assert fisher["classifier.classifiers.1.classifier.weight"].sum() > 0
    assert fisher["classifier.classifiers.2.classifier.weight"].sum() == 0
    with pytest.raises(ValueError, match=r"\(x, y, t\)"):
        diagonal_fisher(model, [(x, y)])


def test_parameters_that_only_later_samples_use_count():
    torch.manual_seed(0)
    model, x = Experts().double(), torch.randn(12, 5, dtype=torch.float64)
    x = x[x[:, 0].argsort()]
    y = torch.zeros(12).long()
    expected = fisher_reference(model, x)
    assert min(float(f.max()) for f in expected.values()) > 0
    for ordered in (x, x.flip(0)):
        assert_same(diagonal_fisher(model, batches(ordered, y, 3)), expected)


def test_layers_that_later_batches_call_more_often_are_not_left_to_their_rule():
    torch.manual_seed(0)
    model = Cell().double()
    short, long = (torch.randn(3, length, 4, dtype=torch.float64) for length in (1, 4))
    y = torch.zeros(3).long()
    one, two = fisher_reference(model, short), fisher_reference(model, long)
    expected = {n: (one[n] + two[n]) / 2 for n in one}
    assert_same(diagonal_fisher(model, [(short, y), (long, y)]), expected)
    assert_same(diagonal_fisher(model, [(long, y), (short, y)]), expected)


def test_batch_is_the_square_of_the_mean_gradient():
    model, x, y = make("mlp with batch norm and dropout")
    expected = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    model.eval()
    for xs, ys in batches(x, y, 2):
        grads = torch.autograd.grad(functional.cross_entropy(model(xs), ys), list(model.parameters()))
        for name, g in zip(expected, grads, strict=True):
            expected[name] += g**2 / 3
    assert_same(diagonal_fisher(model, batches(x, y, 2), labels="batch"), expected)


@pytest.mark.parametrize("labels", ["exact", "empirical"])
def test_does_not_depend_on_order(labels):
    model, x, y = make("conv, padding", samples=7)
    order = torch.randperm(7)
    assert_same(
        diagonal_fisher(model, batches(x[order], y[order], 3), labels=labels),
        diagonal_fisher(model, batches(x, y, 7), labels=labels),
        relative=1e-12,
    )


def test_leaves_gradients_modes_statistics_and_random_state_as_they_were():
    model, x, y = make("mlp with batch norm and dropout")
    model.train()
    model[1].eval()
    model(x).sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.get_rng_state()
    for labels in ("exact", "sampled", "empirical", "batch"):
        with torch.no_grad():
            diagonal_fisher(model, batches(x, y, 2), labels=labels, max_samples=4)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_default_generator_comes_from_the_initial_seed():
    model, x, y = make("mlp", samples=20)
    torch.manual_seed(5)
    first = diagonal_fisher(model, [(x, y)], labels="sampled", max_samples=10)
    torch.rand(3)
    assert_same(diagonal_fisher(model, [(x, y)], labels="sampled", max_samples=10), first, relative=0)
    torch.manual_seed(6)
    other = diagonal_fisher(model, [(x, y)], labels="sampled", max_samples=10)
    assert not torch.equal(other["0.weight"], first["0.weight"])


def test_a_users_rule_is_used_where_right_and_refused_where_wrong():
    class Mine(nn.Linear):
        pass

    calls = []

    @register_fisher_rule(Mine)
    def rule(layer, x, g):
        calls.append(len(x))
        return linear(layer, x, g) if layer.out_features == 4 else {"weight": layer.weight * 0, "bias": layer.bias}

    torch.manual_seed(0)
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.zeros(5).long()
    for width in (4, 6):
        model = nn.Sequential(Mine(3, width), nn.Tanh(), nn.Linear(width, 2)).double()
        calls.clear()
        assert_same(diagonal_fisher(model, [(x, y)]), fisher_reference(model, x))
        assert sum(calls) >= (5 if width == 4 else 2)
    with pytest.raises(TypeError, match=r"nn\.Module"):
        register_fisher_rule(3)


def test_the_loop_is_logged_once_with_the_layers_name(caplog):
    model, x, y = make("gru")
    with caplog.at_level(logging.INFO, logger="avl_plugins"):
        diagonal_fisher(model, batches(x, y, 2))
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 1
    assert "cell (GRU)" in messages[0]


def test_bounded_parts_give_the_same_sums(monkeypatch):
    from avl_plugins.ewc import per_sample, rules

    for name in ("conv, stride, dilation, groups", "a layer used twice"):
        model, x, y = make(name)
        whole = diagonal_fisher(model, [(x, y)])
        monkeypatch.setattr(per_sample, "MAX_ELEMENTS", 40)
        monkeypatch.setattr(rules, "MAX_ELEMENTS", 40)
        assert_same(diagonal_fisher(model, [(x, y)]), whole, relative=1e-12)
        monkeypatch.undo()


def test_half_precision_adds_up_in_single():
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    x, y = torch.randn(3000, 4), torch.zeros(3000).long()
    expected = diagonal_fisher(model, [(x, y)])
    half = diagonal_fisher(copy.deepcopy(model).bfloat16(), batches(x.bfloat16(), y, 10))
    assert half["weight"].dtype == torch.bfloat16
    torch.testing.assert_close(half["weight"].float(), expected["weight"], rtol=0.05, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["mlp", "conv, padding", "gru", "attention"])
def test_cuda_equals_cpu(name):
    model, x, y = make(name)
    on_cpu = diagonal_fisher(model, [(x, y)], labels="sampled")
    on_gpu = diagonal_fisher(copy.deepcopy(model).cuda(), [(x, y)], labels="sampled")
    assert_same({n: f.cpu() for n, f in on_gpu.items()}, on_cpu, relative=1e-9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batches": []}, ValueError, "batches is empty"),
        ({"labels": "true"}, ValueError, "labels must be 'exact', 'sampled'"),
        ({"likelihood": "poisson"}, ValueError, "likelihood must be 'categorical', 'bernoulli'"),
        ({"max_samples": 0}, ValueError, "max_samples must be an integer >= 1, or None for all"),
        ({"max_samples": 1.5}, TypeError, "max_samples must be an integer >= 1"),
        ({"max_samples": True}, TypeError, "max_samples must be an integer >= 1"),
        ({"batches": [torch.zeros(2, 5)]}, TypeError, r"must yield \(x, y\)"),
        ({"batches": [{"input": 1}]}, TypeError, "keys 'x' and 'y'"),
        ({"model": nn.Linear(5, 3).requires_grad_(False)}, ValueError, "no parameter that requires gradients"),
        ({"model": nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))}, ValueError, "likelihood='bernoulli'"),
        ({"model": nn.Sequential(nn.Flatten(0), nn.Linear(10, 3))}, TypeError, "a row a sample"),
        (
            {"model": nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False))},
            ValueError,
            r"layer '1' \(BatchNorm1d\) has no running statistics",
        ),
    ],
)
def test_bad_input_is_named(change, error, message):
    x, y = torch.zeros(2, 5), torch.zeros(2).long()
    arguments = {"model": nn.Linear(5, 3), "batches": [(x, y)]} | change
    with pytest.raises(error, match=message):
        diagonal_fisher(arguments.pop("model"), arguments.pop("batches"), **arguments)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_fisher_that_is_not_finite_names_the_parameter(bad):
    model, x, y = make("mlp")
    model.train()
    with torch.no_grad():
        model[2].bias[0] = bad
    with pytest.raises(ValueError, match=r"parameter '[02]\.\w+' is not finite"):
        diagonal_fisher(model, [(x, y)])
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_labels_out_of_range_are_named():
    model, x, y = make("mlp")
    with pytest.raises(ValueError, match="labels run from 0 to 7, but the outputs have 3 classes"):
        diagonal_fisher(model, [(x, y * 0 + torch.arange(5) // 4 * 7)], labels="empirical")
