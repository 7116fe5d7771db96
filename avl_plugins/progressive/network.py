"""Progressive networks: a column for each task, with lateral connections from the frozen ones before it."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from math import isfinite
from typing import Any, Self

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from avl_plugins.progressive.adapters import Adapter
from avl_plugins.progressive.column import MASK, Column, fresh
from avl_plugins.progressive.single_task import SingleTaskNetwork, Tap, run_columns

__all__ = ["ProgressiveNetwork"]


class ProgressiveNetwork(MultiTaskModule):
    """Progressive network of Rusu et al. 2016 (arXiv:1606.04671), for any column of linear and convolutional layers.

    Column k computes, at depth i, h_i^k = f(W_i^k h_{i-1}^k + lateral_i^k(h_{i-1}^1, ..., h_{i-1}^{k-1})) (sec. 2). The
    first layer has no lateral connection, as the input is shared; the output head has one. The adapter is

    - "mlp", equation 2: U sigma(V [alpha_j h^j]_j), V a 1 x 1 convolution on feature maps (see `MLPAdapter`);
    - "linear", equation 1: sum_j U^j h^j;
    - None: no connection, independent columns.

    A new task label seen in training (`adaptation`, which Avalanche calls) makes a fresh column and head and freezes
    the others: no gradients, no weight decay, evaluation mode, so that batch statistics stay. Outputs for old
    tasks stay the same, bit for bit for the same batch, device and number of threads. Evaluation changes nothing.

    Deviations: V is n / 8 wide by default where the paper has n (`reduction=1`), as at ten columns the paper's width
    costs several times the columns themselves.

    Args:
        column: The layers of a column without the output head, `nn.Sequential(nn.Linear(784, 400), nn.ReLU(), ...)`. A
            copy of it is the first column, and later ones are copies with new weights. Or a function of the
            column's index that returns one, for columns of different width.
        adapter: "mlp", "linear" or None.
        reduction: V is n / reduction wide, n the maps or units of the layer that it reads, rounded up, and not below
            min(n, 8).
        alpha_init: First value of the learned scalars alpha; the paper searched 1, 0.1 and 0.01.
        features: Features that the head reads, where the last affine layer is a convolution.
        retrain: Train a task's own column again when its label comes back. Columns after it read its features, and what
            they give will change. False: an error.
        unseen: What to do in evaluation for a task label never trained on: "constant" logits, with a warning for
            each label, or "raise" a ValueError.

    Shapes:
        input (B, ...) and task labels, an int or (B,); output (B, classes of the task's head). A batch of several tasks
        gives (B, classes of the largest head), and the classes that a task does not have get the logit -1e4.

    Raises:
        ValueError: If an argument is out of range; in training, if an experience has several task labels, its label has
            been trained on (unless `retrain`), or all experiences of the stream have the same one.
        TypeError: If `column` cannot be cut into layers.

    Attributes:
        columns: The `Column`s. There is one before the first task, so that an optimizer can be made.
        labels: Task labels in the order of the columns.
    """

    def __init__(
        self,
        column: nn.Sequential | Callable[[int], nn.Sequential],
        *,
        adapter: Adapter | None = "mlp",
        reduction: float = 8,
        alpha_init: float = 0.1,
        features: int | None = None,
        retrain: bool = False,
        unseen: str = "constant",
    ) -> None:
        super().__init__()
        if adapter not in ("mlp", "linear", None):
            raise ValueError(f'adapter: expected "mlp", "linear" or None, got {adapter!r}')
        if unseen not in ("constant", "raise"):
            raise ValueError(f'unseen: expected "constant" or "raise", got {unseen!r}')
        if not (isfinite(reduction) and reduction > 0):
            raise ValueError(f"reduction: expected a positive number, got {reduction}")
        if not isfinite(alpha_init):
            raise ValueError(f"alpha_init: expected a finite number, got {alpha_init}")
        if features is not None and features < 1:
            raise ValueError(f"features: expected at least 1, got {features}")
        if isinstance(column, nn.Module):
            template = deepcopy(column)  # a tuple hides it from parameters()
            self._make: tuple[Callable[[int], Any]] = (
                lambda index: fresh(template) if index else deepcopy(template),  # type: ignore[arg-type]
            )
        elif callable(column):
            self._make = (column,)
        else:
            raise TypeError(f"column: expected an nn.Sequential, or a function that makes one, got {column!r}")
        self.adapter: Adapter | None = adapter
        self.reduction = reduction
        self.alpha_init = alpha_init
        self.features_of_head = features
        self.retrain = retrain
        self.unseen = unseen
        self.training_on: tuple[int, int] | None = None
        """Task label and number of the experience that is being trained on; None when its training is complete."""
        self._unseen_classes: dict[int, int] = {}
        self._warned: set[int] = set()
        self._given: tuple[Tensor, ...] | None = None
        first = Column(self._make[0](0), features=features)  # type: ignore[arg-type]
        self.columns = nn.ModuleList([first])

    @property
    def labels(self) -> list[int]:
        """Task labels in the order of the columns."""
        return [column.label for column in self._columns() if column.label is not None]

    def add_column(self, label: int, classes: int | Sequence[int]) -> Column:
        """Freeze all columns and add one for the task `label`, with a head for its classes.

        Args:
            label: Task label, not in `labels`.
            classes: Number of classes, or their labels, of which the largest + 1 is the number of outputs.

        Raises:
            ValueError: If there is a column for `label`, or there are no classes. Nothing has changed then.
        """
        wanted = list(range(classes)) if isinstance(classes, int) else sorted(set(classes))
        if not wanted or wanted[0] < 0:
            raise ValueError(f"classes: expected a positive number or labels from 0 on, got {classes!r}")
        if label in self.labels:
            raise ValueError(f"label: there is a column for task {label} already; the tasks so far are {self.labels}")
        earlier, first = self._columns() if self.labels else [], next(self.parameters())
        options: Any = (self.adapter, self.reduction, self.alpha_init)
        if earlier:
            column = Column(self._make[0](len(earlier)), features=self.features_of_head)
            column.to(first)
            column.connect(earlier, *options)
        else:
            column = self._columns()[0]
        column.add_head(label, wanted, earlier, *options)
        column.to(first)
        for other in earlier:
            other.freeze()
        if earlier:
            self.columns.append(column)
        column.train(self.training)
        self.known_train_tasks_labels = set(self.labels)
        self.max_class_label: int = max(self.max_class_label, wanted[-1] + 1)
        return column

    def adaptation(self, experience: Any) -> None:
        """In training, add a column for a new task label; in evaluation, change nothing."""
        labels = sorted(set(experience.task_labels))
        if not self.training:
            for label in labels:
                self._unseen_classes[label] = max(experience.classes_in_this_experience, default=0) + 1
            return
        if len(labels) != 1:
            raise ValueError(f"a column serves one task, and the experience has the task labels {labels}")
        label, number = labels[0], getattr(experience, "current_experience", 0)
        if self.training_on == (label, number):
            return  # its training goes on, from a checkpoint
        if label in self.labels:
            self._train_again(label)
        else:
            if not self.labels and not self.retrain:
                _check_labels_differ(experience)
            self.add_column(label, sorted(experience.classes_in_this_experience))
        self.training_on = (label, number)

    def finish_task(self) -> None:
        """Note that the training on the latest experience is complete; `ProgressivePlugin` calls it."""
        self.training_on = None

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen columns stay in evaluation mode."""
        super().train(mode)
        for column in self._columns():
            if column.frozen:
                column.eval()
        return self

    def forward(self, x: Tensor, task_labels: Any) -> Any:
        """Return the logits for a task label, or for one a sample; with None, those of all tasks, as a dict."""
        if task_labels is None:
            return self.forward_all_tasks(x)
        if isinstance(task_labels, int):
            return self.forward_single_task(x, task_labels)
        labels: list[int] = torch.unique(task_labels).tolist()
        if len(labels) == 1:
            return self.forward_single_task(x, labels[0])
        places = [(task_labels == label).nonzero().squeeze(1) for label in labels]
        parts = [self.forward_single_task(x[place], label) for place, label in zip(places, labels, strict=True)]
        width = max(part.shape[1] for part in parts)
        logits = torch.cat([nn.functional.pad(part, (0, width - part.shape[1]), value=MASK) for part in parts])
        return logits[torch.cat(places).argsort()]

    def forward_single_task(self, x: Tensor, task_label: int, tap: Tap | None = None) -> Tensor:
        """Return the logits (B, classes of the task's head).

        Args:
            x: The inputs (B, ...).
            task_label: The task.
            tap: Called with column, depth and every h_i^j on the way, and returns what is used in its place. With it
                frozen columns are part of the graph, without it they run without gradients.
        """
        if task_label not in self.labels:
            return self._constant(x, task_label)
        index = self.labels.index(task_label)
        column = self._columns()[index]
        if self.adapter is None:  # it reads nothing from the others
            *earlier, own = run_columns([column], x, tap, first=index)
        else:
            *earlier, own = self.features(x, task_label, tap)
        return column.logits(own, earlier)

    def forward_all_tasks(self, x: Tensor) -> dict[int, Tensor]:
        """Return the logits of every task by its label."""
        return {label: self.forward_single_task(x, label) for label in self.labels}

    def features(self, x: Tensor, label: int, tap: Tap | None = None) -> list[list[Tensor]]:
        """Return h_i^j by column j, up to that of the task, and depth i.

        Inside `given_features` the earlier columns are not computed: one list stands for all of them.
        """
        columns = self._columns()[: self._index(label) + 1]
        if self._given is None or tap is not None or columns[-1] is not self.columns[-1]:
            return run_columns(columns, x, tap)
        given = list(self._given)
        if len(given[0]) != len(x):
            raise ValueError(
                f"cache_frozen: features of {len(given[0])} samples for a batch of {len(x)}; a plugin that changes "
                "the batch cannot be used with it"
            )
        return [given, columns[-1](x, [given])]

    @contextmanager
    def given_features(self, features: Sequence[Tensor]) -> Iterator[None]:
        """Use these features of the frozen columns, concatenated over columns, by depth, for the newest task."""
        self._given = tuple(features)
        try:
            yield
        finally:
            self._given = None

    def frozen_features(self, x: Tensor) -> list[Tensor]:
        """Return, by depth, the concatenated features of all columns before the newest."""
        columns = self._columns()[:-1]
        with torch.no_grad():
            found = run_columns(columns, x)
        stages = [stage.layer for stage in self._columns()[-1].stages]
        return [
            torch.cat(list(depth), dim=1 if depth[0].dim() > 2 and not isinstance(layer, nn.Linear) else -1)
            for depth, layer in zip(zip(*found, strict=True), stages, strict=True)
        ]

    def parameters_of(self, label: int) -> dict[str, int]:
        """Return the number of a task's own parameters: "column" with the head, and "lateral", its adapters."""
        column = self._columns()[self._index(label)]
        total = sum(p.numel() for p in column.parameters())
        laterals = [stage.lateral for stage in (*column.stages, column.head) if stage.lateral is not None]
        lateral = sum(p.numel() for adapter in laterals for p in adapter.parameters())
        return {"column": total - lateral, "lateral": lateral}

    def to_single_task(self, label: int) -> SingleTaskNetwork:
        """Return what one task needs as a plain module, x -> logits, in evaluation mode; a copy."""
        index = self._index(label)
        columns = self._columns()[index if self.adapter is None else 0 : index + 1]
        return SingleTaskNetwork(deepcopy(columns)).eval()

    def get_extra_state(self) -> dict[str, Any]:
        """Return the tasks of the columns."""
        columns = [column for column in self._columns() if column.head is not None]
        return {
            "columns": [{"label": c.label, "classes": list(c.classes), "frozen": c.frozen} for c in columns],
            "training_on": self.training_on,
        }

    def set_extra_state(self, state: Any) -> None:
        """Grow to the columns of a state_dict, which are filled after this."""
        columns, labels = state["columns"], self.labels
        saved = [column["label"] for column in columns]
        if labels != saved[: len(labels)]:
            raise ValueError(f"the network has columns for the tasks {labels}, the state for {saved}")
        devices = [next(self.parameters()).device] if next(self.parameters()).is_cuda else []
        with torch.random.fork_rng(devices=devices):
            for column in columns[len(labels) :]:
                self.add_column(column["label"], column["classes"])
        for column, own in zip(columns, self._columns(), strict=False):
            own.freeze(column["frozen"])
        self.training_on = None if state["training_on"] is None else tuple(state["training_on"])

    def _columns(self) -> list[Column]:
        return list(self.columns)  # type: ignore[arg-type]

    def _index(self, label: int) -> int:
        if label not in self.labels:
            raise ValueError(f"label: no column has been trained on task {label}; the tasks so far are {self.labels}")
        return self.labels.index(label)

    def _train_again(self, label: int) -> None:
        if not self.retrain:
            raise ValueError(
                f"task {label} has a column, which has been trained; pass retrain=True to ProgressiveNetwork to train "
                "it again. If these are different tasks, build the benchmark with task_labels=True"
            )
        index = self._index(label)
        if index < len(self.columns) - 1:
            warnings.warn(
                f"retrain: the columns of the tasks {self.labels[index + 1 :]} read the features of task {label}'s, "
                "and what they give will change",
                stacklevel=2,
            )
        for column in self._columns():
            column.freeze()
        self._columns()[index].freeze(False)
        self._columns()[index].train(self.training)

    def _constant(self, x: Tensor, label: int) -> Tensor:
        if self.unseen == "raise" or self.training:
            self._index(label)
        if label not in self._warned:
            self._warned.add(label)
            warnings.warn(
                f"task {label} has not been trained on yet: its logits are constant, its accuracy means nothing",
                stacklevel=2,
            )
        first = next(self.parameters())
        return first.new_zeros(len(x), self._unseen_classes.get(label, max(self.max_class_label, 1)))


def _check_labels_differ(experience: Any) -> None:
    """Refuse a stream without task labels, in which Avalanche gives every experience the label 0."""
    stream = getattr(experience, "origin_stream", None)
    if stream is None or len(stream) < 2:
        return
    labels = [sorted(set(other.task_labels)) for other in stream]
    if all(one == labels[0] for one in labels):
        raise ValueError(
            f"all {len(labels)} experiences of the stream have the task label {labels[0][0]}, and a column serves one "
            "task; build the benchmark with task_labels=True"
        )
