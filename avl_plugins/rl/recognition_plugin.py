"""Task labels from what an agent sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avl_plugins.rl.recognition import TaskRecognition, observation_levels
from avl_plugins.rl.template import RLTemplate

__all__ = ["TaskRecognitionPlugin"]


class TaskRecognitionPlugin(SupervisedPlugin):
    """Gives a strategy of `avl_plugins.rl` the contexts that `TaskRecognition` infers, in place of the task labels.

    The strategy then has a replay buffer, a timer of epsilon, gains and biases and a term of EWC for each context
    (Kirkpatrick et al. 2017, app. 4.2). The first environment is observed, every fourth agent step. Where another
    context is recognised, plugins with a method `switch_task(strategy)` are told before the label changes: EWC protects
    the one that ends. The end of an experience ends one as well, as EWC's hooks are Avalanche's; a term that is
    computed twice replaces itself with `EWCPlugin(revisits="replace")`, which this needs.

    A window that is taken for another game's would have EWC replace that game's term by one of the weights of now. Two
    arguments, which the paper does not have, guard against it: the label changes only after `agreeing` windows, and EWC
    leaves a task alone that has not been in use for `least_held` agent steps. A visit begins under the label that the
    one before ended with, until enough windows say otherwise: too short a time for EWC, too.

    In evaluation nothing is learnt and no context is added; the label is the context that explains the latest window of
    observations best, from the first observation on.

    Put it before `EWCPlugin`.

    Args:
        recognition: The model.
        every: Agent steps of an environment from one observation to the next.
        agreeing: Windows in a row that have to be of another context before the label changes to it; 1 is the paper's.
        least_held: Agent steps without a break that a label has to be in use for before EWC protects its task. Take
            about a tenth of the shortest visit at most; a visit that is shorter than this protects nothing.
        levels: Turns a batch of observations into the model's levels; `observation_levels` by default.

    Attributes:
        windows: How often a window of the task of the first number was given the context of the second.

    Raises:
        ValueError: If `every` or `agreeing` is below 1, or `least_held` below 0.
        TypeError: In `train()` and `eval()`, if the strategy does not act in environments.
    """

    def __init__(
        self,
        recognition: TaskRecognition,
        *,
        every: int = 4,
        agreeing: int = 3,
        least_held: int = 1000,
        levels: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("every", every, 1), ("agreeing", agreeing, 1), ("least_held", least_held, 0)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        self.recognition, self.every = recognition, every
        self.agreeing, self.least_held = agreeing, least_held
        self.levels = levels or partial(observation_levels, levels=recognition.levels)
        self.windows: dict[tuple[int, int], int] = {}
        self._steps = 0
        self._label = 0  # the latest that has been requested; the first context is 0
        self._latest = (0, 0)  # context of the latest window, and how many in a row have had it
        self._evaluated = 0
        self._window: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the model's state, and what has been counted."""
        windows = [[task, context, number] for (task, context), number in self.windows.items()]
        counted = {"steps": self._steps, "windows": windows, "label": self._label, "latest": list(self._latest)}
        return {"recognition": self.recognition.state_dict(), **counted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them."""
        self.recognition.load_state_dict(state["recognition"])
        self._steps = state["steps"]
        self._label, self._latest = state["label"], (state["latest"][0], state["latest"][1])
        self.windows = {(task, context): number for task, context, number in state["windows"]}

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Forget the task's label, and say for how long one has to be in use."""
        self._forget_label(strategy)
        strategy.least_held = self.least_held

    def before_eval_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Forget the task's label."""
        self._forget_label(strategy)
        self._evaluated, self._window = 0, []

    def observed(self, strategy: Any, observations: Tensor) -> None:
        """Observe the first environment, and have the strategy go on under its context."""
        if not strategy.is_training:
            self._recognise_only(strategy, observations)
            return
        self._steps += 1
        if self._steps % self.every:
            return
        context = self.recognition.observe(self.levels(observations[:1])[0])
        if context is not None:
            key = (strategy.experience.task_label, context)
            self.windows[key] = self.windows.get(key, 0) + 1
            before, times = self._latest
            self._latest = (context, times + 1 if context == before else 1)
            if self._latest[1] >= self.agreeing:
                self._label = context
                strategy.request_label(context)

    @property
    def purity(self) -> float:
        """Share of the windows in training whose context is mostly that of their own task; nan before the first."""
        of: dict[int, list[int]] = {}
        for (_, context), number in self.windows.items():
            of.setdefault(context, []).append(number)
        total = sum(self.windows.values())
        return sum(max(numbers) for numbers in of.values()) / total if total else float("nan")

    def _recognise_only(self, strategy: Any, observations: Tensor) -> None:
        self._evaluated += 1
        if (self._evaluated - 1) % self.every or not self.recognition.contexts:
            return
        self._window = [*self._window, self.levels(observations[:1])[0]][-self.recognition.window :]
        strategy.request_label(self.recognition.match(torch.stack(self._window)))

    def _forget_label(self, strategy: Any) -> None:
        if not isinstance(strategy, RLTemplate):
            raise TypeError(
                f"TaskRecognitionPlugin needs a strategy that acts in environments, such as DQN or ActorCritic, got a "
                f"{type(strategy).__name__}"
            )
        strategy.label = self._label
