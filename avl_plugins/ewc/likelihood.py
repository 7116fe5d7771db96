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

from avl_plugins.tasks.arguments import check_choice

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

    Targets are class numbers (N, d1, ...), or probabilities (N, K, d1, ...), one-hot for example. For dense outputs
    log p(y | x) is the sum over the positions whose class number is not `ignore_index`.
    """

    def __init__(self, ignore_index: int = IGNORE_INDEX):
        self.ignore_index = ignore_index

    def check(self, z: Tensor, y: Tensor | None, labels: str) -> None:
        """Raise ValueError unless the outputs have a dimension of classes that the targets are of."""
        if z.ndim < 2 or z.shape[1] < 2:
            raise ValueError(
                f"likelihood='categorical' needs outputs (N, classes, ...) of two classes or more, got "
                f"{tuple(z.shape)}; for one logit a sample use likelihood='bernoulli', for a number 'gaussian'"
            )
        shape = (len(z), *z.shape[2:])
        if y is not None and y.shape != z.shape and (y.shape != shape or y.is_floating_point()):
            hint = ""
            if z.ndim > 2 and y.shape == z.shape[:-1]:
                hint = "; the model seems to have its classes last: return outputs.movedim(-1, 1)"
            elif y.is_floating_point():
                hint = "; for targets that are numbers use likelihood='gaussian', for yes or no 'bernoulli'"
            raise ValueError(
                f"likelihood='categorical' has the classes in dimension 1, so that outputs {tuple(z.shape)} need "
                f"integer targets {shape} or probabilities {tuple(z.shape)}, got {y.dtype} {tuple(y.shape)}{hint}"
            )
        if y is not None and y.shape == z.shape:
            totals = y.sum(1, dtype=torch.float64)
            if float(y.min()) < 0 or float((totals - 1).abs().max()) > 0.01:
                raise ValueError(
                    "likelihood='categorical' takes targets of the outputs' shape for probabilities, which are not "
                    "negative and sum to 1 over the classes; for targets that are numbers use likelihood='gaussian', "
                    "for independent yes or no 'bernoulli'"
                )
        if labels == "exact" and z.ndim > 2:
            raise ValueError(
                f"labels='exact' would enumerate every labelling of outputs of shape {tuple(z.shape)}; "
                "use labels='sampled' (of EWCPlugin: fisher_labels='sampled'), which draws one label per position"
            )

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """One-hot(y) - softmax(z), zero where y is `ignore_index`; for probabilities, the cross-entropy's gradient."""
        if y.shape == z.shape:
            y = y.to(z)
            return y - z.softmax(1) * y.sum(1, keepdim=True)
        y = y.long()
        keep = y != self.ignore_index
        one_hot = _one_hot(y.where(keep, torch.zeros_like(y)), z.shape[1]).movedim(-1, 1)
        return (one_hot - z.softmax(1)) * keep.unsqueeze(1)

    def sample(self, z: Tensor, uniform: Uniform) -> Tensor:
        """Labels drawn from softmax(z) by inverse CDF: one uniform a sample (a position, for dense outputs)."""
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
    """Independent binary labels with logits z of any shape (N, ...); y holds 0 to 1 in the same shape.

    Class numbers (N,) are taken for logits (N, K), too: whether a sample is of each class, one against the rest.
    """

    def check(self, z: Tensor, y: Tensor | None, labels: str) -> None:
        """Raise ValueError unless there is a target from 0 to 1 for each output, or a class number for each sample."""
        if y is None or _one_vs_rest(z, y):
            return
        _refuse_other_shape("bernoulli", z, y, " (or class numbers, for outputs of shape (N, classes))")
        if y.numel() and not (0 <= float(y.min()) <= float(y.max()) <= 1):
            raise ValueError(
                f"likelihood='bernoulli' needs targets from 0 to 1, got {float(y.min()):g} to {float(y.max()):g}; "
                "for targets that are numbers use likelihood='gaussian'"
            )

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """Y - sigmoid(z)."""
        if _one_vs_rest(z, y):
            y = _one_hot(y, z.shape[1])
        return y.reshape(z.shape).to(z) - z.sigmoid()

    def sample(self, z: Tensor, uniform: Uniform) -> Tensor:
        """One uniform an output."""
        return (uniform(z.shape).to(z.device) < z.double().sigmoid()).to(z)

    def exact(self, z: Tensor) -> Scores:
        """The labels are independent, so E_y[(J^T g)^2] = sum_k p_k (1 - p_k) J_k^2: one pass an output."""
        std = (z.sigmoid() * (-z).sigmoid()).sqrt()
        return _one_output_at_a_time(std)


class Gaussian:
    """Independent normal targets with mean z and unit variance: log p = -1/2 |y - z|^2 + const."""

    def check(self, z: Tensor, y: Tensor | None, labels: str) -> None:
        """Raise ValueError unless there is a target for each output."""
        if y is not None:
            _refuse_other_shape("gaussian", z, y, "; for class numbers use likelihood='categorical'")

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """Y - z."""
        return y.reshape(z.shape).to(z) - z

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

    def check(self, z: Tensor, y: Tensor | None, labels: str) -> None:
        """Raise ValueError unless the distribution is of N samples of the targets' shape, and can do what it has to."""
        distribution = self._distribution(z)
        shape = distribution.batch_shape + distribution.event_shape
        enumerable = distribution.has_enumerate_support and distribution.batch_shape == z.shape[:1]
        if labels == "exact" and not enumerable:
            raise ValueError(
                f"labels='exact' cannot enumerate {type(distribution).__name__} with batch shape "
                f"{tuple(distribution.batch_shape)}; use labels='sampled' (of EWCPlugin: fisher_labels='sampled')"
            )
        if shape[:1] != z.shape[:1] or (y is not None and y.shape != shape):
            targets = "unknown" if y is None else tuple(y.shape)
            raise ValueError(
                f"likelihood makes {type(distribution).__name__} of shape {tuple(shape)} of outputs {tuple(z.shape)}, "
                f"which does not fit the targets' shape {targets}; give y=None where targets are not known"
            )

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
        for y in distribution.enumerate_support():
            root = (distribution.log_prob(y) / 2).exp()
            yield self.score(z, y) * root.reshape(-1, *[1] * (z.ndim - 1))


Likelihood = Categorical | Bernoulli | Gaussian | FromDistribution
_NAMED: dict[str, type[Categorical] | type[Bernoulli] | type[Gaussian]] = {
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
}


def make_likelihood(likelihood: str | Callable[[Tensor], Distribution] | Likelihood) -> Likelihood:
    """Turn the `likelihood` argument into its object; ValueError for an unknown name."""
    if isinstance(likelihood, Likelihood):
        return likelihood
    if callable(likelihood):
        return FromDistribution(likelihood)
    check_choice(
        "likelihood", likelihood, tuple(_NAMED), "; or a callable from outputs to a torch.distributions.Distribution"
    )
    return _NAMED[likelihood]()


def _refuse_other_shape(likelihood: str, z: Tensor, y: Tensor, hint: str) -> None:
    """Raise ValueError unless targets and outputs have the same shape, but for dimensions of size one."""
    if len(y) != len(z) or [n for n in y.shape[1:] if n > 1] != [n for n in z.shape[1:] if n > 1]:
        raise ValueError(
            f"likelihood={likelihood!r} needs a target for each output, of shape {tuple(z.shape)}{hint}, got "
            f"{y.dtype} {tuple(y.shape)}"
        )


def _one_vs_rest(z: Tensor, y: Tensor) -> bool:
    """Whether targets are class numbers (N,), of which the logits (N, K) say one against the rest."""
    return z.ndim == 2 and z.shape[1] > 1 and y.shape == z.shape[:1] and not y.is_floating_point()


def _one_hot(y: Tensor, classes: int) -> Tensor:
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels run from {low} to {high}, but the outputs have {classes} classes")
    return functional.one_hot(y.long(), classes)


def _one_output_at_a_time(scale: Tensor) -> Scores:
    flat = scale.flatten(1) if scale.ndim > 1 else scale.unsqueeze(1)
    for k in range(flat.shape[1]):
        score = torch.zeros_like(flat)
        score[:, k] = flat[:, k]
        yield score.reshape(scale.shape)
