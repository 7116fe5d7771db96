"""What goes into and comes out of a model's layers during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Call:
    """One call of a layer: what went in and what came out."""

    def __init__(self, args: tuple, output: object):
        self.lone_tensor = len(args) == 1 and isinstance(args[0], Tensor)
        self.input: Tensor = args[0].detach() if self.lone_tensor else torch.empty(0)
        self.version = self.input._version
        self.output: Tensor = output  # type: ignore[assignment]

    def fits(self, rows: int) -> bool:
        """Whether rows are samples, and the input is still what it was (no in-place change since)."""
        x, y = self.input, self.output
        return (
            self.lone_tensor
            and isinstance(y, Tensor)
            and y.requires_grad
            and x.ndim > 0
            and y.ndim > 1
            and len(x) == len(y) == rows
            and x._version == self.version
        )


@contextmanager
def calls_of(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Call]]]:
    """Record the calls of these layers during a forward pass."""
    calls: dict[str, list[Call]] = {}

    def recorder(name: str) -> Callable:
        def hook(layer: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
            calls.setdefault(name, []).append(Call(args if not kwargs else (), output))
            # The clone goes on through the model, so that an in-place activation leaves the recorded output alone.
            return output.clone() if isinstance(output, Tensor) else output

        return hook

    handles = [layer.register_forward_hook(recorder(n), with_kwargs=True) for n, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
