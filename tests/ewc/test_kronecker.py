"""`kronecker_fisher` against loops in float64, the true blocks where it is exact, curvlinops, and its invariants."""

import copy
import logging
import warnings

import pytest
import torch
from fisher_cases import MODELS, assert_same, batches, make
from reference import block_reference, factors_reference
from routing_cases import Cell, Experts, two_heads
from torch import nn

from avl_plugins.ewc.fisher import diagonal_fisher
from avl_plugins.ewc.kronecker import kronecker_fisher
from avl_plugins.ewc.kronecker_penalty import KroneckerPenalty
from avl_plugins.ewc.kronecker_proximal import kronecker_proximal_step_
from avl_plugins.ewc.likelihood import Categorical

with warnings.catch_warnings():  # it uses torch.jit, which is deprecated
    warnings.simplefilter("ignore")
    from curvlinops import KFACLinearOperator

F64 = torch.float64
LABELS = ["exact", "sampled", "empirical"]

FACTORED = {
    "mlp": {"0", "2"},
    "mlp with batch norm and dropout": {"0", "4"},
    "mlp on sequences": {"0", "4"},
    "frozen weight": {"0", "2"},
    "conv, padding": {"0", "3", "8"},
    "conv, stride, dilation, groups": {"0", "3", "8"},
    "conv, circular": {"0", "3", "8"},
    "conv, same": {"0", "3", "8"},
    "conv1d": {"0", "3"},
    "conv3d has no rule": {"2"},
    "a layer used twice": {"out"},
    "a weight used outside its layer": {"out"},
    "sequence first": {"out"},
    "rnn": {"out"},
    "gru": {"out"},
    "lstm": {"out"},
    "attention": {"mix", "out"},
    "attention, tied": {"mix", "out"},
}


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def uniforms(samples):
    return torch.rand(samples, generator=generator(), dtype=F64)


def assert_factors(block, expected, relative=1e-9):
    for factor, reference in zip((block.inputs, block.outputs), expected, strict=True):
        atol = relative * float(reference.abs().max())
        torch.testing.assert_close(factor.to(F64), reference, rtol=relative, atol=atol)


def dense(block):
    """Each group's block, rows of the weight one after another."""
    return [torch.kron(g, a) for g, a in zip(block.outputs, block.inputs, strict=True)]


def one_position(**options):
    """Convolutions whose kernels are as large as their inputs: no weight is shared."""
    convolutions = nn.Conv2d(2, 4, (3, 2), **options), nn.Tanh(), nn.Conv2d(4, 6, 1)
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(6, 3))


def linear_net():
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))


# ---------------------------------------------------------------------- what the factors are


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", FACTORED)
def test_equals_the_loops_over_samples_and_positions(name, labels):
    model, x, y = make(name)
    diagonal = diagonal_fisher(model, [(x, y)], labels=labels, generator=generator())
    for size in (5, 2):
        fisher = kronecker_fisher(model, batches(x, y, size), labels=labels, generator=generator())
        assert fisher.blocks.keys() == FACTORED[name]
        for layer, block in fisher.blocks.items():
            expected = factors_reference(model, layer, x, y, labels=labels, uniforms=uniforms(5))
            if "tied" in name and layer == "out":  # its weight is the embedding's
                expected = expected[0][:, -1:, -1:], expected[1]
            assert_factors(block, expected)
        assert_same(fisher.rest, {n: diagonal[n] for n in fisher.rest})
        factored = {n for block in fisher.blocks.values() for n in block.shapes}
        assert sorted(factored | fisher.rest.keys()) == sorted(diagonal)
        assert not factored & fisher.rest.keys()


@pytest.mark.parametrize("name", ["mlp", "conv, stride, dilation, groups", "mlp on sequences"])
def test_in_single_precision(name):
    model, x, y = make(name)
    fisher = kronecker_fisher(copy.deepcopy(model).float(), [(x.float(), y)])
    for layer, block in fisher.blocks.items():
        assert block.inputs.dtype == block.outputs.dtype == torch.float32
        assert_factors(block, factors_reference(model, layer, x), relative=1e-5)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: MODELS["mlp"][0](), (5,)),
        (lambda: MODELS["frozen weight"][0](), (5,)),
        (one_position, (2, 3, 2)),
        (lambda: one_position(groups=2), (2, 3, 2)),
        (lambda: nn.Sequential(nn.Conv1d(6, 4, 4, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)), (6, 4)),
    ],
    ids=["mlp", "frozen weight", "conv", "conv with groups", "conv1d with groups"],
)
def test_one_samples_block_is_exact(build, shape, labels):
    torch.manual_seed(0)
    model, x, y = build().double(), torch.randn(1, *shape, dtype=F64), torch.tensor([1])
    fisher = kronecker_fisher(model, [(x, y)], labels=labels, generator=generator())
    for layer, block in fisher.blocks.items():
        true = block_reference(model, layer, x, y, labels=labels, uniforms=uniforms(1))
        for k, group in enumerate(dense(block)):
            own = slice(k * len(group), (k + 1) * len(group))
            torch.testing.assert_close(group, true[own, own], rtol=1e-12, atol=1e-14)
    diagonal = diagonal_fisher(model, [(x, y)], labels=labels, generator=generator())
    assert_same(fisher.diagonal(), diagonal, relative=1e-12)


@pytest.mark.parametrize("shape", [(4,), (6, 4)], ids=["vectors", "sequences"])
def test_linear_nets_blocks_are_exact(shape):
    torch.manual_seed(0)
    model, x = linear_net().double(), torch.randn(5, *shape, dtype=F64)
    fisher = kronecker_fisher(model, [(x, torch.zeros(5, *shape[:-1], 3))], likelihood="gaussian")
    assert fisher.blocks.keys() == {"0", "1"}
    for layer, block in fisher.blocks.items():
        true = block_reference(model, layer, x, likelihood="gaussian")
        torch.testing.assert_close(dense(block)[0], true, rtol=1e-12, atol=1e-12)


THEIR_NETS = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 6, bias=False), nn.Tanh(), nn.Linear(6, 3)
        ),
        (5,),
    ),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(4, 3, 2, dilation=2, bias=False),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(12, 3),
        ),
        (2, 7, 7),
    ),
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", THEIR_NETS)
def test_equals_curvlinops(name, labels):
    torch.manual_seed(0)
    build, shape = THEIR_NETS[name]
    model, x, y = build(), torch.randn(7, *shape), torch.randint(0, 3, (7,))
    fisher = kronecker_fisher(model, batches(x, y, 3), labels=labels, generator=generator())
    if labels == "sampled":  # theirs draws otherwise, so it is given ours as data
        y = Categorical().sample(model(x).detach(), lambda size: torch.rand(size, generator=generator(), dtype=F64))
    theirs = KFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        batches(x, y, 3),
        fisher_type="type-2" if labels == "exact" else "empirical",
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    theirs.compute_kronecker_factors()
    assert fisher.blocks.keys() == theirs._gradient_covariances.keys()
    for layer, block in fisher.blocks.items():
        expected = theirs._input_covariances[layer], theirs._gradient_covariances[layer]
        assert_factors(block, [factor.unsqueeze(0).to(F64) for factor in expected], relative=1e-5)


def test_the_average_of_a_is_over_what_a_head_sees_and_of_g_over_all():
    model, x, y, t = two_heads()
    fisher = kronecker_fisher(model, [(x[:4], y[:4], t[:4]), {"x": x[4:], "y": y[4:], "t": t[4:]}])
    head = "classifier.classifiers.{}.classifier"
    assert fisher.blocks.keys() == {"features.0", head.format(0), head.format(1)}
    for task in (0, 1):
        own = x[t == task]
        a, g = factors_reference(model, head.format(task), own, task=task)
        assert_factors(fisher.blocks[head.format(task)], (a, g * len(own) / len(x)))
    assert not any(fisher.rest[f"{head.format(2)}.{end}"].any() for end in ("weight", "bias"))


# ---------------------------------------------------------------------- of what it is independent


@pytest.mark.parametrize("labels", ["exact", "empirical"])
def test_does_not_depend_on_order(labels):
    model, x, y = make("conv, padding", samples=7)
    order = torch.randperm(7)
    first = kronecker_fisher(model, batches(x[order], y[order], 3), labels=labels)
    second = kronecker_fisher(model, batches(x, y, 7), labels=labels)
    for layer, block in first.blocks.items():
        assert_factors(block, (second.blocks[layer].inputs, second.blocks[layer].outputs), relative=1e-12)
    assert_same(first.rest, second.rest, relative=1e-12)


def test_samples_without_a_gradient_count_whatever_batch_they_are_in():
    model, x, y = make("mlp", samples=6)
    x[4:] = 1e4  # so sure of its answer that no class but one has a probability
    assert not list(Categorical().exact(model(x[4:]).detach()))
    whole = kronecker_fisher(model, [(x, y)])
    for layer, block in kronecker_fisher(model, batches(x, y, 1)).blocks.items():
        assert_factors(block, factors_reference(model, layer, x))
        assert_factors(whole.blocks[layer], factors_reference(model, layer, x))


@pytest.mark.parametrize("form", ["list", "selectable"])
def test_layers_used_once_for_some_samples_only_get_their_diagonal(form, caplog):
    torch.manual_seed(0)
    model = Cell().double()
    short, long = (torch.randn(3, length, 4, dtype=F64) for length in (1, 4))
    data = [(short, torch.zeros(3).long()), (long, torch.zeros(3).long())]

    class Selectable(list):
        n_samples = 6

        def only(self, chosen):
            assert chosen.tolist() == list(range(6))
            return iter(self)

    expected = diagonal_fisher(model, data)
    for ordered in (data, data[::-1]):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="avl_plugins"):
            fisher = kronecker_fisher(model, Selectable(ordered) if form == "selectable" else ordered)
        assert fisher.blocks.keys() == {"out"}
        assert_same(fisher.rest, {n: expected[n] for n in ("cell.weight", "cell.bias")})
        again, without = "reading the data again: layers ['cell']", "layers ['cell'] get their diagonal instead"
        expected_messages = [again, without] if ordered is data else [without]
        of_factors = [record for record in caplog.records if record.name == "avl_plugins.ewc.kronecker"]
        for record, message in zip(of_factors, expected_messages, strict=True):
            assert record.getMessage().startswith(message)
    with pytest.raises(ValueError, match=r"layers \['cell'\] are called once for some samples .* pass a list"):
        kronecker_fisher(model, iter(data))
    kronecker_fisher(model, iter(data[::-1]))


def test_layers_that_see_some_rows_only_get_their_diagonal():
    torch.manual_seed(0)
    model, x = Experts().double(), torch.randn(12, 5, dtype=F64)
    x = x[x[:, 0].argsort()]
    expected = diagonal_fisher(model, [(x, torch.zeros(12).long())])
    for size in (3, 12):
        fisher = kronecker_fisher(model, batches(x, torch.zeros(12).long(), size))
        assert not fisher.blocks
        assert_same(fisher.rest, expected)


def test_the_subset_and_the_drawn_labels_are_the_diagonals():
    model, x, y = make("conv, padding", samples=20)
    options = {"labels": "sampled", "max_samples": 7}
    for seed in (1, 2):
        expected = diagonal_fisher(model, batches(x, y, 6), generator=generator(seed), **options)
        own = generator(seed)
        fisher = kronecker_fisher(model, batches(x, y, 6), generator=own, **options)
        assert_same(fisher.rest, {n: expected[n] for n in fisher.rest}, relative=1e-12)
        other = generator(seed)
        diagonal_fisher(model, batches(x, y, 6), generator=other, **options)
        assert torch.equal(own.get_state(), other.get_state())
    torch.manual_seed(5)
    first = kronecker_fisher(model, [(x, y)], **options)
    torch.rand(3)
    second = kronecker_fisher(model, [(x, y)], **options)
    assert torch.equal(first.blocks["0"].outputs, second.blocks["0"].outputs)
    assert not torch.equal(first.rest["1.weight"], fisher.rest["1.weight"])


def test_leaves_gradients_modes_statistics_and_random_state_as_they_were():
    model, x, y = make("mlp with batch norm and dropout")
    model.train()
    model[1].eval()
    model(x).sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random, kept = torch.get_rng_state(), x.clone()
    for labels in LABELS:
        with torch.no_grad():
            kronecker_fisher(model, batches(x, y, 2), labels=labels, max_samples=4)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, kept)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_bounded_parts_and_narrow_products_give_the_same_sums(monkeypatch):
    from avl_plugins.ewc import factors, per_sample

    for name in ("conv, stride, dilation, groups", "mlp on sequences"):
        model, x, y = make(name)
        whole = kronecker_fisher(model, [(x, y)])
        monkeypatch.setattr(per_sample, "MAX_ELEMENTS", 40)
        monkeypatch.setattr(factors, "MAX_ELEMENTS", 40)
        monkeypatch.setattr(factors, "WIDTH", 2)
        for layer, block in kronecker_fisher(model, [(x, y)]).blocks.items():
            assert_factors(block, (whole.blocks[layer].inputs, whole.blocks[layer].outputs), relative=1e-12)
        monkeypatch.undo()


def test_factors_are_symmetric_and_half_precision_adds_up_in_single():
    torch.manual_seed(0)
    model = nn.Linear(100, 2)
    x, y = torch.randn(3000, 100), torch.zeros(3000).long()
    block = kronecker_fisher(model, [(x, y)]).blocks[""]
    assert torch.equal(block.inputs, block.inputs.mT)
    assert torch.equal(block.outputs, block.outputs.mT)
    half = kronecker_fisher(copy.deepcopy(model).bfloat16(), batches(x.bfloat16(), y, 10)).blocks[""]
    assert half.inputs.dtype == half.outputs.dtype == torch.bfloat16
    torch.testing.assert_close(half.inputs.float(), block.inputs, rtol=0.02, atol=0.02)
    torch.testing.assert_close(half.outputs.float(), block.outputs, rtol=0.05, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["mlp", "conv, stride, dilation, groups", "gru", "attention"])
def test_cuda_equals_cpu(name):
    model, x, y = make(name)
    there = copy.deepcopy(model).cuda()
    expected, fisher = (kronecker_fisher(m, [(x, y)], labels="sampled") for m in (model, there))
    for layer, block in expected.blocks.items():
        assert fisher.blocks[layer].inputs.is_cuda
        assert_factors(fisher.to(dict(model.named_parameters())).blocks[layer], (block.inputs, block.outputs))
    values = []
    for m, f in ((model, expected), (there, fisher)):
        penalty, theta = KroneckerPenalty(), dict(m.named_parameters())
        penalty.recentre(f, {n: 0 * p for n, p in theta.items()}, scale=10.0)
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        penalty.value(theta).backward()
        kronecker_proximal_step_(penalty, optimizer, theta)
        values.append(penalty.value(theta).detach().cpu())
    torch.testing.assert_close(*values)


# ---------------------------------------------------------------------- what can be made of it


def test_restricted_and_scaled():
    model, x, y = make("conv, stride, dilation, groups")
    fisher = kronecker_fisher(model, [(x, y)])
    names = {"0.weight", "1.bias", "8.bias"}
    some = fisher.restricted(names)
    assert some.diagonal().keys() == names
    assert_same(some.diagonal(), {n: fisher.diagonal()[n] for n in names}, relative=1e-12)
    own = some.blocks["0"].inputs
    assert torch.equal(own, fisher.blocks["0"].inputs[:, :-1, :-1])
    assert some.blocks.keys() == {"0", "8"}
    assert_same(fisher.scaled(9).diagonal(), {n: 9 * f for n, f in fisher.diagonal().items()}, relative=1e-12)


def test_damping_adds_to_both_factors_and_to_the_diagonal():
    model, x, y = make("conv, stride, dilation, groups")
    plain, damped = (kronecker_fisher(model, [(x, y)], damping=delta) for delta in (0.0, 0.3))
    for layer, block in plain.blocks.items():
        for k in range(len(block.outputs)):
            a, g = block.inputs[k], block.outputs[k]
            pi = ((a.trace() / len(a)) / (g.trace() / len(g))).sqrt()
            eyes = torch.eye(len(a), dtype=F64), torch.eye(len(g), dtype=F64)
            expected = a + pi * 0.3**0.5 * eyes[0], g + 0.3**0.5 / pi * eyes[1]
            torch.testing.assert_close(damped.blocks[layer].inputs[k], expected[0])
            torch.testing.assert_close(damped.blocks[layer].outputs[k], expected[1])
    assert_same(damped.rest, {n: f + 0.3 for n, f in plain.rest.items()})
    model, x, y, t = two_heads()
    other = kronecker_fisher(model, [(x, y, t)], damping=0.3).rest["classifier.classifiers.2.classifier.weight"]
    assert not other.any()


# ---------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": []}, "batches is empty"),
        ({"labels": "batch"}, "labels must be 'exact', 'sampled' or 'empirical', got 'batch'"),
        ({"likelihood": "poisson"}, "likelihood must be 'categorical', 'bernoulli' or 'gaussian'"),
        ({"max_samples": 0}, "max_samples must be"),
        ({"damping": -1.0}, "damping must be a number >= 0, got -1.0"),
        ({"damping": float("inf")}, "damping must be a number >= 0, got inf"),
        ({"model": nn.Linear(5, 3).requires_grad_(False)}, "no parameter that requires gradients"),
        (
            {"model": nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False))},
            r"layer '1' \(BatchNorm1d\) has no running statistics",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    x, y = torch.zeros(2, 5), torch.zeros(2).long()
    arguments = {"model": nn.Linear(5, 3), "batches": [(x, y)]} | change
    with pytest.raises(ValueError, match=message):
        kronecker_fisher(arguments.pop("model"), arguments.pop("batches"), **arguments)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_factors_that_are_not_finite_name_a_parameter(bad):
    model, x, y = make("mlp")
    x[1, 2] = bad
    with pytest.raises(ValueError, match=r"parameter '[02]\.weight' is not finite"):
        kronecker_fisher(model, [(x, y)])
    assert not any(m._forward_hooks for m in model.modules())
