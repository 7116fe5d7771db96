"""A network that tasks share but for gains and biases of their own in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from avl_plugins.tasks.arguments import check_kind
from avl_plugins.tasks.labels import experience_labels, task_label
from avl_plugins.tasks.network import GrowingModule, by_task

__all__ = ["TaskGains"]

_AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class TaskGains(GrowingModule):
    """Layers with weights that all tasks share, and gains and biases for each task (arXiv:1612.00796, app. 4.2).

    Unit or feature map i of a linear or convolutional layer gives, in task c,

        y_i = (sum_j W_ij x_j + b_i^c) g_i^c,

    b = 0 and g = 1 in the beginning. A task gets its own when it is first trained on; in evaluation, a task that has
    not been is given b = 0 and g = 1, and the network does not change. The biases of the layers given are not used.

    Args:
        layers: an `nn.Sequential` of linear and convolutional layers and others without parameters. Its weights are
            taken over, and its biases are taken away.

    Shapes:
        input (B, ...) and a task label, an int or (B,); output what the layers give.

    Raises:
        TypeError: `layers` is no `nn.Sequential`.
        ValueError: there is no linear or convolutional layer, or another one with parameters.

    Attributes:
        labels: task labels in the order in which they were learnt.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        check_kind("layers", layers, nn.Sequential, "an nn.Sequential")
        for number, layer in enumerate(layers):
            if not isinstance(layer, _AFFINE) and any(True for _ in layer.parameters()):
                raise ValueError(
                    f"layers: layer {number} is a {type(layer).__name__}, whose parameters would be neither shared nor "
                    "the task's; use linear and convolutional layers"
                )
        if not any(isinstance(layer, _AFFINE) for layer in layers):
            raise ValueError("layers: expected a linear or convolutional layer, found none")
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._widths: dict[str, int] = {}
        for number, layer in enumerate(layers):
            if isinstance(layer, _AFFINE):
                layer.bias = None
                self._widths[str(number)] = layer.weight.shape[0]
        self.gains = nn.ModuleDict()
        self.biases = nn.ModuleDict()

    @property
    def labels(self) -> list[int]:
        """Task labels in the order in which they were learnt."""
        return [int(label) for label in self.gains]

    def add_task(self, label: int) -> None:
        """Give a task its gains and biases; nothing where it has them."""
        label = task_label(label)
        if label in self.labels:
            return
        like = next(self.layers.parameters())
        for kept, value in ((self.gains, 1.0), (self.biases, 0.0)):
            own = {name: nn.Parameter(like.new_full((width,), value)) for name, width in self._widths.items()}
            kept[str(label)] = nn.ParameterDict(own)
        self.known_train_tasks_labels = set(self.labels)

    def adaptation(self, experience: Any) -> None:
        """In training, give a new task its gains and biases; in evaluation, change nothing."""
        if self.training:
            for label in experience_labels(experience):
                self.add_task(label)

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Return the outputs for a task."""
        known = str(task_label) in self.gains
        for number, layer in enumerate(self.layers):  # `named_children` would leave out a layer that comes again
            x, name = layer(x), str(number)
            if known and name in self._widths:
                gain: Any = self.gains[str(task_label)]
                bias: Any = self.biases[str(task_label)]
                shape = (-1, *[1] * (x.ndim - 2))
                x = (x + bias[name].view(shape)) * gain[name].view(shape)
        return x

    def forward(self, x: Tensor, task_labels: Any) -> Tensor:
        """Return the outputs for a task label, or for one label per sample."""
        return by_task(self.forward_single_task, x, task_labels)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the tasks."""
        return {"labels": self.labels}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Add the tasks of a state_dict, which are filled after this.

        Raises:
            ValueError: the network has gains for other tasks, or it is no such state.
        """
        if not isinstance(state, Mapping) or not isinstance(state.get("labels"), list):
            raise ValueError(f"the extra state of TaskGains must have labels, a list of task labels, got {state!r}")
        if own := [label for label in self.labels if label not in state["labels"]]:
            raise ValueError(f"the network has gains for the tasks {own}, which the state does not have")
        for label in state["labels"]:
            self.add_task(label)
