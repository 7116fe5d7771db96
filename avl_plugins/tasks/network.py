"""What networks with a part for each task have in common: labels, batches of several tasks, tasks not seen yet."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor

from avl_plugins.checkpoint.undo import undo_for
from avl_plugins.tasks.labels import experience_classes, experience_labels, task_label

__all__ = ["MASK", "GrowingModule", "TaskNetwork", "by_task"]

MASK = -1e4
"""Logit of a class that a task does not have: its probability is exactly 0, and it fits into float16."""


def by_task(forward_single_task: Callable[[Tensor, int], Tensor], x: Tensor, task_labels: Any) -> Tensor:
    """Return the outputs for a task label, or for one a sample; those that a task does not have are `MASK`."""
    if not isinstance(task_labels, Tensor):
        return forward_single_task(x, task_label(task_labels))
    first = task_labels.flatten()[:1]
    if len(first) and bool((task_labels == first).all()):  # `unique` would sort them in each step
        return forward_single_task(x, int(first))
    labels: list[int] = torch.unique(task_labels).tolist()
    places = [(task_labels == label).nonzero().squeeze(1) for label in labels]
    parts = [forward_single_task(x[place], label) for place, label in zip(places, labels, strict=True)]
    width = max(part.shape[1] for part in parts)
    outputs = torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=MASK) for part in parts])
    return outputs[torch.cat(places).argsort()]


class GrowingModule(MultiTaskModule):
    """A network whose extra state says what it has grown to."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Grow to the shape of the state and fill it; where it does not fit, the network stays as it was."""
        undo = undo_for(self)
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except BaseException:
            undo()
            raise


class TaskNetwork(GrowingModule):
    """A network that has learnt the tasks `labels`, each with its own head, and that evaluation does not change.

    Args:
        unseen: What to do in evaluation for a task label never trained on: "constant" logits, with a warning for
            each label, or "raise" a ValueError.

    Attributes:
        training_on: Task label and number of the experience that is being trained on; None when its training is
            complete.
    """

    def __init__(self, *, unseen: str) -> None:
        super().__init__()
        if unseen not in ("constant", "raise"):
            raise ValueError(f'unseen: expected "constant" or "raise", got {unseen!r}')
        self.unseen = unseen
        self.training_on: tuple[int, int] | None = None
        self._unseen_classes: dict[int, int] = {}
        self._warned: set[int] = set()

    @property
    def labels(self) -> list[int]:
        """Task labels in the order in which they were learnt."""
        raise NotImplementedError

    def start_task(self, experience: Any) -> int | None:
        """Return the label of a task whose training begins with this experience, and take note of the others.

        Returns:
            None in evaluation, and where the training on the experience goes on.

        Raises:
            ValueError: In training, if the experience has several task labels.
        """
        labels = experience_labels(experience)
        if not self.training:
            for label in set(labels) - set(self.labels):
                self._unseen_classes[label] = max(experience_classes(experience), default=0) + 1
            return None
        if len(labels) != 1:
            raise ValueError(f"a {self.part} serves one task, and the experience has the task labels {labels}")
        if self.training_on == (labels[0], _number(experience)):
            return None  # from a checkpoint or after an interruption
        return labels[0]

    part = "network"
    """What a task has of its own, in messages."""

    def note_training_on(self, label: int, experience: Any) -> None:
        """Note that the training on an experience has begun."""
        self.training_on = (label, _number(experience))

    def finish_task(self) -> None:
        """Note that the training on the latest experience is complete; the plugin calls it."""
        self.training_on = None

    def forward(self, x: Tensor, task_labels: Any) -> Any:
        """Return the logits for a task label, or for one a sample; with None, those of all tasks, as a dict."""
        if task_labels is None:
            return self.forward_all_tasks(x)
        return by_task(self.forward_single_task, x, task_labels)

    def forward_all_tasks(self, x: Tensor) -> dict[int, Tensor]:
        """Return the logits of every task by its label."""
        return {label: self.forward_single_task(x, label) for label in self.labels}

    def index_of(self, label: int) -> int:
        """Return the number of a task, from 0; a ValueError where it has not been trained on."""
        if label not in self.labels:
            raise ValueError(
                f"label: no {self.part} has been trained on task {label}; the tasks so far are {self.labels}"
            )
        return self.labels.index(label)

    def constant_logits(self, x: Tensor, label: int) -> Tensor:
        """Return zeros for a task that has not been trained on, and warn once; raise in training, or if asked to."""
        if self.unseen == "raise" or self.training:
            self.index_of(label)
        if label not in self._warned:
            self._warned.add(label)
            warnings.warn(
                f"task {label} has not been trained on yet: its logits are constant, its accuracy means nothing",
                stacklevel=2,
            )
        first = next(self.parameters())
        return first.new_zeros(len(x), self._unseen_classes.get(label, max(self.max_class_label, 1)))


def _number(experience: Any) -> int:
    return getattr(experience, "current_experience", 0)
