"""What a network's output says about its labels: scores, samples and exact expectations.

The diagonal Fisher is the mean over inputs of E_y[(d log p(y | x) / d theta)^2]. By the chain rule each term is
(J^T g)^2 with J the Jacobian of the outputs and g = d log p(y | z) / d z the *score* of label y at output z. So a
likelihood only has to name scores, each times the root of its weight; how J^T g is computed is another file's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional

IGNORE_INDEX = -100
"""Label of a position that has no class (PyTorch's default in `cross_entropy`); it adds nothing to log p."""

Uniform = Callable[[torch.Size], Tensor]
"""Draws independent uniforms in [0, 1) of the shape asked for, the first dimension being the samples'."""

Scores = Iterator[Tensor]
"""Tensors g_c shaped as the outputs with E_y[(d log p(y | x) / d theta)^2] = sum_c (J^T g_c)^2.

Any g_c whose outer products add up to E_y[g g^T] will do; the fewer, the fewer backward passes.
"""


class Categorical:
    """Softmax over dimension 1: outputs (N, K), or (N, K, d1, ...) with one class a position.

    For dense outputs log p(y | x) is the sum over the positions whose label is not -100.
    """

    def check(self, z: Tensor) -> None:
        """Raise ValueError unless the outputs have a class dimension."""
        if z.ndim < 2:
            raise ValueError(
                f"likelihood='categorical' needs outputs of shape (N, classes, ...), got {tuple(z.shape)}; "
                "for one logit a sample use likelihood='bernoulli'"
            )

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """One-hot(y) - softmax(z), zero where y is -100."""
        self.check(z)
        y = y.long()
        keep = y != IGNORE_INDEX
        low, high = int(y.min()), int(y.max())
        if (low < 0 and bool((y[keep] < 0).any())) or high >= z.shape[1]:
            raise ValueError(f"labels run from {low} to {high}, but the outputs have {z.shape[1]} classes")
        one_hot = functional.one_hot(y.where(keep, torch.zeros_like(y)), z.shape[1]).movedim(-1, 1)
        return (one_hot - z.softmax(1)) * keep.unsqueeze(1)

    def sample(self, z: Tensor, uniform: Uniform) -> Tensor:
        """Labels drawn from softmax(z) by inverse CDF: one uniform a sample (a position, for dense outputs)."""
        self.check(z)
        cdf = z.double().softmax(1).movedim(1, -1).cumsum(-1)
        u = uniform(cdf.shape[:-1]).to(cdf) * cdf[..., -1]
        drawn = torch.searchsorted(cdf.contiguous(), u.unsqueeze(-1).contiguous(), right=True).squeeze(-1)
        return drawn.clamp_max(z.shape[1] - 1)

    def exact(self, z: Tensor) -> Scores:
        """The columns of the Cholesky factor L of the scores' covariance, E_y[g g^T] = diag(p) - p p^T = L L^T.

        With r_k = p_k + ... + p_K it is L_kk = sqrt(p_k r_(k+1) / r_k), L_ik = -p_i / r_(k+1) L_kk below the diagonal
        and zero above it. The last column is zero, so that K classes take K - 1 passes, and two classes a single one;
        so is the column of a class that no sample can have (a masked logit), which is left out.
        """
        self.check(z)
        if z.ndim > 2:
            raise ValueError(
                f"labels='exact' would enumerate every labelling of outputs of shape {tuple(z.shape)}; "
                "use labels='sampled', which draws one label a position"
            )
        p = z.softmax(1, dtype=torch.promote_types(z.dtype, torch.float32))
        rest = p.flip(1).cumsum(1).flip(1)  # r_k, in sums of positive terms
        tiny = torch.finfo(p.dtype).tiny
        diagonal = (p[:, :-1] / rest[:, :-1].clamp_min(tiny) * rest[:, 1:]).sqrt_()
        for k in diagonal.amax(0).nonzero().flatten().tolist():
            score = torch.zeros_like(p)
            score[:, k] = diagonal[:, k]
            score[:, k + 1 :] = p[:, k + 1 :] * (-diagonal[:, k] / rest[:, k + 1].clamp_min(tiny)).unsqueeze(1)
            yield score.to(z.dtype)


class Bernoulli:
    """Independent binary labels with logits z of any shape (N, ...); y holds 0 or 1 in the same shape."""

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """Y - sigmoid(z)."""
        return _as(y, z) - z.sigmoid()

    def sample(self, z: Tensor, uniform: Uniform) -> Tensor:
        """One uniform an output."""
        return (uniform(z.shape).to(z.device) < z.double().sigmoid()).to(z)

    def exact(self, z: Tensor) -> Scores:
        """The labels are independent, so E_y[(J^T g)^2] = sum_k p_k (1 - p_k) J_k^2: one pass an output."""
        std = (z.sigmoid() * (-z).sigmoid()).sqrt()
        return _one_output_at_a_time(std)


class Gaussian:
    """Independent normal targets with mean z and unit variance: log p = -1/2 |y - z|^2 + const."""

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """Y - z."""
        return _as(y, z) - z

    def sample(self, z: Tensor, uniform: Uniform) -> Tensor:
        """One uniform an output, through the normal quantile function."""
        u = uniform(z.shape).clamp_min(2**-54)
        return z + torch.special.ndtri(u).to(z)

    def exact(self, z: Tensor) -> Scores:
        """E_y[(J^T (y - z))^2] = sum_k J_k^2: one pass an output."""
        return _one_output_at_a_time(torch.ones_like(z))


class FromDistribution:
    """Any `torch.distributions.Distribution` that a callable makes of the outputs.

    `labels="exact"` works where the distribution can enumerate its support (Categorical, Bernoulli of one value a
    sample, ...). `labels="sampled"` uses the distribution's own sampler under a forked random state, seeded from the
    generator, so that its draws do depend on the batch size.
    """

    def __init__(self, make: Callable[[Tensor], Distribution]):
        self.make = make

    def _distribution(self, z: Tensor) -> Distribution:
        distribution = self.make(z)
        if not isinstance(distribution, Distribution):
            raise TypeError(
                "a callable likelihood takes the outputs and returns a torch.distributions.Distribution, got "
                f"{type(distribution).__name__}"
            )
        return distribution

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """D log_prob(y) / dz by automatic differentiation."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(self._distribution(z).log_prob(y).sum(), z)[0]

    def sample(self, z: Tensor, uniform: Uniform) -> Tensor:
        """The distribution's own sampler, seeded by one uniform a call."""
        seed = int(uniform(torch.Size([1])).item() * 2**53)
        with torch.random.fork_rng([z.device] if z.is_cuda else []):
            torch.manual_seed(seed)
            return self._distribution(z).sample()

    def exact(self, z: Tensor) -> Scores:
        """Every value of the support, by the root of its probability."""
        distribution = self._distribution(z)
        if not distribution.has_enumerate_support or distribution.batch_shape != z.shape[:1]:
            raise ValueError(
                f"labels='exact' cannot enumerate {type(distribution).__name__} with batch shape "
                f"{tuple(distribution.batch_shape)}; use labels='sampled'"
            )
        for y in distribution.enumerate_support():
            root = (distribution.log_prob(y) / 2).exp()
            yield self.score(z, y) * root.reshape(-1, *[1] * (z.ndim - 1))


Likelihood = Categorical | Bernoulli | Gaussian | FromDistribution
_NAMED: dict[str, type[Categorical] | type[Bernoulli] | type[Gaussian]] = {
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
}


def make_likelihood(likelihood: str | Callable[[Tensor], Distribution]) -> Likelihood:
    """Turn the `likelihood` argument into its object; ValueError for an unknown name."""
    if callable(likelihood):
        return FromDistribution(likelihood)
    if likelihood not in _NAMED:
        raise ValueError(
            f"likelihood must be one of {', '.join(map(repr, _NAMED))} or a callable from outputs to a "
            f"torch.distributions.Distribution, got {likelihood!r}"
        )
    return _NAMED[likelihood]()


def _as(y: Tensor, z: Tensor) -> Tensor:
    if y.numel() != z.numel():
        raise ValueError(f"labels of shape {tuple(y.shape)} do not match outputs of shape {tuple(z.shape)}")
    return y.reshape(z.shape).to(z)


def _one_output_at_a_time(scale: Tensor) -> Scores:
    flat = scale.flatten(1) if scale.ndim > 1 else scale.unsqueeze(1)
    for k in range(flat.shape[1]):
        score = torch.zeros_like(flat)
        score[:, k] = flat[:, k]
        yield score.reshape(scale.shape)
