"""The diagonal of the Fisher information matrix of a network.

    F_i = 1/N sum_n E_y [ (d log p(y | x_n, theta) / d theta_i)^2 ]

Kirkpatrick et al. 2017 (arXiv:1612.00796) use it as the importance of parameter i for the task that the inputs x_n
come from (sec. 2, after eq. 3) and do not say which estimator they took. Estimators differ by orders of magnitude, so
a penalty's strength goes with one of them (van de Ven 2025, "On the computation of the Fisher information in
continual learning").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from avl_plugins.ewc.evaluating import evaluating, refuse_batch_statistics
from avl_plugins.ewc.likelihood import Likelihood, make_likelihood
from avl_plugins.ewc.per_sample import SquaredGradients
from avl_plugins.ewc.samples import by_task, parse
from avl_plugins.ewc.subset import Batch, Selectable, random_subset, take_random
from avl_plugins.ewc.sums import Sums, outputs_of, wide
from avl_plugins.tasks.arguments import check_choice, check_count

Labels = Literal["exact", "sampled", "empirical", "batch"]
"""Over which labels the squared gradient is averaged.

`"exact"`: the expectation over the model's own p(y | x), the definition; a backward pass a class.
`"sampled"`: one label a sample drawn from p(y | x); unbiased, a single backward pass.
`"empirical"`: the data's labels; the "empirical Fisher", which is near the Fisher only where the model is calibrated.
`"batch"`: the square of each mini-batch's mean gradient with the data's labels, averaged over mini-batches. Not a
Fisher: it depends on batch size and order. It is what Avalanche's `EWCPlugin` computes, here for comparison.
"""


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    labels: Labels = "exact",
    likelihood: str | Callable[[Tensor], Distribution] | Likelihood = "categorical",
    max_samples: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Mean over samples of E_y[(d log p(y|x) / d theta)^2], by parameter name.

    The model is evaluated in eval mode. Gradients, train/eval modes, BatchNorm statistics and the global random state
    are left as they were. For labels "exact" and "empirical" the result does not depend on batch size or order; for
    "sampled" it does not depend on the batch size, given the generator and the order.

    Args:
        model: maps a batch of inputs to one tensor of outputs, a row a sample. A model with `forward_single_task`
            (Avalanche's `MultiTaskModule`) is called with the samples of one task at a time and their int label.
        batches: yields (x, y), (x, y, ..., t) or mappings with keys "x", "y" and optionally "t"; x is one tensor, t
            holds task labels and is used by multi-task models only. y may be None where labels are "exact" or
            "sampled"; where targets are known they must fit the outputs nevertheless.
        labels: see `Labels`.
        likelihood: "categorical" (outputs are logits over dimension 1, targets class numbers or probabilities; outputs
            (N, K, H, W) have a class a pixel, and with the data's labels log p is the sum over pixels whose label is
            not -100), "bernoulli" (independent logits, targets from 0 to 1 or, one against the rest, class numbers),
            "gaussian" (means with unit variance), or a callable from the outputs to a
            `torch.distributions.Distribution`.
        max_samples: use a uniformly random subset of this many samples (all, where there are fewer). Of batches from
            `avl_plugins.data.loading.batches_in_memory` only these samples are read.
        generator: a CPU generator for sampled labels and the subset. None makes a new one from
            `torch.initial_seed()`.

    Returns:
        Tensors shaped as the parameters that require gradients, on their device, in their dtype; zero for a parameter
        that no output depends on.

    Raises:
        ValueError: no sample, no parameter that requires gradients, an unknown `labels` or `likelihood`, outputs and
            targets that do not fit it or each other, "exact" for dense outputs, batches with more than the model would
            be called with where it could be, BatchNorm without running statistics, or a Fisher that is not finite
            (named).
        TypeError: batches or outputs of another form.

    Example:
        >>> model, x = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0]])
        >>> _ = nn.init.zeros_(model.weight)
        >>> diagonal_fisher(model, [(x, torch.tensor([1]))])["weight"].tolist()  # p (1 - p) x^2 with p = 1/2
        [[0.25, 0.0], [0.25, 0.0]]
    """
    totals, count = sum_over_samples(
        model,
        batches,
        SquaredGradients,
        labels=labels,
        likelihood=likelihood,
        max_samples=max_samples,
        generator=generator,
    )
    params = dict(model.named_parameters())
    fisher = {n: (total / count).to(params[n].dtype) for n, total in totals.items()}
    check_finite_fisher(fisher)
    return fisher


def sum_over_samples(
    model: nn.Module,
    batches: Iterable[Any],
    make_sums: Callable[[nn.Module, Callable[[Tensor, Tensor | None], list[Tensor]]], SquaredGradients],
    *,
    labels: Labels,
    likelihood: str | Callable[[Tensor], Distribution] | Likelihood,
    max_samples: int | None,
    generator: torch.Generator | None,
) -> tuple[Sums, int]:
    """Add up what `make_sums(model, scores)` returns for the samples, and count them.

    The other arguments, what is left as it was and what is raised are `diagonal_fisher`'s.
    """
    check_choice("labels", labels, get_args(Labels))
    check_count("max_samples", max_samples, none="all of them")
    chosen = make_likelihood(likelihood)
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not params:
        raise ValueError("the model has no parameter that requires gradients, so there is no Fisher to compute")
    if labels != "batch":
        refuse_batch_statistics(model)
    if generator is None:
        generator = torch.Generator().manual_seed(torch.initial_seed())
    device = next(iter(params.values())).device

    def uniform(shape: torch.Size) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def scores(z: Tensor, y: Tensor | None) -> list[Tensor]:
        chosen.check(z, y, labels)
        if labels == "exact":
            return list(chosen.exact(z))
        y = chosen.sample(z, uniform) if labels == "sampled" else y
        return [chosen.score(z, y)]  # type: ignore[arg-type]

    sums_of = make_sums(model, scores)
    totals = {n: torch.zeros_like(p, dtype=wide(p.dtype)) for n, p in params.items()}
    count = 0
    with evaluating(model, device):
        stream: Iterator[Batch]
        if max_samples is None:
            stream = map(partial(parse, model), batches)
        elif isinstance(batches, Selectable):
            stream = map(partial(parse, model), take_random(batches, max_samples, generator))
        else:
            stream = random_subset(map(partial(parse, model), batches), max_samples, generator)
        for batch in stream:
            for x, y, task in by_task(model, batch, device):
                if y is None and labels not in ("exact", "sampled"):
                    raise ValueError(f"labels={labels!r} needs targets, and y is None (of EWCPlugin: fisher_labels)")
                if labels == "batch":
                    sums = _square_of_batch_gradient(model, params, chosen, x, y, task)  # type: ignore[arg-type]
                else:
                    sums = sums_of(x, y, task)
                for name, value in sums.items():
                    totals[name] += value
                count += 1 if labels == "batch" else len(x)
    if count == 0:
        raise ValueError("batches is empty: a Fisher needs at least one sample")
    return totals, count


def check_finite_fisher(fisher: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming the parameter, if a value is NaN or infinite."""
    for name, value in fisher.items():
        if not value.isfinite().all():
            raise ValueError(
                f"the Fisher of parameter {name!r} is not finite: the model's outputs or gradients overflow or are "
                "NaN; check the parameters and the inputs"
            )


def _square_of_batch_gradient(
    model: nn.Module, params: dict[str, nn.Parameter], chosen: Likelihood, x: Tensor, y: Tensor, task: int | None
) -> Sums:
    z = outputs_of(model, x, task)
    chosen.check(z.detach(), y, "batch")
    if not z.requires_grad:
        return {}
    grads = torch.autograd.grad(z, list(params.values()), chosen.score(z.detach(), y) / len(x), allow_unused=True)
    return {n: g.to_dense().to(wide(g.dtype)).square() for n, g in zip(params, grads, strict=True) if g is not None}
