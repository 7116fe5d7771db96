"""Proximal steps of the L1 norm and of group lasso: what gives exact zeros."""

import torch
from torch import Tensor

__all__ = ["group_soft_threshold", "shrink_groups", "soft_threshold"]


def soft_threshold(weight: Tensor, threshold: float) -> Tensor:
    """Return sign(w) max(|w| - threshold, 0), the proximal step of threshold |w|_1."""
    return weight.sign() * (weight.abs() - threshold).clamp(min=0)


def group_soft_threshold(weight: Tensor, threshold: float, dim: int | tuple[int, ...]) -> Tensor:
    """Return w max(1 - threshold / ||w_g||_2, 0), the proximal step of threshold sum_g ||w_g||_2.

    Args:
        weight: any shape.
        threshold: at least 0.
        dim: dimensions that make up a group; each index of the others is one.
    """
    norm = torch.linalg.vector_norm(weight, dim=dim, keepdim=True)
    scale = torch.where(norm > threshold, 1 - threshold / norm.clamp(min=1e-38), torch.zeros_like(norm))
    return weight * scale


def shrink_groups(weight: Tensor, threshold: float) -> Tensor:
    """Return the step of a layer's sparsity term (Eq. 2): L1, or for filters (O, I, h, w) the (2, 1)-norm over them."""
    return group_soft_threshold(weight, threshold, (2, 3)) if weight.dim() == 4 else soft_threshold(weight, threshold)
