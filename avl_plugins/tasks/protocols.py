"""What plugins ask of strategies that have no data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.distributions import Distribution

__all__ = ["ActsInEnvironments"]


@runtime_checkable
class ActsInEnvironments(Protocol):
    """A strategy that acts in environments: what it says of the task that ends, in place of a data set.

    The strategies of `avl_plugins.rl` fulfil it, and `EWCPlugin` asks.

    Attributes:
        label: task label in use, the experience's or one that has been recognised.
    """

    label: int

    def fisher_batches(self) -> Iterable[tuple[Tensor, Any, Tensor]]:
        """Return batches (states, no targets, task labels) of the task's own states."""

    def fisher_likelihood(self) -> Callable[[Tensor], Distribution] | None:
        """Return what the network's outputs say of an action, None where the user has to choose."""

    def measurable(self) -> bool:
        """Return whether the task has states, and has been in use for long enough to be protected."""
