"""Task labels and classes, as an experience or a user gives them."""

from collections.abc import Sequence
from numbers import Integral
from operator import index
from typing import Any

__all__ = ["check_labels_differ", "class_labels", "experience_classes", "experience_labels", "task_label"]


def task_label(label: Any) -> int:
    """Return a task label as an int; integers of NumPy and tensors are taken, too.

    Raises:
        TypeError: If it is no integer.
    """
    try:
        return _index(label)
    except TypeError:
        raise TypeError(f"label must be an integer, as Avalanche's task labels are, got {label!r}") from None


def class_labels(classes: int | Sequence[int]) -> list[int]:
    """Return the labels of a task's classes in order, given them or their number.

    Raises:
        ValueError: If there are none, or one is negative.
        TypeError: If they are no integers.
    """
    try:
        wanted = range(_index(classes)) if isinstance(classes, Integral) else sorted(map(_index, set(classes)))  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"classes must be a number of classes or their integer labels, got {classes!r}") from None
    if not wanted or wanted[0] < 0:
        raise ValueError(f"classes must be a number >= 1, or labels >= 0, got {classes!r}")
    return sorted(set(wanted))


def _index(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError("a truth value is no number")
    return index(value)


def experience_labels(experience: Any) -> list[int]:
    """Return the task labels of an experience.

    Raises:
        ValueError: If it has none.
    """
    labels = getattr(experience, "task_labels", None)
    if labels is None:
        raise ValueError(
            "the experience has no task labels, and tasks are told apart by them; build the benchmark with "
            "task_labels=True, or make it one with Avalanche's task_incremental_benchmark"
        )
    return sorted({task_label(label) for label in labels})


def experience_classes(experience: Any) -> list[int]:
    """Return the classes of an experience, from its data's targets where Avalanche does not say them."""
    classes = getattr(experience, "classes_in_this_experience", None)
    if classes is None:
        classes = experience.dataset.targets
    return sorted({index(label) for label in classes})


def check_labels_differ(experience: Any) -> None:
    """Refuse a stream without task labels, in which Avalanche gives every experience the label 0.

    Raises:
        ValueError: If all experiences of the experience's stream, of which there are several, have the same labels.
    """
    stream = getattr(experience, "origin_stream", None)
    if stream is None or len(stream) < 2:
        return
    labels = [experience_labels(other) for other in stream]
    if all(one == labels[0] for one in labels):
        raise ValueError(
            f"all {len(labels)} experiences of the stream have the task label {labels[0][0]}, and tasks are told apart "
            "by it; build the benchmark with task_labels=True"
        )
