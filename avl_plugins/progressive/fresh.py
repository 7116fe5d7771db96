"""Fresh columns: what a progressive network's argument `column` makes for each new task."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from avl_plugins.progressive.column import Column
from avl_plugins.tasks.arguments import check_callable, check_count
from avl_plugins.tasks.copies import copy_module, refuse_lazy

__all__ = ["ColumnMaker"]


class ColumnMaker:
    """Makes the columns: copies of one with new weights, or what a function of the index returns.

    Args:
        column: an `nn.Sequential`, a copy of which is the first column, or a function of the column's index.
        features: number of features that the head reads, where the last affine layer is a convolution, or a function.

    Raises:
        TypeError: If `column` is neither, or `features` no integer.
        ValueError: If `features` is below 1, or a module has parameters and no `reset_parameters()`, or one that does
            not reset the weight, which is computed.
    """

    def __init__(
        self, column: nn.Sequential | Callable[[int], nn.Sequential], features: int | Callable[[int], int] | None
    ) -> None:
        if not callable(features):
            check_count("features", features, none="the number of the last layer's units")
        check_callable("column", column, "of the column's index that returns an nn.Sequential, or one itself")
        self.features = features
        if isinstance(column, nn.Module):
            refuse_lazy("column", column)
        self.function: Callable[[int], Any] | None = None if isinstance(column, nn.Module) else column
        self.template: Any = copy_module(column) if isinstance(column, nn.Module) else None

    def __call__(self, index: int) -> Column:
        """Make column number `index`; with the first one it is found out whether others can be made."""
        features = self.features(index) if callable(self.features) else self.features
        check_count("features", features, none="the number of the last layer's units")
        if self.function is not None:
            return Column(self.function(index), features=features)
        layers = deepcopy(self.template)
        if index:
            for module in layers.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
        column = Column(layers, features=features)
        if index == 0:
            _check_resets(layers)
        return column


def _check_resets(layers: nn.Module) -> None:
    for name, module in layers.named_modules():
        has_own = next(module.parameters(recurse=False), None) is not None
        if has_own and not callable(getattr(module, "reset_parameters", None)):
            raise ValueError(
                f"column: {type(module).__name__} ({name}) has parameters and no reset_parameters(), so that it cannot "
                "be made anew for each task; pass a function index -> nn.Sequential instead"
            )
        if isinstance(getattr(module, "weight", None), Tensor) and "weight" not in (
            *module._parameters,
            *module._buffers,
        ):
            raise ValueError(
                f"column: {type(module).__name__} ({name}) computes its weight (weight_norm?), and reset_parameters() "
                "does not make it anew; pass a function index -> nn.Sequential instead"
            )
