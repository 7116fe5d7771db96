"""Where replayed inputs come from, in the paper's comparisons too: exact replay and noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from avl_plugins.dgr.data import Survey
from avl_plugins.dgr.state import fitting

__all__ = ["Memory", "Noise", "Replay", "Sampler", "Source"]

Replay = Literal["generated", "exact", "noise"]
Sampler = Callable[[int, torch.Generator | None], Tensor]
"""n, generator -> n inputs (n, *shape)."""


class Source:
    """What is known of past inputs: it learns those of each task, and gives some of all.

    Attributes:
        generator: what is trained; None if nothing is.
        losses: of its latest training, lists by name.
    """

    generator: Any = None
    losses: dict[str, list[float]]

    def __init__(self) -> None:
        self.losses = {}

    def move(self, device: torch.device) -> None:
        """Move to a device what computes."""

    def look(self, found: Survey, name: str, device: torch.device) -> None:
        """Look at the inputs of a task, before a solver is trained on them, and refuse what could not be replayed."""

    def learn(self, strategy: Any, x: Tensor, *, ratio: float, iterations: int, random: torch.Generator) -> None:
        """Learn the inputs of a task that has ended.

        Args:
            strategy: in `after_training_exp`.
            x: the inputs, (N, *shape).
            ratio: weight of the task among those so far.
            iterations: of a training, where there is one.
            random: where random numbers come from.
        """
        raise NotImplementedError

    def sampler(self) -> Sampler:
        """Return what gives inputs of the tasks so far."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return entries of the plugin's state, as plain values."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take these entries of a state that has all."""
        raise NotImplementedError


class Memory(Source):
    """Real inputs of past tasks, drawn uniformly: the paper's exact replay (ER), its perfect generator."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Tensor] = []

    def learn(self, strategy: Any, x: Tensor, *, ratio: float, iterations: int, random: torch.Generator) -> None:
        """Keep the inputs."""
        self.parts.append(x.detach().cpu())

    def sampler(self) -> Sampler:
        """Return the memory."""
        return self

    def __call__(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Return n inputs, drawn with replacement from all."""
        sizes = torch.tensor([len(part) for part in self.parts])
        rows = torch.randint(int(sizes.sum()), (n,), generator=generator)
        ends = sizes.cumsum(0)
        which = torch.searchsorted(ends, rows, right=True)
        out = self.parts[0].new_empty((n, *self.parts[0].shape[1:]))
        for index, part in enumerate(self.parts):
            here = which == index
            out[here] = part[rows[here] - (ends[index] - sizes[index])]
        return out

    def state_dict(self) -> dict[str, Any]:
        """Return the inputs."""
        return {"source": {"parts": list(self.parts)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the inputs."""
        with fitting("source"):
            parts = list(state["source"]["parts"])
            if not all(isinstance(part, Tensor) for part in parts):
                raise ValueError("parts must be tensors, the inputs of a task each")
            self.parts = parts


class Noise(Source):
    """Gaussian inputs with mean and standard deviation of the data, over all values: the paper's noise replay.

    The paper says Gaussian, not with which moments; those of the first task are used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shape: tuple[int, ...] | None = None
        self.mean = self.std = 0.0
        self.dtype = torch.float32

    def look(self, found: Survey, name: str, device: torch.device) -> None:
        """Refuse integers."""
        if not found.some.is_floating_point():
            raise ValueError(f"replay must be 'generated' or 'exact' for inputs of {found.some.dtype}, got 'noise'")

    def learn(self, strategy: Any, x: Tensor, *, ratio: float, iterations: int, random: torch.Generator) -> None:
        """Take shape, dtype and moments of the first inputs."""
        if self.shape is None:
            self.shape, self.dtype = tuple(x.shape[1:]), x.dtype
            self.std, self.mean = (float(v) for v in torch.std_mean(x.float()))

    def sampler(self) -> Sampler:
        """Return the noise."""
        return self

    def __call__(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Return n inputs of noise."""
        return (torch.randn(n, *(self.shape or ()), generator=generator) * self.std + self.mean).to(self.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return shape, dtype and moments."""
        shape, dtype = list(self.shape or ()), str(self.dtype).removeprefix("torch.")
        return {"source": {"shape": shape, "mean": self.mean, "std": self.std, "dtype": dtype}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take shape, dtype and moments."""
        with fitting("source"):
            own = {"dtype": "float32", **state["source"]}
            self.shape = tuple(own["shape"]) if state["tasks"] else None  # there is none before the first task
            self.mean, self.std, self.dtype = float(own["mean"]), float(own["std"]), getattr(torch, own["dtype"])
