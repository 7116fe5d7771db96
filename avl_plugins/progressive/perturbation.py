"""Average Perturbation Sensitivity: how much noise a task bears in which column (Rusu et al. 2016, appendix A).

Gaussian noise of variance sigma^2 var(h_i^j(m)) is added to every activation of depth i in column j, a new draw at
every forward pass, and sigma_i^j is the level at which the score has fallen by half. With the precision
Lambda_i^j = 1 / (sigma_i^j)^2,

    APS(i, j) = Lambda_i^j / sum_j Lambda_i^j.

It measures what the Fisher approximates (sensitivity.py) and is far slower: some hundred passes over the data for
each layer and column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from avl_plugins.progressive.activations import (
    Moments,
    Place,
    by_map,
    check_network,
    over_maps,
    own_generator,
    read_batches,
    stages_of,
    unchanged,
)
from avl_plugins.progressive.sensitivity import column_shares
from avl_plugins.tasks.arguments import check_count, check_number

if TYPE_CHECKING:
    from avl_plugins.progressive.network import ProgressiveNetwork

Forward = Callable[[Tensor], Tensor]
"""Inputs (B, ...) -> logits (B, classes) of one task."""
Evaluate = Callable[[Forward], float]
"""Score of a task's forward pass, at which 0 is that of an untrained one."""

_SMALLEST = 2.0**-40


@dataclass(frozen=True, eq=False)
class PerturbationSensitivity:
    """Average Perturbation Sensitivity of one task. Depths i and columns j are counted from 0.

    Attributes:
        label: the task.
        score: without noise.
        noise: (sigma_i^j)^2, tensor (depths, columns), float64; infinite where no noise takes the score down.
        means: mean activations of the maps over the data, by (i, j): tensors (maps,), float64.

    Example:
        >>> import torch
        >>> from avl_plugins.progressive import PerturbationSensitivity
        >>> noise = torch.tensor([[1.0, 0.25]], dtype=torch.float64)
        >>> PerturbationSensitivity(label=1, score=0.4, noise=noise, means={}).layers
        tensor([[0.2000, 0.8000]], dtype=torch.float64)
    """

    label: int
    score: float
    noise: Tensor
    means: Mapping[Place, Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of depths and columns."""
        depths, columns = self.noise.shape
        return depths, columns

    @property
    def precision(self) -> Tensor:
        """Lambda_i^j = 1 / (sigma_i^j)^2: tensor (depths, columns)."""
        return 1 / self.noise

    @cached_property
    def layers(self) -> Tensor:
        """APS(i, j): tensor (depths, columns). A depth where no column matters has zeros only."""
        total = self.precision.sum(1, keepdim=True)
        return (self.precision / total).where(total > 0, 0.0)

    @cached_property
    def columns(self) -> Tensor:
        """Mean of APS(i, j) over depths: tensor (columns,)."""
        return column_shares(self.layers)


def average_perturbation_sensitivity(
    network: ProgressiveNetwork,
    data: Iterable[Any] | Evaluate,
    label: int,
    *,
    drop: float = 0.5,
    repeats: int = 10,
    tolerance: float = 0.02,
    largest: float = 2.0**20,
    generator: torch.Generator | None = None,
) -> PerturbationSensitivity:
    """Return the Average Perturbation Sensitivity of a task to each depth of its own column and of the earlier ones.

    The noise level is found by bisection. All levels of one (i, j) use the same draws, scaled: the score is then a
    function of the level, and is not compared across different noise. The network runs in evaluation mode, and
    its modes, gradients and statistics and the global random state stay as they are.

    Deviations: the paper's score is a game's over 10 episodes; here it is the accuracy above chance over 10 passes
    through the data, or what `data` returns. Variances are those of the activations without noise.

    Args:
        network: a trained network.
        data: yields (x, y), (x, y, ..., t) or mappings with "x" and "y", the task's, which are kept and gone through
            many times; or a function that is given the task's forward pass, x -> logits, and returns a score, 0 being
            that of an untrained network (an accuracy minus chance, a return minus a random policy's).
        label: the task.
        drop: share of the score that is lost at the level looked for; the paper's 0.5.
        repeats: evaluations that are averaged at each level.
        tolerance: levels (sigma^2) are found to this relative precision.
        largest: largest sigma^2 tried, in variances of the activation. Where the score holds, Lambda is 0.
        generator: for the noise, which is drawn on its device. None makes a CPU one from `torch.initial_seed()`.

    Returns:
        The sensitivities, with noise levels and precisions.

    Raises:
        ValueError: If an argument is out of range, there is no column for `label`, no sample, samples of another task,
            or a score without noise that is not positive; if the score is low at any level of noise.
        TypeError: If an argument or a batch is of another kind.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from avl_plugins.progressive import ProgressiveNetwork, average_perturbation_sensitivity
        >>> network = ProgressiveNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), seed=0)
        >>> for label in (0, 1):
        ...     _ = network.add_task(label, classes=2)
        >>> x = torch.randn(20, 4)
        >>> y = network.eval()(x, 1).argmax(1)  # what it says itself, as it is not trained here
        >>> sensitivity = average_perturbation_sensitivity(network, [(x, y)], label=1, repeats=2)
        >>> sensitivity.layers.shape
        torch.Size([1, 2])
    """
    check_number("drop", drop, low=0, high=1, open_low=True, open_high=True)
    check_count("repeats", repeats)
    check_number("tolerance", tolerance, low=0, open_low=True)
    check_number("largest", largest, low=0, open_low=True)
    check_network(network, label)
    generator = own_generator(generator)
    evaluate, random = (data, True) if callable(data) else (accuracy_above_chance(network, data, label), False)
    stages = stages_of(network, label)
    noise = torch.full((max(i for i, _ in stages) + 1, max(j for _, j in stages) + 1), torch.inf, dtype=torch.float64)
    with unchanged(network), torch.no_grad():
        moments = {place: Moments() for place in stages}

        def observe(column: int, depth: int, h: Tensor) -> Tensor:
            moments[depth, column].add(by_map(h, stages[depth, column]))
            return h

        runs = repeats if random else 1
        clean = [float(evaluate(lambda x: network.forward_single_task(x, label, observe))) for _ in range(runs)]
        score = sum(clean) / runs
        if all(m.count == 0 for m in moments.values()):
            raise ValueError("data: the function has not called the forward pass that it was given")
        if not (isfinite(score) and score > 0):
            raise ValueError(
                f"data: the score of task {label} without noise is {score:g}, which cannot fall; train it first, or "
                "subtract chance from what the function returns"
            )
        for (depth, column), stage in stages.items():
            if moments[depth, column].count == 0:
                continue  # nothing leads from this column, so that it has not been run
            std = moments[depth, column].variance().sqrt()
            perturbed = _Perturbed(network, label, (depth, column), stage, std, generator)
            state = generator.get_state()

            def score_at(level: float, perturbed: _Perturbed = perturbed, state: Tensor = state) -> float:
                generator.set_state(state)
                perturbed.sigma = sqrt(level)
                return sum(float(evaluate(perturbed)) for _ in range(repeats)) / repeats

            noise[depth, column] = _level(score_at, (1 - drop) * score, largest, tolerance)
    means = {place: m.mean().cpu() for place, m in moments.items() if m.count}
    return PerturbationSensitivity(label, score, noise, means)


def accuracy_above_chance(network: ProgressiveNetwork, batches: Iterable[Any], label: int) -> Evaluate:
    """Return a function from the task's forward pass to its accuracy on the batches, minus 1 / classes.

    Raises:
        ValueError: If there is no sample, or no labels with them.
    """
    device = next(network.parameters()).device
    kept = list(read_batches(batches, label, device))
    if not kept:
        raise ValueError("batches is empty: an accuracy needs at least one sample")
    pairs = [(x, y) for x, y in kept if y is not None]
    if len(pairs) < len(kept):
        raise ValueError("batches: an accuracy needs labels y; yield (x, y), or pass a function that returns a score")
    column: Any = network.columns[network.labels.index(label)]
    chance = 1 / len(column.classes)

    def evaluate(forward: Forward) -> float:
        right = sum(int((forward(x).argmax(1) == y).sum()) for x, y in pairs)
        return right / sum(len(x) for x, _ in pairs) - chance

    return evaluate


class _Perturbed:
    """A task's forward pass with noise on one depth of one column."""

    def __init__(
        self, network: Any, label: int, place: Place, stage: Any, std: Tensor, generator: torch.Generator
    ) -> None:
        self.network, self.label, self.place, self.stage, self.std = network, label, place, stage, std
        self.generator = generator
        self.sigma = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.network.forward_single_task(x, self.label, self._tap)

    def _tap(self, column: int, depth: int, h: Tensor) -> Tensor:
        if (depth, column) != self.place:
            return h
        z = torch.randn(h.shape, generator=self.generator, dtype=h.dtype, device=self.generator.device)
        return h + z.to(h.device) * over_maps(self.sigma * self.std.to(h), h, self.stage)


def _level(score_at: Callable[[float], float], target: float, largest: float, tolerance: float) -> float:
    """Return the smallest level found at which the score is not above the target; infinity where there is none."""
    low = high = min(1.0, largest)
    if score_at(high) > target:
        while score_at(high := min(16 * low, largest)) > target:
            if high == largest:
                return torch.inf
            low = high
    else:
        while score_at(low := high / 16) <= target:
            high = low
            if low < _SMALLEST:
                raise ValueError(
                    f"data: the score is below {target:g} at any level of noise; it varies too much by itself, so "
                    "pass a function that averages more, or larger repeats"
                )
    while high / low > 1 + tolerance:
        middle = sqrt(low * high)
        if score_at(middle) > target:
            low = middle
        else:
            high = middle
    return sqrt(low * high)
