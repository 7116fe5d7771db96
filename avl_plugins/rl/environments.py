"""Vectorised environments of one task, stepped with checks, and the episodes that end in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avl_plugins.rl.factories import EnvironmentFailedError, close_environments, failures_named, make_environments
from avl_plugins.rl.stream import RLExperience
from avl_plugins.tasks.arguments import check_count

__all__ = ["EnvironmentFailedError", "Environments", "Episode", "Step"]


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
    """What a step of N environments has led to; all in memory of its own."""

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
        experience: of the task.
        number: N.

    Attributes:
        finished: the episodes that have ended since `reset`.
        lengths: agent steps so far of the episodes that have not, (N,).
        observations: the latest, (N, ...).

    Raises:
        EnvironmentFailedError: from `reset` and `step`, if the environment raises an exception, or what it returns has
            another shape or dtype than its spaces say, or is not finite. The message has the task's name. From the
            constructor, if the task's factory raises an exception.
        ValueError: the factory returns other environments than the experience's.
    """

    def __init__(self, experience: RLExperience, number: int) -> None:
        check_count("number", number)
        self.name = experience.name
        self.number = number
        space = experience.observation_space
        self._shape, self._dtype = (number, *(space.shape or ())), np.dtype(space.dtype)
        self.env = make_environments(self.name, experience.make_env, number, (space, experience.action_space))
        self.finished: list[Episode] = []
        self.steps = 0

    def reset(self, seed: int) -> Tensor:
        """Begin new episodes in all environments and return their first observations."""
        with failures_named(f"{self.name}: the environment has failed in reset after {self.steps} steps"):
            returned = self.env.reset(seed=seed)
        found, _ = self._values("reset", returned, "observations, infos")
        self.observations = self._checked_observations(found)
        self.finished = []
        self._ended = torch.zeros(self.number, dtype=torch.bool)
        self._totals = np.zeros(self.number)
        self.lengths = np.zeros(self.number, dtype=np.int64)
        return self.observations

    def step(self, actions: Tensor) -> Step:
        """Take an action in each."""
        chosen = actions.cpu().numpy()
        with failures_named(f"{self.name}: the environment has failed in step after {self.steps} steps"):
            returned = self.env.step(chosen)
        self.steps += 1
        values = self._values("step", returned, "observations, rewards, terminations, truncations, infos")
        given = self._one_each("rewards", values[1], "biuf").astype(np.float64)
        with np.errstate(over="ignore"):
            rewards = given.astype(np.float32)
        if not np.isfinite(rewards).all():
            raise self._failed(f"returned the rewards {given.tolist()}")
        terminated = self._one_each("terminations", values[2], "biu").astype(bool)
        truncated = self._one_each("truncations", values[3], "biu").astype(bool)
        self.observations = self._checked_observations(values[0])
        valid = ~self._ended
        live = valid.numpy()
        self._totals += given * live
        self.lengths += live
        ended = (terminated | truncated) & live
        for env in ended.nonzero()[0]:
            self.finished.append(self.so_far(env))
        self._totals[ended] = 0
        self.lengths[ended] = 0
        self._ended = torch.from_numpy(ended)
        return Step(
            self.observations,
            torch.from_numpy(rewards),
            torch.from_numpy(terminated & live),
            torch.from_numpy(truncated & live),
            valid,
        )

    def so_far(self, env: Any) -> Episode:
        """Return what there is of the episode that an environment is in."""
        return Episode(float(self._totals[env]), int(self.lengths[env]), int(env))

    def close(self) -> None:
        """Give the environments' resources back."""
        close_environments(self.name, self.env)

    def _values(self, what: str, returned: Any, names: str) -> Any:
        number = names.count(",") + 1
        several = isinstance(returned, tuple | list)
        if not several or len(returned) != number:
            found = f"{len(returned)} values" if several else f"a {type(returned).__name__}"
            raise self._failed(f"returned {found} from {what}, and not the {number} of gymnasium: {names}")
        return returned

    def _one_each(self, what: str, values: Any, kinds: str) -> np.ndarray:
        found = self._array(what, values)
        if found.shape != (self.number,) or found.dtype.kind not in kinds:
            raise self._failed(f"returned {what} {found.shape} {found.dtype}, and not one each, ({self.number},)")
        return found

    def _checked_observations(self, found: Any) -> Tensor:
        """Return the observations in memory of their own, as environments may use theirs again."""
        array = self._array("observations", found)
        if array.shape != self._shape or _scale(array.dtype) != _scale(self._dtype):
            raise self._failed(
                f"returned observations {array.shape} {array.dtype}, and its observation space says {self._shape} "
                f"{self._dtype}"
            )
        observations = torch.tensor(array, dtype=torch.float32 if array.dtype == np.float64 else None)
        if observations.is_floating_point() and not observations.isfinite().all():
            raise self._failed("returned an observation that is not finite")
        return observations

    def _array(self, what: str, values: Any) -> np.ndarray:
        try:
            return np.asarray(values)
        except Exception as error:
            raise self._failed(f"returned {what} that are no array ({error})") from error

    def _failed(self, what: str) -> EnvironmentFailedError:
        return EnvironmentFailedError(f"{self.name}: the environment has {what} at step {self.steps}")


def _scale(dtype: np.dtype) -> str:
    """What decides how observations reach the network: bytes as fractions, others as they are."""
    return "bytes" if dtype == np.uint8 else dtype.kind
