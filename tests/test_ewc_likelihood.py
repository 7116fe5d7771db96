"""What the likelihoods say about the labels: scores whose squares make the expectation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

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
