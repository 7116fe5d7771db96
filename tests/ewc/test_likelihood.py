"""What the likelihoods say about the labels: scores whose squares make the expectation, and Fishers under each."""

import pytest
import torch
from fisher_cases import assert_same, batches, make
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import fisher_reference
from torch import Tensor, distributions, nn
from torch.nn import functional

from avl_plugins import diagonal_fisher
from avl_plugins.ewc.likelihood import Categorical


def second_moment(scores: list[Tensor], z: Tensor) -> Tensor:
    return sum((g.unsqueeze(2) * g.unsqueeze(1) for g in scores), torch.zeros(*z.shape, z.shape[1], dtype=z.dtype))


@settings(deadline=None)
@given(
    classes=st.integers(1, 12),
    spread=st.sampled_from([0.0, 1.0, 10.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_exact_scores_add_up_to_the_expectation_over_classes(classes: int, spread: float, seed: int) -> None:
    z = torch.randn(5, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * spread
    p = z.softmax(1)
    residuals = torch.eye(classes, dtype=torch.float64) - p.unsqueeze(1)  # (N, y, k): one-hot(y) - p
    expected = (p.unsqueeze(2).unsqueeze(3) * residuals.unsqueeze(3) * residuals.unsqueeze(2)).sum(1)
    scores = list(Categorical().exact(z))
    torch.testing.assert_close(second_moment(scores, z), expected, rtol=1e-9, atol=1e-14)
    assert len(scores) == classes - 1


def test_masked_classes_take_no_pass() -> None:
    z = torch.tensor([[0.3, -1000.0, 0.1, -1000.0], [2.0, -1000.0, -0.5, -1000.0]])
    scores = list(Categorical().exact(z))
    assert len(scores) == 1
    p = z[:, [0, 2]].softmax(1)
    torch.testing.assert_close(scores[0][:, 0].square(), p[:, 0] * p[:, 1])
    assert torch.equal(scores[0][:, [1, 3]], torch.zeros(2, 2))
    torch.testing.assert_close(scores[0].sum(1), torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saturated_net_keeps_its_small_probabilities(dtype: torch.dtype) -> None:
    """1 - p of the likely class is 0 in float32; its variance p (1 - p) is not."""
    z = torch.tensor([[20.0, 0.0, -2.0], [0.0, 24.0, 1.0]], dtype=dtype)
    p = z.double().softmax(1)
    others = torch.stack([p[:, 1] + p[:, 2], p[:, 0] + p[:, 2], p[:, 0] + p[:, 1]], 1)
    scores = list(Categorical().exact(z))
    assert all(g.dtype == dtype for g in scores)
    variance = second_moment([g.double() for g in scores], z.double()).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(variance, p * others, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=0)


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


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_other_likelihoods_exact(likelihood):
    model, x, _ = make("mlp")
    expected = fisher_reference(model, x, likelihood=likelihood)
    assert_same(diagonal_fisher(model, batches(x, torch.zeros(5, 3), 2), likelihood=likelihood), expected)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_other_likelihoods_empirical(likelihood):
    model, x, _ = make("mlp")
    y = torch.rand(5, 3).round().double()
    expected = fisher_reference(model, x, y, labels="empirical", likelihood=likelihood)
    assert_same(diagonal_fisher(model, batches(x, y, 2), labels="empirical", likelihood=likelihood), expected)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_sampled_converges_to_exact(likelihood):
    model, x, _ = make("mlp")
    exact = diagonal_fisher(model, [(x, None)], likelihood=likelihood)
    many = [(x.repeat(4000, 1), None)]
    sampled = diagonal_fisher(model, many, labels="sampled", likelihood=likelihood)
    trace = {k: sum(float(f.sum()) for f in d.values()) for k, d in (("exact", exact), ("sampled", sampled))}
    assert trace["sampled"] == pytest.approx(trace["exact"], rel=0.03)


def test_a_distribution_as_likelihood_equals_the_named_one():
    model, x, y = make("mlp")
    ours = diagonal_fisher(model, batches(x, y, 2), likelihood=lambda z: distributions.Categorical(logits=z))
    assert_same(ours, diagonal_fisher(model, [(x, y)]))
    bits = torch.rand(5, 3).round().double()
    ours = diagonal_fisher(
        model,
        [(x, bits)],
        labels="empirical",
        likelihood=lambda z: distributions.Independent(distributions.Bernoulli(logits=z), 1),
    )
    assert_same(ours, diagonal_fisher(model, [(x, bits)], labels="empirical", likelihood="bernoulli"))
    sampled = diagonal_fisher(
        model, [(x, y)], labels="sampled", likelihood=lambda z: distributions.Categorical(logits=z)
    )
    assert all(f.isfinite().all() for f in sampled.values())
    with pytest.raises(ValueError, match="labels='sampled'"):
        diagonal_fisher(model, [(x, y)], likelihood=lambda z: distributions.Normal(z, 1.0))
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
