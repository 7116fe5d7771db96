"""Vectorised environments of one task, stepped with checks, and the episodes that end in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avl_plugins.rl.stream import RLExperience

__all__ = ["EnvironmentFailedError", "Environments", "Episode", "Step"]


class EnvironmentFailedError(RuntimeError):
    """An environment has crashed, or returned something that is not finite."""


@dataclass(frozen=True)
class Episode:
    """One that has ended."""

    total: float
    """Sum of its rewards, as the environment gave them: undiscounted, not clipped."""
    length: int
    """Its agent steps."""
    env: int
    """Number of the environment."""


@dataclass(frozen=True)
class Step:
    """What a step of N environments has led to."""

    observations: Tensor
    """(N, ...), in the environment's dtype; those in which an episode has ended are its last ones."""
    rewards: Tensor
    """(N,), float32, as the environment gave them."""
    terminated: Tensor
    """(N,), bool: the episode has come to its end, and no reward follows."""
    truncated: Tensor
    """(N,), bool: it has been cut off, and rewards would have followed."""
    valid: Tensor
    """(N,), bool: False where the step only began the next episode: the action had no effect."""


class Environments:
    """N environments of a task.

    Args:
        experience: Of the task.
        number: N.

    Attributes:
        finished: The episodes that have ended since `reset`.
        observations: The latest, (N, ...).

    Raises:
        EnvironmentFailedError: From `reset` and `step`, if the environment raises an exception, or an observation or
            reward is not finite. The message has the task's name.
    """

    def __init__(self, experience: RLExperience, number: int) -> None:
        self.name = experience.name
        self.number = number
        self.env = self._guarded("making them", lambda: experience.make_env(number))
        self.finished: list[Episode] = []
        self.steps = 0

    def reset(self, seed: int) -> Tensor:
        """Begin new episodes in all environments and return their first observations."""
        found, _ = self._guarded("reset", lambda: self.env.reset(seed=seed))
        self.observations = self._checked_observations(found)
        self.finished = []
        self._ended = torch.zeros(self.number, dtype=torch.bool)
        self._totals = np.zeros(self.number)
        self._lengths = np.zeros(self.number, dtype=np.int64)
        return self.observations

    def step(self, actions: Tensor) -> Step:
        """Take an action in each."""
        chosen = actions.cpu().numpy()
        found, rewards, terminated, truncated, _ = self._guarded("step", lambda: self.env.step(chosen))
        self.steps += 1
        rewards = np.asarray(rewards, dtype=np.float64)
        if not np.isfinite(rewards).all():
            raise EnvironmentFailedError(
                f"{self.name}: the environment has returned the rewards {rewards.tolist()} at step {self.steps}"
            )
        self.observations = self._checked_observations(found)
        valid = ~self._ended
        live = valid.numpy()
        self._totals += rewards * live
        self._lengths += live
        ended = np.asarray(terminated | truncated, dtype=bool) & live
        for env in ended.nonzero()[0]:
            self.finished.append(Episode(float(self._totals[env]), int(self._lengths[env]), int(env)))
        self._totals[ended] = 0
        self._lengths[ended] = 0
        self._ended = torch.from_numpy(ended)
        return Step(
            self.observations,
            torch.from_numpy(rewards.astype(np.float32)),
            torch.from_numpy(np.asarray(terminated, dtype=bool) & live),
            torch.from_numpy(np.asarray(truncated, dtype=bool) & live),
            valid,
        )

    def close(self) -> None:
        """Give the environments' resources back."""
        self.env.close()

    def _checked_observations(self, found: Any) -> Tensor:
        observations = torch.as_tensor(np.asarray(found))
        if observations.dtype == torch.float64:
            observations = observations.float()
        if observations.is_floating_point() and not observations.isfinite().all():
            raise EnvironmentFailedError(
                f"{self.name}: the environment has returned an observation that is not finite at step {self.steps}"
            )
        return observations

    def _guarded(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise EnvironmentFailedError(
                f"{self.name}: the environment has failed in {what} after {getattr(self, 'steps', 0)} steps: "
                f"{type(error).__name__}: {error}"
            ) from error
