"""Generated inputs: a generator that learns each task along with what it gave before."""

from __future__ import annotations

import logging
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from avl_plugins.checkpoint.resume import phase
from avl_plugins.dgr.data import Survey, try_generator
from avl_plugins.dgr.frozen import frozen_copy, move
from avl_plugins.dgr.generator import checked_samples, inside, range_of
from avl_plugins.dgr.sources import Sampler, Source
from avl_plugins.dgr.state import fitting
from avl_plugins.tasks.checks import experience_name

__all__ = ["Generated"]

log = logging.getLogger(__name__)


class Generated(Source):
    """Samples of a generator as it was after the latest task.

    Args:
        generator: the one that learns.

    Attributes:
        old: a copy of it from the end of the latest task, None before; it keeps the data range it had then.
        range_read: the generator's data range where data gave it; None where a user declared it, or before.
    """

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator
        self.old: Any = None
        self.range_read: tuple[float, float] | None = None

    def move(self, device: torch.device) -> None:
        """Move both generators."""
        for generator in (self.generator, self.old):
            move(generator, device)

    def look(self, found: Survey, name: str, device: torch.device) -> None:
        """Refuse inputs outside the range, if that was declared, or that do not fit to the generator."""
        bounds = self._range_with(found.low, found.high)
        if self.old is None:
            try_generator(self.generator, bounds, found.some.to(device))

    def learn(self, strategy: Any, x: Tensor, *, ratio: float, iterations: int, random: torch.Generator) -> None:
        """Train the generator on the task's inputs and samples of the one before, in the ratio, and copy it."""
        x = self._in_range(x, experience_name(strategy))
        n_real = max(1, round(ratio * self.generator.batch_size))
        n_old = self.generator.batch_size - n_real if self.old is not None else 0
        for iteration in phase(strategy, "dgr: generator", iterations=iterations):
            if iteration == 0:
                self.losses = {}
            real = x[torch.randint(len(x), (n_real,), generator=random)].to(strategy.device)
            replayed = self.sampler()(n_old, random).to(strategy.device) if n_old else None
            losses = self.generator.fit_batch(real, replayed, ratio if n_old else 1.0)
            for name, value in losses.items():
                self.losses.setdefault(name, []).append(float(value))
                if not isfinite(self.losses[name][-1]):
                    raise ValueError(
                        f"generator: its loss {name!r} is {float(value):g} in iteration {iteration} after "
                        f"{experience_name(strategy)}, its training has diverged; lower its learning rate"
                    )
        self.old = frozen_copy(self.generator)

    def sampler(self) -> Sampler:
        """Return the generator as it was, whose samples are checked."""
        return partial(checked_samples, self.old)

    def state_dict(self) -> dict[str, Any]:
        """Return both generators with their ranges, and the losses."""
        return {
            "generator": dict(self.generator.state_dict()),
            "old_generator": None if self.old is None else dict(self.old.state_dict()),
            "losses": {name: list(values) for name, values in self.losses.items()},
            "range_read": self.range_read,
            "old_range": None if self.old is None else self.old.data_range,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take both generators, also where their own states lack the range."""
        self.range_read = None if state["range_read"] is None else tuple(state["range_read"])  # type: ignore[assignment]
        self.losses = {name: list(values) for name, values in state["losses"].items()}
        with fitting("generator"):
            _fill(self.generator, state["generator"], self.range_read)
        self.old = None
        if state["old_generator"] is not None:
            with fitting("old_generator"):
                self.old = frozen_copy(self.generator)
                _fill(self.old, state["old_generator"], state["old_range"] or self.range_read)

    @property
    def _declared(self) -> bool:
        bounds = self.generator.data_range
        return bounds is not None and tuple(bounds) != self.range_read

    def _range_with(self, low: float, high: float) -> tuple[float, float]:
        return range_of(low, high, self.generator.data_range, declared=self._declared)

    def _in_range(self, x: Tensor, name: str) -> Tensor:
        """Return inputs in the range; one that nobody declared is read from them, or widened by them.

        Samples of the generator are stretched with its range until it has learnt on; those of the one before are not.
        Where transforms for evaluation are random, some of these inputs may be outside a declared range that all were
        in when they were looked at.
        """
        low, high = (float(value) for value in x.aminmax())
        before = self.generator.data_range
        if self._declared:
            if inside(low, high, before):
                return x
            log.warning("data_range: inputs from %g to %g in %s are cut off at the one declared", low, high, name)
            return x.clamp(*before)
        bounds = self._range_with(low, high)
        if before is not None and bounds != tuple(before):
            log.warning(
                "data_range: widened from (%g, %g), read from the data before, to (%g, %g) by those of %s; pass "
                "data_range= to the generator, the range of all data to come, to have one throughout",
                *before,
                *bounds,
                name,
            )
        self.generator.data_range = self.range_read = bounds
        return x


def _fill(generator: Any, state: Any, data_range: Any) -> None:
    generator.load_state_dict(state)
    if data_range is not None and generator.data_range != tuple(data_range):
        generator.data_range = tuple(data_range)
