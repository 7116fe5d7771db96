"""Task labels from what an agent sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avl_plugins.rl.entries import Check, a_count, a_dict, check_entries
from avl_plugins.rl.recognition import TaskRecognition, observation_levels
from avl_plugins.rl.template import RLTemplate
from avl_plugins.tasks.arguments import check_callable, check_count, check_kind
from avl_plugins.tasks.owners import note_owner, refuse_shared

__all__ = ["TaskRecognitionPlugin"]


def _numbers(name: str, value: Any, length: int) -> None:
    if not isinstance(value, list | tuple) or len(value) != length:
        raise ValueError(f"{name} must be {length} numbers, got {value!r}")
    for number in value:
        a_count(f"a number of {name}", number)


def _windows(name: str, value: Any) -> None:
    check_kind(name, value, list, "a list")
    for window in value:
        _numbers(f"a window of {name}", window, 3)


_ENTRIES: dict[str, Check] = {
    "recognition": a_dict,
    "steps": a_count,
    "windows": _windows,
    "label": a_count,
    "latest": partial(_numbers, length=2),
}


class TaskRecognitionPlugin(SupervisedPlugin):
    """Gives a strategy of `avl_plugins.rl` the contexts that `TaskRecognition` infers, in place of the task labels.

    The strategy then has a replay buffer, a separate epsilon schedule, gains and biases and a term of EWC per context
    (Kirkpatrick et al. 2017, app. 4.2). The first environment is observed, every fourth agent step. Where another
    context is recognised, plugins with a method `switch_task(strategy)` are told before the label changes: EWC protects
    the one that ends. The end of an experience ends one, too, as EWC's hooks are Avalanche's; a term that is
    computed twice replaces itself with `EWCPlugin(revisits="replace")`, which this needs.

    A window that is taken for another game's would have EWC replace that game's term by one of the weights of now. Two
    arguments, which the paper does not have, guard against it: the label changes only after `agreeing` windows, and EWC
    leaves a task alone that has not been in use for `least_held` agent steps. A visit begins under the label that the
    one before ended with, until enough windows say otherwise: too short a time for EWC, too.

    In evaluation nothing is learnt and no context is added; the label is the context that explains the latest window of
    observations best, from the first observation on.

    Put it before `EWCPlugin`.

    Args:
        recognition: the model.
        every: agent steps of an environment from one observation to the next.
        agreeing: windows in a row that have to be of another context before the label changes to it; 1 is the paper's.
        least_held: agent steps without a break that a label has to be in use for before EWC protects its task. Take
            about a tenth of the shortest visit at most; a visit that is shorter than this protects nothing.
        levels: turns a batch of observations into the model's levels; `observation_levels` by default.

    Attributes:
        windows: how often a window of the task of the first number was given the context of the second.

    Raises:
        TypeError: an argument is of another kind. In `train()` and `eval()`, the strategy does not act in environments.
        ValueError: a number is out of range. In `train()` and `eval()`, the plugin or its model serves another
            strategy; in `train()`, an `EWCPlugin` has another choice of `revisits`.
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
        if not callable(getattr(recognition, "observe", None)):
            raise TypeError(f"recognition must be a TaskRecognition, got {recognition!r}")
        check_count("every", every)
        check_count("agreeing", agreeing)
        check_count("least_held", least_held, low=0)
        check_callable("levels", levels, "observations -> levels", none="observation_levels")
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
        """Take the state of `state_dict()`.

        Raises:
            ValueError: it does not fit, and nothing is changed; the message names the entry.
        """
        check_entries("a TaskRecognitionPlugin", state, _ENTRIES)
        self.recognition.load_state_dict(state["recognition"])
        self._steps = state["steps"]
        self._label, self._latest = state["label"], (state["latest"][0], state["latest"][1])
        self.windows = {(task, context): number for task, context, number in state["windows"]}

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse an `EWCPlugin` that would add a term each time that a task ends."""
        if any(getattr(plugin, "revisits", "replace") != "replace" for plugin in strategy.plugins):
            raise ValueError(
                "revisits of EWCPlugin must be 'replace' where tasks are recognised, as one may end several times in a "
                "visit, got 'add'"
            )

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Forget the experience's label, and say for how long one has to be in use."""
        self._forget_label(strategy)
        strategy.least_held = self.least_held

    def before_eval_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Forget the experience's label and the window of the evaluation before."""
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
        refuse_shared(strategy, "TaskRecognitionPlugin", plugin=self, recognition=self.recognition)
        note_owner(strategy, self, self.recognition)
        strategy.label = self._label
