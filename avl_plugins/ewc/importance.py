"""From a finished experience to the importances that enter the penalty."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from avl_plugins.data.tensors import batches_in_memory
from avl_plugins.ewc.fisher import diagonal_fisher
from avl_plugins.ewc.samples import without_attributes
from avl_plugins.ewc.selection import select
from avl_plugins.tasks.boundaries import Task
from avl_plugins.tasks.protocols import ActsInEnvironments


def measure(
    strategy: Any, plugin: Any, task: Task, generator: torch.Generator, active: Collection[str] | None
) -> dict[str, Tensor]:
    """Return the importances of the protected parameters for a task, as an `EWCPlugin` is set to.

    Args:
        strategy: at the task's end.
        plugin: its settings.
        task: what has been trained on.
        generator: for the samples and labels that are drawn.
        active: the parameters that took part in the training; None: not known.
    """
    protected = select(dict(strategy.model.named_parameters()), plugin.include, plugin.exclude)
    if plugin.importance == "uniform":  # a head that no sample went through belongs to another task
        return uniform_importances({n: p for n, p in protected.items() if active is None or n in active})
    fisher = diagonal_fisher(
        strategy.model,
        _batches(strategy, plugin, task),
        labels=plugin.labels,
        likelihood=plugin.likelihood_for(strategy),
        max_samples=plugin.max_samples,
        generator=generator,
    )
    return {name: fisher[name] for name in protected}


def _batches(strategy: Any, plugin: Any, task: Task) -> Iterable[Any]:
    if plugin.fisher_data is not None:
        return plugin.fisher_data(strategy)
    if isinstance(strategy, ActsInEnvironments):
        return strategy.fisher_batches()
    size = plugin.fisher_batch_size or (strategy.train_mb_size if plugin.labels == "batch" else None)
    batches = batches_in_memory(task.dataset, size)  # in the eval transform group: no augmentation
    return without_attributes(batches, task_labels=hasattr(task.experiences[0], "task_labels"))


def uniform_importances(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """F = 1 for every parameter: with it EWC is an L2 penalty to the old parameters."""
    return {name: torch.ones_like(p, requires_grad=False) for name, p in parameters.items()}


def is_zero(importances: Mapping[str, Tensor]) -> bool:
    """Whether no parameter has any importance."""
    return not any(bool(f.any()) for f in importances.values())


def why_zero(task: str, max_samples: int | None) -> str:
    """What a message says of a Fisher that is zero everywhere."""
    drawn = f", max_samples={max_samples} has drawn none of the others" if max_samples is not None else ""
    return (
        f"the Fisher of {task} is zero for every protected parameter, so EWC has nothing to protect: the model is "
        "saturated, which is to say so certain of its answers that nothing changes them (stop earlier, or use label "
        f"smoothing){drawn}, or include and exclude leave parameters that its outputs do not depend on"
    )


def normalised(importances: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """F divided by its mean over all entries of the tensors that are not all zero (other tasks' heads are)."""
    counted = [f for f in importances.values() if f.any()]
    mean = sum(float(f.sum(dtype=torch.float64)) for f in counted) / sum(f.numel() for f in counted)
    return {name: f / mean for name, f in importances.items()}


def copied_generator(generator: torch.Generator | None, seed: int | None) -> torch.Generator:
    """A copy of the generator; where there is none yet, a new one from `seed` (None: `torch.initial_seed()`)."""
    if generator is None:
        return torch.Generator().manual_seed(torch.initial_seed() if seed is None else int(seed))
    return torch.Generator().set_state(generator.get_state())
