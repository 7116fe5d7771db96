"""What a task is: when the training of one ends, and which experiences it was. One rule for all plugins.

- Ordinarily every experience is a task, whatever its task label: a label that comes back names another task.
- An online stream with known boundaries (`split_online_stream`, `access_task_boundaries=True`) cuts an experience into
  parts, its sub-experiences: the task is the original experience, and ends with its last part. Where boundaries are not
  accessible nothing tells parts from tasks, and each part counts as one.
- `JointTraining` trains on all its experiences at once: they are one task. (`Cumulative` trains on past experiences
  again; the task is the newest.)
- In reinforcement learning a visit is a task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from avalanche.benchmarks.utils import concat_datasets
from avalanche.training.supervised import JointTraining

from avl_plugins.tasks.labels import experience_classes, experience_labels

__all__ = ["Task", "current_task", "finished_task", "is_part", "parts_so_far"]


@dataclass(frozen=True)
class Task:
    """A task whose training has ended, or is going on.

    Attributes:
        experiences: what it consists of; several in joint training only.
    """

    experiences: tuple[Any, ...]

    @property
    def dataset(self) -> Any:
        """All its data, an Avalanche data set."""
        datasets = [experience.dataset for experience in self.experiences]
        return datasets[0] if len(datasets) == 1 else concat_datasets(datasets)

    @property
    def classes(self) -> list[int]:
        """Its classes, sorted."""
        return sorted({c for experience in self.experiences for c in experience_classes(experience)})

    @property
    def labels(self) -> list[int]:
        """Its task labels, sorted; a ValueError where an experience has none."""
        return sorted({label for experience in self.experiences for label in experience_labels(experience)})


def is_part(experience: Any) -> bool:
    """Whether an experience is a part of one, in an online stream with known boundaries."""
    return bool(getattr(experience, "access_task_boundaries", False))


def parts_so_far(experience: Any, parts: int) -> int:
    """Return how many parts of its task have been met, this experience included, after `parts` before it."""
    return parts + 1 if is_part(experience) and not experience.is_first_subexp else 1


def current_task(strategy: Any) -> Task:
    """Return the task that a strategy is training on, as a whole: not only the part that it has come to."""
    if isinstance(strategy, JointTraining):
        return Task(tuple(strategy._experiences))
    experience = strategy.experience
    return Task((experience.origin_experience if is_part(experience) else experience,))


def finished_task(strategy: Any, parts: int) -> Task | None:
    """Return the task that ends with the experience that has just been trained on, None where it goes on.

    Args:
        strategy: in `after_training_exp`.
        parts: what `parts_so_far` says of its experience. Avalanche does not mark the last part as such where the
            parts' size divides the whole's.
    """
    experience = strategy.experience
    goes_on = is_part(experience) and not (experience.is_last_subexp or parts == experience.sub_stream_length)
    return None if goes_on else current_task(strategy)
