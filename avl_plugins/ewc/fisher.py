"""The diagonal of the Fisher information matrix of a network.

    F_i = 1/N sum_n E_y [ (d log p(y | x_n, theta) / d theta_i)^2 ]

Kirkpatrick et al. 2017 (arXiv:1612.00796) use it as the importance of parameter i for the task that the inputs x_n
come from (sec. 2, after eq. 3) and do not say which estimator they took. Estimators differ by orders of magnitude, so
a penalty's strength goes with one of them (van de Ven 2025, "On the computation of the Fisher information in
continual learning").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from avl_plugins.ewc.likelihood import make_likelihood
from avl_plugins.ewc.per_sample import SquaredGradients
from avl_plugins.ewc.subset import Batch, Selectable, random_subset, take_random

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
    likelihood: Literal["categorical", "bernoulli", "gaussian"] | Callable[[Tensor], Distribution] = "categorical",
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
        batches: yields (x, y), (x, y, ..., t) or mappings with keys "x", "y" and optionally "t"; t holds task labels
            and is used by multi-task models only.
        labels: see `Labels`.
        likelihood: "categorical" (outputs are logits over dimension 1; outputs (N, K, H, W) have a class a pixel, log
            p is the sum over pixels whose label is not -100), "bernoulli" (independent logits), "gaussian" (means
            with unit variance), or a callable from the outputs to a `torch.distributions.Distribution`.
        max_samples: use a uniformly random subset of this many samples (all, where there are fewer). Of batches from
            `avl_plugins.data.loading.batches_in_memory` only these samples are read.
        generator: a CPU generator for sampled labels and the subset. None makes a new one from
            `torch.initial_seed()`.

    Returns:
        Tensors shaped as the parameters that require gradients, on their device, in their dtype; zero for a parameter
        that no output depends on.

    Raises:
        ValueError: no sample, no parameter that requires gradients, an unknown `labels` or `likelihood`, "exact" for
            dense outputs, BatchNorm without running statistics, or a Fisher that is not finite (named).
        TypeError: batches or outputs of another form.
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
    likelihood: Any,
    max_samples: int | None,
    generator: torch.Generator | None,
) -> tuple[dict[str, Tensor], int]:
    """Add up what `make_sums(model, scores)` returns for the samples, and count them.

    The other arguments, what is left as it was and what is raised are `diagonal_fisher`'s.
    """
    if labels not in get_args(Labels):
        raise ValueError(f"labels must be one of {', '.join(map(repr, get_args(Labels)))}, got {labels!r}")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples must be at least 1 or None for all, got {max_samples}")
    chosen = make_likelihood(likelihood)
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not params:
        raise ValueError("the model has no parameter that requires gradients, so there is no Fisher to compute")
    if labels != "batch":
        _refuse_batch_statistics(model)
    if generator is None:
        generator = torch.Generator().manual_seed(torch.initial_seed())
    device = next(iter(params.values())).device

    def uniform(shape: torch.Size) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def scores(z: Tensor, y: Tensor | None) -> list[Tensor]:
        if labels == "exact":
            return list(chosen.exact(z))
        y = chosen.sample(z, uniform) if labels == "sampled" else y
        return [chosen.score(z, y)]  # type: ignore[arg-type]

    sums_of = make_sums(model, scores)
    totals = {n: torch.zeros_like(p, dtype=_wide(p.dtype)) for n, p in params.items()}
    count = 0
    with _evaluating(model, device):
        stream: Iterator[Batch]
        if max_samples is None:
            stream = map(_parse, batches)
        elif isinstance(batches, Selectable):
            stream = map(_parse, take_random(batches, max_samples, generator))
        else:
            stream = random_subset(map(_parse, batches), max_samples, generator)
        for batch in stream:
            for x, y, task in _by_task(model, batch, device):
                if labels == "batch":
                    sums = _square_of_batch_gradient(model, params, chosen, x, y, task)
                else:
                    sums = sums_of(x, None if labels in ("exact", "sampled") else y, task)
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


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) has no running statistics, so its outputs depend on the "
                "whole batch and a single sample has no gradient of its own: build it with track_running_stats=True"
            )


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Half precision cannot add up thousands of small squares."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


@contextmanager
def _evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, gradients on, and everything as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    model.eval()
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.enable_grad(),
            # cuDNN's recurrent layers have no backward pass in eval mode.
            torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not recurrent),
        ):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _parse(batch: Any) -> Batch:
    if isinstance(batch, Mapping):
        if "x" not in batch or "y" not in batch:
            raise TypeError(f"a batch given as a mapping needs keys 'x' and 'y', got {sorted(batch)}")
        return batch["x"], batch["y"], batch.get("t")
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise TypeError(f"batches must yield (x, y), (x, y, t) or mappings, got {type(batch).__name__}")
    return batch[0], batch[1], batch[-1] if len(batch) > 2 else None


def _by_task(model: nn.Module, batch: Batch, device: torch.device) -> Iterator[tuple[Tensor, Tensor, int | None]]:
    """The batch on the model's device, split by task label for a multi-task model."""
    x, y, t = batch
    if len(x) == 0:
        return
    x, y = x.to(device), torch.as_tensor(y).to(device)
    if not hasattr(model, "forward_single_task"):
        yield x, y, None
    elif t is None:
        raise ValueError("the model is multi-task, so batches must yield (x, y, t) with task labels t")
    else:
        t = torch.as_tensor(t).expand(len(x)).to(device)
        for task in t.unique().tolist():
            rows = t == task
            yield x[rows], y[rows], int(task)


def _square_of_batch_gradient(
    model: nn.Module, params: dict[str, nn.Parameter], likelihood: Any, x: Tensor, y: Tensor, task: int | None
) -> dict[str, Tensor]:
    z = model(x) if task is None else model(x, task)
    grads = torch.autograd.grad(z, list(params.values()), likelihood.score(z.detach(), y) / len(x), allow_unused=True)
    return {n: g.square() for n, g in zip(params, grads, strict=True) if g is not None}
