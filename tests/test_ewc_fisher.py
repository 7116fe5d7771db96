"""`diagonal_fisher` against a batch-size-1 loop in float64, its invariants and its errors."""

import copy
import logging

import pytest
import torch
from avalanche.models import MTSimpleMLP
from reference import fisher_reference
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent
from torch.nn import functional

from avl_plugins import diagonal_fisher, register_fisher_rule
from avl_plugins.ewc.rules import linear

RELATIVE = 1e-6


class Twice(nn.Module):
    """One linear layer used twice."""

    def __init__(self):
        super().__init__()
        self.shared, self.out = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.shared(self.shared(x).tanh()).tanh())


class Recurrent(nn.Module):
    def __init__(self, cell, batch_first=True):
        super().__init__()
        self.batch_first = batch_first
        self.cell, self.out = cell(4, 5, batch_first=batch_first), nn.Linear(5, 3)

    def forward(self, x):
        if not self.batch_first:
            return self.out(self.cell(x.transpose(0, 1))[0][-1])
        return self.out(self.cell(x)[0][:, -1])


class Attention(nn.Module):
    """Embedding with repeated tokens, self-attention, layer norm, and the embedding's weight as the output layer."""

    def __init__(self, tied=False):
        super().__init__()
        self.embed = nn.Embedding(6, 8, padding_idx=0)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.mix, self.out = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 6)
        if tied:
            self.out.weight = self.embed.weight

    def forward(self, x):
        h = self.embed(x)
        h = self.norm(h + self.attend(h, h, h, need_weights=False)[0])
        return self.out(self.mix(h).tanh().mean(1))


class OutsideItsLayer(nn.Module):
    """A layer called once, whose weight is also used without the layer: no rule can know."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(functional.linear(self.layer(x).tanh(), self.layer.weight))


class SequenceFirst(nn.Module):
    """Rows of the inner layers are positions, and there are as many as the probe has samples."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):  # (N, 2, 4)
        return self.out(self.layer(x.transpose(0, 1)).tanh().sum(0))


def conv(**options):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, **options),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, (1, 2), groups=2, bias=False),
        nn.GroupNorm(3, 6),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def frozen_weight():
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    model[0].weight.requires_grad_(False)
    return model


IMAGES, VECTORS, SEQUENCES = (2, 7, 7), (5,), (6, 4)
MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 3)), VECTORS),
    "mlp with batch norm and dropout": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(), nn.ReLU(), nn.Linear(7, 3)),
        VECTORS,
    ),
    "mlp on sequences": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Flatten(), nn.Linear(30, 3)),
        SEQUENCES,
    ),
    "frozen weight": (frozen_weight, VECTORS),
    "conv, padding": (lambda: conv(padding=1), IMAGES),
    "conv, stride, dilation, groups": (lambda: conv(padding=2, stride=2, dilation=2, groups=2), IMAGES),
    "conv, circular": (lambda: conv(padding=(2, 1), padding_mode="circular"), IMAGES),
    "conv, same": (lambda: conv(padding="same"), IMAGES),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(6, 4, 3, padding=1, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)),
        SEQUENCES,
    ),
    "conv3d has no rule": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(24, 3)),
        (1, 3, 3, 4),
    ),
    "a layer used twice": (Twice, VECTORS),
    "a weight used outside its layer": (OutsideItsLayer, VECTORS),
    "sequence first": (SequenceFirst, (2, 4)),
    "rnn": (lambda: Recurrent(nn.RNN), SEQUENCES),
    "gru": (lambda: Recurrent(nn.GRU, batch_first=False), SEQUENCES),
    "lstm": (lambda: Recurrent(nn.LSTM), SEQUENCES),
    "attention": (Attention, None),
    "attention, tied": (lambda: Attention(tied=True), None),
}


def make(name, samples=5):
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model = build().double()
    for module in model.modules():  # running statistics unlike those of the batch
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    if shape is None:
        x = torch.randint(0, 6, (samples, 4))
    else:
        x = torch.randn(samples, *shape, dtype=torch.float64)
    return model, x, torch.randint(0, 3, (samples,))


def batches(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def assert_same(fisher, expected, relative=RELATIVE):
    assert fisher.keys() == expected.keys()
    for name, value in fisher.items():
        torch.testing.assert_close(value, expected[name], rtol=relative, atol=relative * float(expected[name].max()))


@pytest.mark.parametrize("labels", ["exact", "sampled", "empirical"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_loop_over_samples(name, labels):
    model, x, y = make(name)
    uniforms = torch.rand(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = fisher_reference(model, x, y, labels=labels, uniforms=uniforms)
    assert max(f.max() for f in expected.values()) > 1e-4
    for size in (5, 2):
        generator = torch.Generator().manual_seed(3)
        assert_same(diagonal_fisher(model, batches(x, y, size), labels=labels, generator=generator), expected)


def test_multi_head_uses_each_samples_own_head_and_leaves_the_others_zero():
    torch.manual_seed(0)
    model = MTSimpleMLP(input_size=5, hidden_size=6)
    for task in (1, 2):
        head = copy.deepcopy(model.classifier.classifiers["0"])
        nn.init.normal_(head.classifier.weight)
        model.classifier.classifiers[str(task)] = head
    for task in range(3):
        model.classifier.register_buffer(f"active_units_T{task}", torch.ones(2, dtype=torch.int8))
    model = model.double()
    x, y, t = torch.randn(6, 5, dtype=torch.float64), torch.randint(0, 2, (6,)), torch.tensor([0, 1, 0, 1, 1, 0])
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


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_other_likelihoods_exact(likelihood):
    model, x, y = make("mlp")
    expected = fisher_reference(model, x, likelihood=likelihood)
    assert_same(diagonal_fisher(model, batches(x, y, 2), likelihood=likelihood), expected)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_other_likelihoods_empirical(likelihood):
    model, x, _ = make("mlp")
    y = torch.rand(5, 3).round().double()
    expected = fisher_reference(model, x, y, labels="empirical", likelihood=likelihood)
    assert_same(diagonal_fisher(model, batches(x, y, 2), labels="empirical", likelihood=likelihood), expected)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_sampled_converges_to_exact(likelihood):
    model, x, y = make("mlp")
    exact = diagonal_fisher(model, [(x, y)], likelihood=likelihood)
    many = [(x.repeat(4000, 1), y.repeat(4000))]
    sampled = diagonal_fisher(model, many, labels="sampled", likelihood=likelihood)
    trace = {k: sum(float(f.sum()) for f in d.values()) for k, d in (("exact", exact), ("sampled", sampled))}
    assert trace["sampled"] == pytest.approx(trace["exact"], rel=0.03)


def test_a_distribution_as_likelihood_equals_the_named_one():
    model, x, y = make("mlp")
    ours = diagonal_fisher(model, batches(x, y, 2), likelihood=lambda z: Categorical(logits=z))
    assert_same(ours, diagonal_fisher(model, [(x, y)]))
    bits = torch.rand(5, 3).round().double()
    ours = diagonal_fisher(
        model, [(x, bits)], labels="empirical", likelihood=lambda z: Independent(Bernoulli(logits=z), 1)
    )
    assert_same(ours, diagonal_fisher(model, [(x, bits)], labels="empirical", likelihood="bernoulli"))
    sampled = diagonal_fisher(model, [(x, y)], labels="sampled", likelihood=lambda z: Categorical(logits=z))
    assert all(f.isfinite().all() for f in sampled.values())
    with pytest.raises(ValueError, match="labels='sampled'"):
        diagonal_fisher(model, [(x, y)], likelihood=lambda z: torch.distributions.Normal(z, 1.0))
    with pytest.raises(TypeError, match="Distribution"):
        diagonal_fisher(model, [(x, y)], likelihood=lambda z: z.sum())


def test_dense_outputs_sum_over_pixels_and_skip_the_ignored():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 1)).double()
    x, y = torch.randn(3, 2, 4, 5, dtype=torch.float64), torch.randint(0, 4, (3, 4, 5))
    y[0, 1, 1:3] = y[2, 0] = -100

    def log_p(output, target):
        return -functional.cross_entropy(output.unsqueeze(0), target.unsqueeze(0), reduction="sum")

    expected = fisher_reference(model, x, y, labels="empirical", likelihood=log_p)
    assert_same(diagonal_fisher(model, batches(x, y, 2), labels="empirical"), expected)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    one, two = (
        diagonal_fisher(model, batches(x, y, size), labels="sampled", generator=g)
        for size, g in zip((3, 2), generators, strict=True)
    )
    assert_same(one, two)
    with pytest.raises(ValueError, match="labels='sampled'"):
        diagonal_fisher(model, [(x, y)])


class Experts(nn.Module):
    """Each row goes through one of two layers, so that a class-sorted stream shows the second one late."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        first = x[:, 0] > 0
        return (
            torch.zeros(len(x), 3, dtype=x.dtype)
            .index_put((first,), self.a(x[first]))
            .index_put((~first,), self.b(x[~first]))
        )


class Cell(nn.Module):
    """A recurrent net made of a linear layer, called once for sequences of length 1 and more often for longer ones."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.Linear(4 + 5, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.zeros(len(x), 5, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = self.cell(torch.cat([x[:, t], h], 1)).tanh()
        return self.out(h)


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


def test_masked_classes_cost_nothing_and_change_nothing():
    """Avalanche masks the logits of classes not seen yet with -1000."""
    model, x, y = make("mlp")

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            z = self.net(x)
            return torch.cat([z, torch.full_like(z, -1000.0)], 1)

    masked = diagonal_fisher(Masked(), [(x, y)])
    assert_same({n.removeprefix("net."): f for n, f in masked.items()}, diagonal_fisher(model, [(x, y)]))


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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batches": []}, ValueError, "batches is empty"),
        ({"labels": "true"}, ValueError, "labels must be one of 'exact'"),
        ({"likelihood": "poisson"}, ValueError, "likelihood must be one of 'categorical'"),
        ({"max_samples": 0}, ValueError, "max_samples must be at least 1"),
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["mlp", "conv, padding", "gru", "attention"])
def test_cuda_equals_cpu(name):
    model, x, y = make(name)
    on_cpu = diagonal_fisher(model, [(x, y)], labels="sampled")
    on_gpu = diagonal_fisher(copy.deepcopy(model).cuda(), [(x, y)], labels="sampled")
    assert_same({n: f.cpu() for n, f in on_gpu.items()}, on_cpu, relative=1e-9)
