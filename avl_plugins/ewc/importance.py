"""From a finished experience to the importances that enter the penalty."""

from collections.abc import Mapping

import torch
from torch import Tensor


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
        return torch.Generator().manual_seed(torch.initial_seed() if seed is None else int(seed))
    return torch.Generator().set_state(generator.get_state())
