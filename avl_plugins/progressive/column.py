"""One column of a progressive network: a plain `nn.Sequential` cut at its affine layers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avl_plugins.progressive.adapters import CONVOLUTIONS, Laterals, Source
from avl_plugins.tasks.copies import refuse_lazy
from avl_plugins.tasks.network import MASK

__all__ = ["Column", "Stage"]

Tap = Callable[[int, Tensor], Tensor]


class Stage(nn.Module):
    """h_i = after(layer(h_{i-1}) + lateral(h_{i-1} of the earlier columns)).

    Attributes:
        layer: the affine layer.
        after: what follows it up to the next one: activation, pooling, normalisation, dropout, flatten.
        lateral: the adapter, or None.
    """

    def __init__(self, layer: nn.Module, after: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.layer = layer
        self.after = nn.Sequential(*after)
        self.lateral: nn.Module | None = None

    @property
    def maps(self) -> int:
        """Units or feature maps of h_i."""
        layer: Any = self.layer
        return layer.out_channels if type(layer) in CONVOLUTIONS else layer.out_features

    def forward(self, h: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Return h_i of this column, given h_{i-1} of this one and of the earlier ones."""
        z = self.layer(h)
        if self.lateral is not None:
            z = z + self.lateral(earlier)
        return self.after(z)


class Column(nn.Module):
    """A column: stages, and a linear head once it has a task.

    Args:
        layers: `Linear` and `Conv1d/2d/3d` with what stands before and between them.
        features: number of features that the head reads; None where the last affine layer is linear.

    Raises:
        TypeError: If it is no `nn.Sequential`, or holds a module that cannot be cut (a block with affine layers
            inside, a recurrent or transposed layer, a lazy one).
        ValueError: If it has no affine layer, `features` is needed, or it would change its input in place.

    Attributes:
        label: task label, None before it has one.
        classes: labels of the task's classes. The head has max(classes) + 1 outputs; those between are masked.
        frozen: whether it is kept as it is.
    """

    def __init__(self, layers: nn.Sequential, *, features: int | None = None) -> None:
        super().__init__()
        self.label: int | None = None
        self.classes: tuple[int, ...] = ()
        self.frozen = False
        before: list[nn.Module] = []
        stages: list[tuple[nn.Module, list[nn.Module]]] = []
        for module in _flat(layers):
            if isinstance(module, nn.Linear) or type(module) in CONVOLUTIONS:
                stages.append((module, []))
            else:
                (stages[-1][1] if stages else before).append(module)
        if not stages:
            raise ValueError("column: it needs at least one Linear or Conv layer")
        if any(getattr(module, "inplace", False) for part in before for module in part.modules()):
            raise ValueError(
                "column: a module before the first layer works in place, on the input that all columns share; make it "
                "with inplace=False"
            )
        self.before = nn.Sequential(*before)
        self.stages = nn.ModuleList(Stage(layer, after) for layer, after in stages)
        self.head: Stage | None = None
        last: Any = self.stages[-1]
        if features is None:
            if not isinstance(last.layer, nn.Linear):
                raise ValueError(
                    f"features: the column ends with a {type(last.layer).__name__}; pass the number of features after "
                    "its last module, which the output head reads"
                )
            features = last.maps
        self.features = features
        self.register_buffer("absent", None, persistent=False)

    @property
    def geometry(self) -> list[list[str]]:
        """What has to be the same in all columns: everything but the widths."""
        parts: list[Any] = [self.before, *((stage.layer, *stage.after) for stage in self._stages())]
        return [[_geometry(module) for module in part] for part in parts]

    def connect(self, earlier: Sequence["Column"], laterals: Laterals) -> None:
        """Give every stage but the first its lateral connection from the earlier columns."""
        if any(column.geometry != self.geometry for column in earlier):
            raise ValueError(
                "column: the columns must differ in their widths only, not in kinds of layers, kernels, strides, "
                f"pooling or activations; this one has {self.geometry}, the first one {earlier[0].geometry}"
            )
        for depth, stage in enumerate(self._stages()[1:], start=1):
            stage.lateral = self._lateral(earlier, depth, stage.layer, laterals)

    def add_head(self, label: int, classes: Sequence[int], earlier: Sequence["Column"], laterals: Laterals) -> None:
        """Give the column its task: a head with its lateral connection."""
        head = Stage(nn.Linear(self.features, max(classes) + 1))
        head.lateral = self._lateral(earlier, len(self.stages), head.layer, laterals)
        self.label, self.classes, self.head = label, tuple(classes), head
        absent = torch.tensor([c not in self.classes for c in range(max(classes) + 1)])
        self.absent = absent if absent.any() else None

    def forward(self, x: Tensor, earlier: Sequence[Sequence[Tensor]], tap: Tap | None = None) -> list[Tensor]:
        """Return h_1, ..., h_L, given the earlier columns'; `tap(depth, h)` may put another in place of each."""
        h, features = self.before(x), []
        for depth, stage in enumerate(self.stages):
            h = stage(h, [column[depth - 1] for column in earlier] if depth else ())
            if tap is not None:
                h = tap(depth, h)
            features.append(h)
        return features

    def logits(self, features: Sequence[Tensor], earlier: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return the head's outputs (B, max(classes) + 1)."""
        if self.head is None:
            raise ValueError("this column has no head yet: it gets one when its task is added")
        if features[-1].shape[-1] != self.features:
            raise ValueError(
                f"features: the column gives {features[-1].shape[-1]} features, and {self.features} were announced"
            )
        logits = self.head(features[-1], [column[-1] for column in earlier])
        absent: Any = self.absent
        return logits if absent is None else logits.masked_fill(absent, MASK)

    def freeze(self, frozen: bool = True) -> None:
        """Freeze the column: no gradients, evaluation mode; or make it trainable (the caller sets the mode)."""
        self.frozen = frozen
        for parameter in self.parameters():
            parameter.requires_grad_(not frozen)
            if frozen:
                parameter.grad = None
        if frozen:
            self.eval()

    def _stages(self) -> list[Any]:
        return list(self.stages)

    def _lateral(
        self, earlier: Sequence["Column"], depth: int, layer: nn.Module, laterals: Laterals
    ) -> nn.Module | None:
        """Make the lateral connection into `layer`, which reads what stage depth - 1 of this column gives."""
        sources = [column.source(depth, column.layer_at(depth)) for column in earlier]
        made = laterals.make(layer, self.source(depth, layer), sources)
        return None if made is None else made.to(next(self.parameters()))

    def layer_at(self, depth: int) -> Any:
        """Return the affine layer of a stage; None for the head's depth, whose layer differs from task to task."""
        return self._stages()[depth].layer if depth < len(self.stages) else None

    def source(self, depth: int, layer: Any) -> Source:
        """Describe h_{depth-1}, which `layer` of this column (None for the head) reads."""
        if type(layer) in CONVOLUTIONS:
            return Source(layer.in_channels)
        maps = self._stages()[depth - 1].maps
        width = self.features if layer is None else layer.in_features
        positions, rest = divmod(width, maps)
        if rest:  # not the maps in order, so there is no 1 x 1 convolution on them
            return Source(width)
        return Source(maps, positions)


def _flat(layers: Any) -> Iterator[nn.Module]:
    """Yield the modules of nested Sequentials in order, and refuse those that a column cannot be cut at."""
    if not isinstance(layers, nn.Sequential):
        raise TypeError(
            "column must be an nn.Sequential, not inside DataParallel or torch.compile, or a function that makes one, "
            f"got {type(layers).__name__}"
        )
    for module in layers:
        if isinstance(module, nn.Sequential):
            yield from _flat(module)
            continue
        refuse_lazy("column", module)
        affine = isinstance(module, nn.Linear) or type(module) in CONVOLUTIONS
        inside = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase))]
        if not affine and inside:
            raise TypeError(
                f"column: {type(module).__name__} cannot be cut into layers; a column is made of Linear and "
                "Conv1d/2d/3d with activations, pooling, normalisation, dropout and flatten between them"
            )
        yield module


def _geometry(module: Any) -> str:
    if type(module) in CONVOLUTIONS:
        parts = (module.kernel_size, module.stride, module.padding, module.dilation)
        return f"{type(module).__name__}{parts}"
    normalises = isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm))
    if normalises or next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
        return type(module).__name__  # they are as wide as their layer
    return repr(module)
