"""Dynamically expandable networks: layers that grow, a head for each task, and inference by time stamps."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avl_plugins.data.serving import Given
from avl_plugins.den.layers import GrowingLayer, cut, entries, take
from avl_plugins.den.shape import grow_to, shape_of
from avl_plugins.den.stand_in import StandIn
from avl_plugins.growth.seeds import drawn_from
from avl_plugins.tasks.arguments import check_choice, check_count, check_flag, check_seed
from avl_plugins.tasks.copies import copy_module, refuse_lazy
from avl_plugins.tasks.labels import check_labels_differ, class_labels, experience_classes, task_label
from avl_plugins.tasks.network import TaskNetwork

__all__ = ["DynamicallyExpandableNetwork"]


class DynamicallyExpandableNetwork(TaskNetwork):
    """Network of Yoon et al. 2018 (arXiv:1708.01547): hidden layers that grow units, and a head for each task.

    Every unit has a stamp, the number of the task that made it. For task t only units stamped t or earlier are
    used, and the connections between them, so that units of later tasks do not disturb it: its outputs are the same,
    bit for bit, right after any growth, and after training of new units alone. Old units that later tasks retrain are
    used with their new weights. A unit that task t has split is used by the tasks before t only, and its copy by t and
    those after it.

    A new task label seen in training (`adaptation`, which Avalanche calls) makes a head, `DENPlugin` does the rest.
    Evaluation changes nothing.

    Args:
        body: layers without the output head, `nn.Sequential(nn.Linear(784, 312), nn.ReLU(), ...)`: `Linear` and
            `Conv2d` with activations, pooling, dropout and flatten between them. A copy of it is used.
        features: number of features that a head reads, where the last layer is a convolution.
        head: "multiclass", a logit for each class; "one-vs-rest", the same for `one_vs_rest_loss`; "binary", one logit
            for classes 0 and 1.
        stamps: use only units of the task and those before; False: also those that later tasks made, the paper's
            DEN-No-Stamp.
        unseen: what to do in evaluation for a task label never trained on: "constant" logits, with a warning for
            each label, or "raise" a ValueError.
        seed: of the weights of heads, which a task's number and this determine. None: torch's global generator.

    Shapes:
        input (B, ...) and task labels, an int or (B,); output (B, outputs of the task's head). A batch of several tasks
        gives (B, outputs of the largest head), and those that a task does not have are -1e4.

    Raises:
        TypeError: If `body` is no `nn.Sequential` or has layers that cannot grow, or an argument is of another kind.
        ValueError: If an argument is out of range; in training, if an experience has no task label or several, its
            label has been trained on, all experiences of the stream have the same one, or a binary head is to tell
            more than two classes.

    Attributes:
        layers: the hidden layers.
        heads: `Linear` by the task label as text.
        stand_in: what computes the newest task's logits in the place of the layers (see `put_in_place`); else None.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from avl_plugins.den import DynamicallyExpandableNetwork
        >>> network = DynamicallyExpandableNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU()))
        >>> for label, classes in ((0, 3), (7, 2)):
        ...     head = network.add_task(label, classes)
        >>> network(torch.randn(5, 4), 7).shape
        torch.Size([5, 2])
        >>> network.units_of(7), network.capacity()
        ([[0, 1, 2, 3, 4, 5, 6, 7]], 1.0)
    """

    part = "head"

    def __init__(
        self,
        body: nn.Sequential,
        *,
        features: int | None = None,
        head: Literal["multiclass", "one-vs-rest", "binary"] = "multiclass",
        stamps: bool = True,
        unseen: str = "constant",
        seed: int | None = None,
    ) -> None:
        super().__init__(unseen=unseen)
        check_choice("head", head, ("multiclass", "one-vs-rest", "binary"))
        check_count("features", features, none="the number of the last layer's units")
        check_flag("stamps", stamps)
        check_seed("seed", seed, none="torch's global generator")
        if isinstance(body, nn.Module):
            refuse_lazy("body", body)
            body = copy_module(body)
        before, layers = cut(body)
        last = layers[-1]
        if features is None and not isinstance(last.layer, nn.Linear):
            raise ValueError(
                "features: the body ends with a convolution; pass the number of features after its last module, which "
                "the head reads"
            )
        features = last.units if features is None else features
        if features % last.units:
            raise ValueError(f"features must be a multiple of the last layer's {last.units} units, got {features}")
        self.head, self.use_stamps, self.seed = head, stamps, seed
        self.head_positions = features // last.units
        self.before = nn.Sequential(*before)
        self.layers = nn.ModuleList(layers)
        self.heads = nn.ModuleDict()
        self.stand_in: StandIn | None = None
        self._given: Given | None = None
        self.first_units = [layer.units for layer in layers]
        """Units of the layers before anything was added: the base network's."""

    @property
    def labels(self) -> list[int]:
        """Task labels in the order in which they were learnt."""
        return [int(label) for label in self.heads]

    @property
    def newest(self) -> int:
        """Label of the newest task; a ValueError where there is none."""
        if not self.labels:
            raise ValueError("the network has no task yet: call add_task(label, classes) first")
        return self.labels[-1]

    @property
    def hidden(self) -> list[GrowingLayer]:
        """The hidden layers, as a list."""
        return list(self.layers)  # type: ignore[arg-type]

    @property
    def stamp(self) -> int:
        """Number of the latest task, from 1; 0 before the first."""
        return len(self.heads)

    def add_task(self, label: int, classes: int | Sequence[int]) -> nn.Linear:
        """Add a head for the task `label`, which reads all units of the last layer.

        Args:
            label: task label, not in `labels`.
            classes: number of classes, or their labels, of which the largest + 1 is the number of outputs.

        Raises:
            ValueError: If there is a head for `label`, there are no classes, or a binary head is to tell others than
                0 and 1.
            TypeError: If the labels are no integers.
        """
        label, wanted = task_label(label), class_labels(classes)
        if label in self.labels:
            raise ValueError(
                f"label: there is a head for task {label} already, and it is not trained again; the tasks so far are "
                f"{self.labels}. If these are different tasks, build the benchmark with task_labels=True"
            )
        if self.head == "binary" and not set(wanted) <= {0, 1}:
            raise ValueError(f'head: "binary" tells the classes 0 and 1, and the task {label} has {wanted}')
        outputs = 1 if self.head == "binary" else wanted[-1] + 1
        last = self.hidden[-1]
        with drawn_from(self.seed, f"head {self.stamp}"):
            head = nn.Linear(last.units * self.head_positions, outputs)
        self.heads[str(label)] = head.to(next(self.parameters()))
        with torch.no_grad():
            head.weight[:, entries(last.split_units(), self.head_positions)] = 0
        self.known_train_tasks_labels = set(self.labels)
        self.max_class_label: int = max(self.max_class_label, wanted[-1] + 1)
        return head

    def head_of(self, label: int) -> nn.Linear:
        """Return the head of a task."""
        self.index_of(label)
        return self.heads[str(label)]  # type: ignore[return-value]

    def adaptation(self, experience: Any) -> None:
        """In training, add a head for a new task label; in evaluation, change nothing."""
        label = self.start_task(experience)
        if label is None:
            return
        if not self.labels:
            check_labels_differ(experience)
        self.add_task(label, experience_classes(experience))
        self.note_training_on(label, experience)

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Return the logits (B, outputs of the task's head)."""
        if task_label not in self.labels:
            return self.constant_logits(x, task_label)
        if self.stand_in is not None and task_label == self.newest:
            return self.stand_in(self, x)
        features, weight = self.features(x, task_label), self.head_weight(task_label)
        return nn.functional.linear(features[:, : weight.shape[1]], weight, self.head_of(task_label).bias)

    def units_of(self, label: int) -> list[list[int]]:
        """Return the numbers of the units of each layer that a task uses."""
        task = self.index_of(label) + 1
        return [layer.units_of(task, stamps=self.use_stamps) for layer in self.hidden]

    def features(self, x: Tensor, label: int) -> Tensor:
        """Return what the units of the last layer that a task uses make of x, (B, features)."""
        if self._given is not None and label == self.newest and (known := self._given.of(x)) is not None:
            return known[0]
        h, below = self.before(x), None
        for layer, units in zip(self.hidden, self.units_of(label), strict=True):
            h = layer(h, *layer.block(units, below))
            below = units
        return h.flatten(1)

    @contextmanager
    def given_features(self, given: Given) -> Iterator[None]:
        """Take these for the newest task's features of their batch, instead of computing them; others are computed."""
        self._given = given
        try:
            yield
        finally:
            self._given = None

    def put_in_place(self, stand_in: StandIn) -> StandIn:
        """Compute the newest task's logits with a part that has parameters of its own, until `write_back`.

        An optimizer that trains these moves nothing else. Earlier tasks are computed with the layers, as ever.
        """
        self.stand_in = stand_in
        return stand_in

    def write_back(self, *, keep: bool = False) -> None:
        """Write what a stand-in has learnt, if there is one, into the layers, and compute with them again.

        Args:
            keep: leave the stand-in in their place.
        """
        if self.stand_in is not None:
            self.stand_in.write_back(self)
        if not keep:
            self.stand_in = None

    def drop_stand_in(self) -> None:
        """Compute with the layers again, as they were when a stand-in took their place."""
        self.stand_in = None

    def head_weight(self, label: int) -> Tensor:
        """Return a head's weights for the units that its task uses: (outputs, features), or the first of them.

        Without stamps a task uses units that were made after its head, which does not read them.
        """
        head, units = self.head_of(label), self.hidden[-1].units_of(self.index_of(label) + 1, stamps=self.use_stamps)
        known = bisect_left(units, head.in_features // self.head_positions)
        return take(head.weight, 1, units[:known], self.head_positions).contiguous()

    def to_single_task(self, label: int) -> nn.Sequential:
        """Return what one task needs as a plain module, x -> logits, in evaluation mode; a copy."""
        parts: list[nn.Module] = [*copy_module(self.before)]
        below = None
        for own, units in zip(self.hidden, self.units_of(label), strict=True):
            layer, (weight, bias) = copy_module(own), own.block(units, below)
            layer.set_tensors(weight.clone(), None if bias is None else bias.clone(), [1] * len(units))
            parts += [layer.layer, *layer.after]
            below = units
        weight, own_head = self.head_weight(label), self.head_of(label)
        head = nn.Linear(len(below) * self.head_positions, own_head.out_features).to(weight)  # type: ignore[arg-type]
        with torch.no_grad():
            head.weight.zero_()[:, : weight.shape[1]] = weight
            head.bias.copy_(own_head.bias)
        if self.head_positions > 1 or isinstance(self.hidden[-1].layer, nn.Conv2d):
            parts.append(nn.Flatten())
        return nn.Sequential(*parts, head).eval()

    def capacity(self) -> float:
        """Return the number of weights relative to the network without any growth, as the paper counts it.

        Weights of the dense network without biases: every head reads all units.
        """
        return self.dense_weights([layer.units for layer in self.hidden]) / self.dense_weights(self.first_units)

    def dense_weights(self, units: Sequence[int]) -> int:
        """Return the number of weights, without biases, with so many units in each layer, all read by every head."""
        first = self.hidden[0].layer.weight
        below, total = first.shape[1], 0
        for layer, own in zip(self.hidden, units, strict=True):
            kernel = layer.layer.weight[0, 0].numel()
            inputs = below if layer is self.hidden[0] else below * layer.positions
            total += own * inputs * kernel
            below = own
        outputs = sum(head.out_features for head in self.heads.values())  # type: ignore[misc]
        return total + below * self.head_positions * outputs

    def get_extra_state(self) -> dict[str, Any]:
        """Return stamps, heads, and what a phase trains."""
        return shape_of(self)

    def set_extra_state(self, state: Any) -> None:
        """Take the shape of a state_dict, whose values are filled in after this."""
        grow_to(self, state)
