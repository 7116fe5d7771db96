"""Batches as the Fisher takes them: inputs, targets and task labels on the model's device, a task at a time."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from avl_plugins.ewc.subset import Batch, Selectable


def is_multi_task(model: nn.Module) -> bool:
    """Whether a model is called with task labels, as Avalanche's `MultiTaskModule` is."""
    return hasattr(model, "forward_single_task")


def parse(model: nn.Module, batch: Any) -> Batch:
    """Return the inputs, targets and task labels of a batch.

    Raises:
        TypeError: it is neither a mapping nor a tuple of two or more, the inputs are no tensor, or the task labels no
            integers.
        ValueError: there is not a target for each sample, or it holds more than these three and the model can be
            called with more than it would be.
    """
    if isinstance(batch, Mapping):
        if "x" not in batch or "y" not in batch:
            raise TypeError(f"a batch given as a mapping needs keys 'x' and 'y', got {sorted(batch)}")
        items = len(batch.keys() | {"t"})
        x, y, t = batch["x"], batch["y"], batch.get("t")
    elif isinstance(batch, tuple | list) and len(batch) >= 2:
        items = len(batch)
        x, y, t = batch[0], batch[1], batch[-1] if len(batch) > 2 else None
    else:
        raise TypeError(f"batches must yield (x, y), (x, y, t) or mappings, got {type(batch).__name__}")
    if not isinstance(x, Tensor):
        raise TypeError(f"the inputs of a batch must be one tensor with a row a sample, got {type(x).__name__}")
    if items > 3 and (more := _further_inputs(model)):
        raise ValueError(
            f"batches must yield (x, y) or (x, y, t), got {items} items where the model also takes {', '.join(more)}: "
            "the Fisher calls it with x alone, so put all that it reads into x, or leave the others out of the batches"
        )
    if y is not None:
        y = torch.as_tensor(y)
        if y.ndim == 0 or len(y) != len(x):
            raise ValueError(
                f"a batch has inputs {tuple(x.shape)} and targets {tuple(y.shape)}: a row a sample is needed"
            )
    if t is not None:
        t = torch.as_tensor(t)
        if t.is_floating_point() or t.ndim > 1:
            raise TypeError(
                f"the last item of (x, y, t) must be task labels, an integer a sample, got {t.dtype} of shape "
                f"{tuple(t.shape)}; weights of samples and further inputs have no place in the Fisher's batches"
            )
    return x, y, t


def without_attributes(batches: Iterable[Any], *, task_labels: bool) -> Iterable[Any]:
    """Leave inputs, targets and task labels of a data set's batches, if these are the last item.

    Avalanche's strategies call a model with no more than these.
    """
    return _Short(batches, task_labels) if isinstance(batches, Selectable) else _shortened(batches, task_labels)


def by_task(model: nn.Module, batch: Batch, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None, int | None]]:
    """Yield the batch on the model's device, split by task label for a multi-task model."""
    x, y, t = batch
    if len(x) == 0:
        return
    x, y = x.to(device), None if y is None else y.to(device)
    if not is_multi_task(model):
        yield x, y, None
    elif t is None:
        raise ValueError("the model is multi-task, so batches must yield (x, y, t) with task labels t")
    else:
        t = t.expand(len(x)).to(device)
        for task in t.unique().tolist():
            rows = t == task
            yield x[rows], None if y is None else y[rows], int(task)


class _Short:
    """Batches that can be selected from, as (x, y, t) or (x, y)."""

    def __init__(self, batches: Any, task_labels: bool) -> None:
        self._batches, self._task_labels = batches, task_labels

    @property
    def n_samples(self) -> int:
        return self._batches.n_samples

    def only(self, chosen: Tensor) -> _Short:
        return _Short(self._batches.only(chosen), self._task_labels)

    def __iter__(self) -> Iterator[Any]:
        return _shortened(self._batches, self._task_labels)


def _shortened(batches: Iterable[Any], task_labels: bool) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, tuple | list):
            batch = (*batch[:2], *batch[2:][-1:]) if task_labels else tuple(batch[:2])
        yield batch


def _further_inputs(model: nn.Module) -> list[str]:
    """Names of what a model's forward takes beside the inputs and, for a multi-task model, the task labels."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # of a compiled extension
        return []
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return named[2 if is_multi_task(model) else 1 :]
