"""What takes the place of data loaders where an agent acts: its mini-batches, and the observations of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from avl_plugins.rl.environments import Environments

__all__ = ["Evaluation", "Visit"]

_EVALUATION = 2**31
"""Takes the place of an experience's number in the seeds of evaluations."""


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let torch use so many threads; None for as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Visit:
    """The mini-batches of a visit, an epoch at a time.

    Args:
        strategy: An `RLTemplate`.
    """

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy

    def __len__(self) -> int:
        return self.strategy.updates_in(self.strategy.visit_steps(self._epoch()))

    def _epoch(self) -> int:
        progress: Any = self.strategy.progress
        return progress.epoch

    def __iter__(self) -> Iterator[list[Tensor]]:
        strategy, epoch = self.strategy, self._epoch()
        if strategy.environments is None:
            strategy.environments = Environments(strategy.experience, strategy.num_envs)
        environments = strategy.environments
        environments.reset(strategy.environment_seed(strategy.experience.current_experience, epoch))
        strategy.episodes = environments.finished
        rollouts = strategy.rollouts(environments, strategy.visit_steps(epoch))
        while True:
            with _threads(strategy.acting_threads):
                batch = next(rollouts, None)
            if batch is None:
                return
            yield batch


class Evaluation:
    """The observations of an evaluation; the action in each follows from the network's outputs for it.

    Args:
        strategy: An `RLTemplate`.
    """

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy

    def __len__(self) -> int:
        return 1  # not known; progress bars count on when there are more

    def __iter__(self) -> Iterator[list[Tensor]]:
        strategy = self.strategy
        number = min(strategy.eval_envs, strategy.eval_episodes)
        strategy.environments = environments = Environments(strategy.experience, number)
        seed = strategy.environment_seed(_EVALUATION, strategy.experience.task_label)
        generator = torch.Generator().manual_seed(seed)
        environments.reset(seed)
        wanted = [strategy.eval_episodes // number + (env < strategy.eval_episodes % number) for env in range(number)]
        counted = 0
        strategy.episodes = []
        while True:
            labels = torch.full((number,), strategy.label)
            yield [environments.observations, torch.zeros(number, dtype=torch.long), labels]
            environments.step(strategy.choose(strategy.mb_output.cpu(), generator))
            strategy.notice(environments.observations)
            strategy.switch_if_requested()
            for episode in environments.finished[counted:]:
                if wanted[episode.env]:
                    wanted[episode.env] -= 1
                    strategy.episodes.append(episode)
            counted = len(environments.finished)
            if not any(wanted):
                return
