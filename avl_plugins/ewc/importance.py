"""From a finished experience to the importances that enter the penalty."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def finished_task(experience: Any, parts: int) -> Any | None:
    """The experience whose end is a task's end: itself, or the whole that an online stream was cut from.

    None inside an online stream with known task boundaries, before the last part. `parts` counts the parts so far,
    this one included: Avalanche does not mark the last one where the parts' size divides the whole's.
    """
    if not getattr(experience, "access_task_boundaries", False):
        return experience
    last = experience.is_last_subexp or parts == experience.sub_stream_length
    return experience.origin_experience if last else None


def uniform_importances(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """F = 1 for every parameter: with it EWC is an L2 penalty to the old parameters."""
    return {name: torch.ones_like(p, requires_grad=False) for name, p in parameters.items()}


def check_not_zero(importances: Mapping[str, Tensor], task: str) -> None:
    """Raise ValueError if no parameter has any importance."""
    if not any(f.any() for f in importances.values()):
        raise ValueError(
            f"the Fisher of {task} is zero for every protected parameter, so EWC would protect nothing: the model is "
            "saturated, or include and exclude leave parameters that its outputs do not depend on"
        )


def normalised(importances: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """F divided by its mean."""
    mean = mean_importance(importances)
    return {name: f / mean for name, f in importances.items()}


def mean_importance(importances: Mapping[str, Tensor]) -> float:
    """The mean over all entries of the tensors that are not all zero (other tasks' heads are)."""
    counted = [f for f in importances.values() if f.any()]
    return sum(float(f.sum(dtype=torch.float64)) for f in counted) / sum(f.numel() for f in counted)


def copied_generator(generator: torch.Generator | None, seed: int | None) -> torch.Generator:
    """A copy of the generator; where there is none yet, a new one from `seed` (None: `torch.initial_seed()`)."""
    if generator is None:
        return torch.Generator().manual_seed(torch.initial_seed() if seed is None else seed)
    return torch.Generator().set_state(generator.get_state())
