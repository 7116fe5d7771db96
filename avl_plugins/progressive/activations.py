"""What analyses of a trained network share: features map by map, their variance, and passes that change nothing.

A *map* is a unit of a linear layer or a feature map of a convolution, at all of its pixels, also where they have been
flattened for the next layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from avl_plugins.progressive.adapters import CONVOLUTIONS

if TYPE_CHECKING:
    from avl_plugins.progressive.network import ProgressiveNetwork

Place = tuple[int, int]
"""Depth i and column j of h_i^j, both from 0 on."""


def by_map(h: Tensor, stage: Any) -> Tensor:
    """Return the output h of a stage as (B, maps, positions).

    Flattened maps that have been mixed, so that they are no longer whole, are maps of one value each.
    """
    if h.dim() > 2:
        return h.flatten(2) if type(stage.layer) in CONVOLUTIONS else h.movedim(-1, 1).flatten(2)
    return h.unflatten(1, (stage.maps, -1)) if h.shape[1] % stage.maps == 0 else h.unsqueeze(2)


def over_maps(values: Tensor, h: Tensor, stage: Any) -> Tensor:
    """Return one value a map in a shape that broadcasts against the stage's output h."""
    if h.dim() > 2:
        return values.view(-1, *[1] * (h.dim() - 2)) if type(stage.layer) in CONVOLUTIONS else values
    return values.repeat_interleave(h.shape[1] // len(values))


class Moments:
    """Mean and variance of each map over samples and positions, added up batch by batch.

    Values are counted from the first one seen, so that a map that never changes has a variance of exactly 0.
    """

    def __init__(self) -> None:
        self.count = 0
        self.origin = self.sum = self.squares = torch.zeros(())

    def add(self, h: Tensor) -> None:
        """Take in values (B, maps, positions)."""
        h = h.detach().double()
        if self.count == 0:
            self.origin = h[:1, :, :1].clone()
        h = h - self.origin
        self.sum = self.sum.to(h) + h.sum((0, 2))
        self.squares = self.squares.to(h) + h.square().sum((0, 2))
        self.count += h.shape[0] * h.shape[2]

    def mean(self) -> Tensor:
        """Return the mean (maps,), float64."""
        return self.origin.flatten() + self.sum / self.count

    def variance(self) -> Tensor:
        """Return the variance (maps,), float64, of the values themselves (divided by their number)."""
        return ((self.squares - self.sum.square() / self.count) / self.count).clamp_min(0)


def check_network(network: Any, label: int) -> int:
    """Return the index of the column that serves a task.

    Raises:
        TypeError: The network is no `ProgressiveNetwork`.
        ValueError: It has no column for the task, or normalises by the statistics of the batch.
    """
    if not hasattr(network, "columns") or not hasattr(network, "forward_single_task"):
        raise TypeError(f"network must be a ProgressiveNetwork, got a {type(network).__name__}")
    if label not in network.labels:
        raise ValueError(f"label: there is no column for task {label}; the tasks so far are {network.labels}")
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"network: layer {name!r} ({type(module).__name__}) has no running statistics, so that a sample's "
                "features depend on its batch; build it with track_running_stats=True"
            )
    return network.labels.index(label)


def stages_of(network: ProgressiveNetwork, label: int) -> dict[Place, Any]:
    """Return the stages that a task can depend on: those of its own column and of the earlier ones."""
    columns: list[Any] = list(network.columns)[: network.labels.index(label) + 1]
    depths = range(len(columns[0].stages))
    return {(i, j): column.stages[i] for i in depths for j, column in enumerate(columns)}


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Evaluation mode; modes and torch's global random state are afterwards as they were."""
    modes = [(module, module.training) for module in network.modules()]
    devices = [p.device for p in network.parameters() if p.device.type == "cuda"]
    network.eval()
    try:
        with torch.random.fork_rng(devices[:1]):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def read_batches(batches: Iterable[Any], label: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield inputs and labels (None where there are none) of batches that are not empty, on a device.

    Raises:
        TypeError: A batch is no tensor x, (x, y), (x, y, ..., t) or mapping with "x", "y", "t".
        ValueError: Task labels t differ from `label`.
    """
    for batch in batches:
        if isinstance(batch, Tensor):
            x, y, t = batch, None, None
        elif isinstance(batch, Mapping) and "x" in batch:
            x, y, t = batch["x"], batch.get("y"), batch.get("t")
        elif isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor):
            x, y, t = batch[0], batch[1] if len(batch) > 1 else None, batch[-1] if len(batch) > 2 else None
        else:
            raise TypeError(f"batches must yield x, (x, y), (x, y, t) or mappings, got {type(batch).__name__}")
        if len(x) == 0:
            continue
        if t is not None and bool((torch.as_tensor(t) != label).any()):
            found = sorted(set(torch.as_tensor(t).flatten().tolist()))
            raise ValueError(
                f"batches: samples of the tasks {found} for label={label}; pass (x, y) to run them through it anyway"
            )
        yield x.to(device), None if y is None else torch.as_tensor(y).to(device)


def own_generator(generator: torch.Generator | None) -> torch.Generator:
    """Return the generator given, or a new one seeded like the global one, which is left alone.

    Raises:
        TypeError: It is something else.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, or None for a new one, got {generator!r}")
    return torch.Generator().manual_seed(torch.initial_seed()) if generator is None else generator
