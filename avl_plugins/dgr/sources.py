"""Where replayed inputs come from in the paper's comparisons: exact replay and noise."""

from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["Memory", "Noise", "Replay"]

Replay = Literal["generated", "exact", "noise"]


class Memory:
    """Real inputs of past experiences, drawn uniformly: the paper's exact replay (ER), its perfect generator."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Keep the inputs of an experience."""
        self.parts.append(x.detach().cpu())

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
        return {"parts": list(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the inputs."""
        self.parts = list(state["parts"])


class Noise:
    """Gaussian inputs with mean and standard deviation of the data, over all values: the paper's noise replay.

    The paper says Gaussian, not with which moments; those of the first experience are used.
    """

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.mean = self.std = 0.0

    def fit(self, x: Tensor) -> None:
        """Take shape and moments of the data."""
        self.shape = tuple(x.shape[1:])
        self.std, self.mean = (float(v) for v in torch.std_mean(x.float()))

    def __call__(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Return n inputs of noise."""
        return torch.randn(n, *self.shape, generator=generator) * self.std + self.mean

    def state_dict(self) -> dict[str, Any]:
        """Return shape and moments."""
        return {"shape": list(self.shape), "mean": self.mean, "std": self.std}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take shape and moments."""
        self.shape, self.mean, self.std = tuple(state["shape"]), state["mean"], state["std"]
