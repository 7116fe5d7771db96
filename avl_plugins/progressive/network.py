"""Progressive networks: a column for each task, with lateral connections from the frozen ones before it."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from avl_plugins.data.serving import Given, Served
from avl_plugins.growth.seeds import drawn_from
from avl_plugins.progressive.adapters import Adapter, Laterals, concatenated, feature_dim
from avl_plugins.progressive.column import Column
from avl_plugins.progressive.fresh import ColumnMaker
from avl_plugins.progressive.frozen import given_for
from avl_plugins.progressive.single_task import SingleTaskNetwork, Tap, run_columns
from avl_plugins.progressive.state import grow_to, shape_of
from avl_plugins.tasks.arguments import check_flag, check_seed
from avl_plugins.tasks.copies import copy_module
from avl_plugins.tasks.labels import (
    check_labels_differ,
    class_labels,
    experience_classes,
    task_label,
)
from avl_plugins.tasks.network import TaskNetwork

__all__ = ["ProgressiveNetwork"]


class ProgressiveNetwork(TaskNetwork):
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
        column: the layers of a column without the output head, `nn.Sequential(nn.Linear(784, 400), nn.ReLU(), ...)`. A
            copy of it is the first column, and later ones are copies with new weights. Or a function of the
            column's index that returns one, for columns of different width.
        adapter: "mlp", "linear" or None.
        reduction: V is n / reduction wide, n the maps or units of the layer that it reads, rounded up, and not below
            min(n, 8).
        alpha_init: first value of the learned scalars alpha; the paper searched 1, 0.1 and 0.01.
        features: number of features that the head reads, where the last affine layer is a convolution; or a function of
            the column's index that returns it.
        retrain: train a task's own column again when its label comes back with no other classes. Columns after it
            read its features, and what they give will change. False: an error.
        unseen: what to do in evaluation for a task label never trained on: "constant" logits, with a warning for
            each label, or "raise" a ValueError.
        seed: of the weights of new columns, adapters and heads, which a column's number and this determine. None:
            torch's global generator.

    Shapes:
        input (B, ...) and task labels, an int or (B,); output (B, classes of the task's head). A batch of several tasks
        gives (B, classes of the largest head), and the classes that a task does not have get the logit -1e4.

    Raises:
        ValueError: If an argument is out of range, or `column` has a layer that cannot be made anew; in training, if an
            experience has no task label or several, its label has been trained on (unless `retrain`, and with no other
            classes), or all experiences of the stream have the same one.
        TypeError: If `column` cannot be cut into layers, or an argument is of another kind.

    Attributes:
        columns: the `Column`s. There is one before the first task, so that an optimizer can be made.
        labels: task labels in the order of the columns.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from avl_plugins.progressive import ProgressiveNetwork
        >>> network = ProgressiveNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU()))
        >>> for label, classes in ((0, 3), (7, 2)):
        ...     column = network.add_task(label, classes)
        >>> network.labels, [column.frozen for column in network.columns]
        ([0, 7], [True, False])
        >>> network(torch.randn(5, 4), 7).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        column: nn.Sequential | Callable[[int], nn.Sequential],
        *,
        adapter: Adapter | None = "mlp",
        reduction: float = 8,
        alpha_init: float = 0.1,
        features: int | Callable[[int], int] | None = None,
        retrain: bool = False,
        unseen: str = "constant",
        seed: int | None = None,
    ) -> None:
        super().__init__(unseen=unseen)
        check_flag("retrain", retrain)
        check_seed("seed", seed, none="torch's global generator")
        self.laterals = Laterals(adapter, reduction, alpha_init)
        self.retrain, self.seed = retrain, seed
        self._given: Given | None = None
        self._make = ColumnMaker(column, features)
        with drawn_from(seed, "first column"):
            self.columns = nn.ModuleList([self._make(0)])

    part = "column"

    @property
    def adapter(self) -> Adapter | None:
        """The kind of lateral connection."""
        return self.laterals.adapter

    @property
    def labels(self) -> list[int]:
        """Task labels in the order of the columns."""
        return [column.label for column in self._columns() if column.label is not None]

    def add_task(self, label: int, classes: int | Sequence[int]) -> Column:
        """Freeze all columns and add one for the task `label`, with a head for its classes.

        Args:
            label: task label, not in `labels`.
            classes: number of classes, or their labels, of which the largest + 1 is the number of outputs.

        Raises:
            ValueError: If there is a column for `label`, there are no classes, or a function given as `column` returns
                layers of another kind or ones in use. Nothing has changed then.
            TypeError: If the labels are no integers.
        """
        label, wanted = task_label(label), class_labels(classes)
        if label in self.labels:
            raise ValueError(f"label: there is a column for task {label} already; the tasks so far are {self.labels}")
        earlier, first = self._columns() if self.labels else [], next(self.parameters())
        with drawn_from(self.seed, f"task {len(earlier)}"):
            column = self._next_column(earlier) if earlier else self._columns()[0]
            column.add_head(label, wanted, earlier, self.laterals)
        column.to(first)
        for other in earlier:
            other.freeze()
        if earlier:
            self.columns.append(column)
        column.train(self.training)
        self.known_train_tasks_labels = set(self.labels)
        self.max_class_label: int = max(self.max_class_label, wanted[-1] + 1)
        return column

    def add_column(self, label: int, classes: int | Sequence[int]) -> Column:
        """Do what `add_task` does; deprecated."""
        warnings.warn("ProgressiveNetwork.add_column is called add_task now", DeprecationWarning, stacklevel=2)
        return self.add_task(label, classes)

    def adaptation(self, experience: Any) -> None:
        """In training, add a column for a new task label; in evaluation, change nothing."""
        label = self.start_task(experience)
        if label is None:
            return
        if label in self.labels:
            self._train_again(label, experience_classes(experience))
        else:
            if not self.labels and not self.retrain:
                check_labels_differ(experience)
            self.add_task(label, experience_classes(experience))
        self.note_training_on(label, experience)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen columns stay in evaluation mode."""
        super().train(mode)
        for column in self._columns():
            if column.frozen:
                column.eval()
        return self

    def forward_single_task(self, x: Tensor, task_label: int, tap: Tap | None = None) -> Tensor:
        """Return the logits (B, classes of the task's head).

        Args:
            x: the inputs (B, ...).
            task_label: the task.
            tap: called with column, depth and every h_i^j on the way, and returns what is used in its place. With it
                frozen columns are part of the graph, without it they run without gradients.
        """
        if task_label not in self.labels:
            return self.constant_logits(x, task_label)
        index = self.labels.index(task_label)
        column = self._columns()[index]
        if self.adapter is None:  # it reads nothing from the others
            *earlier, own = run_columns([column], x, tap, first=index)
        else:
            *earlier, own = self.features(x, task_label, tap)
        return column.logits(own, earlier)

    def features(self, x: Tensor, label: int, tap: Tap | None = None) -> list[list[Tensor]]:
        """Return h_i^j by column j, up to that of the task, and depth i.

        Inside `given_features`, in training, the earlier columns are not computed: one list stands for all of them.
        """
        columns = self._columns()[: self.index_of(label) + 1]
        if self._given is None or tap is not None or not self.training or columns[-1] is not self.columns[-1]:
            return run_columns(columns, x, tap)
        given = list(given_for(x, self._given))
        return [given, columns[-1](x, [given])]

    @contextmanager
    def given_features(self, given: Given) -> Iterator[None]:
        """Use these in training on the newest task; any batch but theirs is then an error."""
        self._given = given
        try:
            yield
        finally:
            self._given = None

    def frozen_features(self, x: Tensor) -> Given:
        """Return, by depth, the concatenated features that all columns before the newest have for a batch."""
        *columns, newest = self._columns()
        if not columns:
            raise ValueError("there are no frozen features yet: the network has one column")
        with torch.no_grad():
            found = run_columns(columns, x)
        dims = [feature_dim(newest.layer_at(depth)) for depth in range(1, len(newest.stages) + 1)]
        by_depth = zip(zip(*found, strict=True), dims, strict=True)
        return Given(Served.of(torch.arange(len(x)), x), tuple(concatenated(h, dim) for h, dim in by_depth))

    def parameters_of(self, label: int) -> dict[str, int]:
        """Return the number of a task's own parameters: "column" with the head, and "lateral", its adapters."""
        column = self._columns()[self.index_of(label)]
        total = sum(p.numel() for p in column.parameters())
        laterals = [stage.lateral for stage in (*column.stages, column.head) if stage.lateral is not None]
        lateral = sum(p.numel() for adapter in laterals for p in adapter.parameters())
        return {"column": total - lateral, "lateral": lateral}

    def to_single_task(self, label: int) -> SingleTaskNetwork:
        """Return what one task needs as a plain module, x -> logits, in evaluation mode; a copy."""
        index = self.index_of(label)
        columns = self._columns()[index if self.adapter is None else 0 : index + 1]
        return SingleTaskNetwork([*copy_module(nn.ModuleList(columns))]).eval()  # type: ignore[arg-type]

    def get_extra_state(self) -> dict[str, Any]:
        """Return the tasks of the columns."""
        return shape_of(self)

    def set_extra_state(self, state: Any) -> None:
        """Grow to the columns of a state_dict, which are filled after this."""
        grow_to(self, state)

    def _columns(self) -> list[Column]:
        return list(self.columns)  # type: ignore[arg-type]

    def _next_column(self, earlier: Sequence[Column]) -> Column:
        """Make a column that is connected to the earlier ones."""
        column = self._make(len(earlier))
        in_use = {id(tensor) for tensor in (*self.parameters(), *self.buffers())}
        if any(id(tensor) in in_use for tensor in (*column.parameters(), *column.buffers())):
            raise ValueError("column: the function has returned layers of an earlier column; have it make new ones")
        column.to(next(self.parameters()))
        column.connect(earlier, self.laterals)
        return column

    def _train_again(self, label: int, classes: Sequence[int]) -> None:
        if not self.retrain:
            raise ValueError(
                f"task {label} has a column, which has been trained; pass retrain=True to ProgressiveNetwork to train "
                "it again. If these are different tasks, build the benchmark with task_labels=True"
            )
        index = self.index_of(label)
        head = self._columns()[index].classes
        if not set(classes) <= set(head):
            raise ValueError(
                f"retrain: the experience has the classes {list(classes)}, and the head of task {label} is for "
                f"{list(head)}; give tasks with other classes another task label"
            )
        if index < len(self.columns) - 1 and self.adapter is not None:
            warnings.warn(
                f"retrain: the columns of the tasks {self.labels[index + 1 :]} read the features of task {label}'s, "
                "and what they give will change",
                stacklevel=2,
            )
        for column in self._columns():
            column.freeze()
        self._columns()[index].freeze(False)
        self._columns()[index].train(self.training)
