"""Frechet distance between two sets of inputs, in the features of a small classifier trained for the purpose."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from avl_plugins.tasks.arguments import check_count

__all__ = ["frechet_distance", "small_classifier"]


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Return ||m_1 - m_2||^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), of the Gaussians with the moments of two samples.

    (Dowson and Landau 1982; the FID of Heusel et al. 2017 is this in the features of a certain network.)

    Args:
        one: (N, D) features, N >= 2.
        other: (M, D) features, M >= 2.

    Raises:
        ValueError: If a sample is too small, the widths differ or a feature is not finite.
    """
    if one.dim() != 2 or other.dim() != 2 or one.shape[1] != other.shape[1]:
        raise ValueError(f"features: expected (N, D) and (M, D), got {tuple(one.shape)} and {tuple(other.shape)}")
    if min(len(one), len(other)) < 2 or not (one.isfinite().all() and other.isfinite().all()):
        raise ValueError(f"features: expected at least two finite rows in each, got {len(one)} and {len(other)} rows")
    a, b = one.double(), other.double()
    difference = a.mean(0) - b.mean(0)
    first, second = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(a.shape[1], -1)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # The square root of C_1 C_2 has the trace of that of the symmetric root C_2 root.
    trace = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    distance = difference.square().sum() + first.trace() + second.trace() - 2 * trace
    return max(0.0, float(distance))


def small_classifier(
    x: Tensor, y: Tensor, *, iterations: int = 300, width: int = 128, features: int = 32, seed: int = 0
) -> Callable[[Tensor], Tensor]:
    """Train a classifier of two hidden layers; return the function from inputs to its last one, (N, features).

    The global random state is left as it was.

    Args:
        x: inputs (N, *shape), flattened for it.
        y: class labels (N,).
        iterations: steps of Adam on batches of 128.
        width: units in the first hidden layer.
        features: units in the second.
        seed: of weights and batches.
    """
    for name, count in (("iterations", iterations), ("width", width), ("features", features)):
        check_count(name, count)
    check_count("seed", seed, low=0)
    x = x.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(
            nn.Flatten(), nn.Linear(x[0].numel(), width), nn.ReLU(), nn.Linear(width, features), nn.ReLU()
        )
        head = nn.Linear(features, int(y.max()) + 1)
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=2e-3)
        for _ in range(iterations):
            rows = torch.randint(len(x), (128,))
            optimizer.zero_grad()
            cross_entropy(head(body(x[rows])), y[rows]).backward()
            optimizer.step()
    body.requires_grad_(False)
    return lambda images: body(images.float())
