"""Average Fisher Sensitivity: which features of which column a task relies on (Rusu et al. 2016, sec. 3).

    F_i^j(m, m) = E_x E_{y ~ p(y|x)} [ (d log p(y | x) / d h_i^j(m))^2 ]

is the diagonal of the Fisher information of the task's outputs with respect to the activations h of depth i in column
j, each *normalised*, that is, divided by its standard deviation over the data. In feature maps the squares are summed
over the pixels. It says how fast the outputs change (in Kullback-Leibler divergence, to second order) when noise with
a variance in proportion to the activation's own is added to h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from avl_plugins.progressive.activations import (
    Moments,
    Place,
    by_map,
    check_network,
    own_generator,
    read_batches,
    stages_of,
    unchanged,
)
from avl_plugins.tasks.arguments import check_callable, check_choice, check_count

if TYPE_CHECKING:
    from avl_plugins.progressive.network import ProgressiveNetwork

Normalise = Literal["layer", "map"]
"""What the Fisher of a map is divided by.

`"layer"`: the Fisher of the whole depth, all maps of all columns. AFS(i, j) then is the share of column j in depth i,
and these shares sum to 1. Columns may differ in width.
`"map"`: the sum over columns of the Fisher of the map of the same number, the paper's formula as it is printed. It
compares maps that have nothing to do with each other, AFS(i, j) sums to the number of maps over the columns, and all
columns need as many.
"""


@dataclass(frozen=True, eq=False)
class FisherSensitivity:
    """Average Fisher Sensitivity of one task. Depths i, columns j and maps m are counted from 0.

    Attributes:
        label: the task.
        normalise: see `Normalise`.
        fisher: F_i^j(m, m) by (i, j): tensors (maps,), float64.
        means: mean activations of the maps over the data, likewise.

    Example:
        >>> import torch
        >>> from avl_plugins.progressive import FisherSensitivity
        >>> fisher = {(0, 0): torch.tensor([1.0, 0.0]), (0, 1): torch.tensor([2.0, 1.0])}
        >>> means = {place: torch.zeros(2) for place in fisher}
        >>> FisherSensitivity(label=1, normalise="layer", fisher=fisher, means=means).layers
        tensor([[0.2500, 0.7500]], dtype=torch.float64)
    """

    label: int
    normalise: Normalise
    fisher: Mapping[Place, Tensor]
    means: Mapping[Place, Tensor]

    def __post_init__(self) -> None:
        if self.normalise == "map":
            _check_widths(self.fisher)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of depths and columns."""
        depths, columns = zip(*self.fisher, strict=True)
        return max(depths) + 1, max(columns) + 1

    @cached_property
    def maps(self) -> dict[Place, Tensor]:
        """AFS(i, j, m) by (i, j): tensors (maps,). It is 0 where the Fisher it is divided by is 0."""
        found: dict[Place, Tensor] = {}
        for i in range(self.shape[0]):
            row = [self.fisher[i, j] for j in range(self.shape[1])]
            total = torch.stack(row).sum(0) if self.normalise == "map" else torch.cat(row).sum()
            found |= {(i, j): (f / total).where(total > 0, 0.0) for j, f in enumerate(row)}
        return found

    @cached_property
    def layers(self) -> Tensor:
        """AFS(i, j) = sum_m AFS(i, j, m): tensor (depths, columns)."""
        depths, columns = self.shape
        return torch.tensor(
            [[float(self.maps[i, j].sum()) for j in range(columns)] for i in range(depths)], dtype=torch.float64
        )

    @cached_property
    def columns(self) -> Tensor:
        """Mean over depths of the share AFS(i, j) / sum_j AFS(i, j): tensor (columns,)."""
        return column_shares(self.layers)


def average_fisher_sensitivity(
    network: ProgressiveNetwork,
    batches: Iterable[Any],
    label: int,
    *,
    labels: Literal["exact", "sampled"] = "exact",
    normalise: Normalise = "layer",
    logits: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> FisherSensitivity:
    """Return the Average Fisher Sensitivity of a task to every map of its own column and of the earlier ones.

    The derivative is the total one, through all connections by which h_i^j acts on the task's outputs, its own
    column's later layers included. The network runs in evaluation mode, and its modes, gradients and statistics
    and the global random state stay as they are. The result does not depend on the batch size.

    Deviations: the paper's expectation over states and actions is one over inputs and the network's own p(y | x). Its
    footnote on the normalisation is lost; here each unit, or feature map over all its pixels, has one standard
    deviation.

    Args:
        network: a trained network.
        batches: yields x, (x, y), (x, y, ..., t) or mappings with "x": the task's data. y is not used.
        label: the task.
        labels: "exact": the expectation over y, a backward pass per class. "sampled": one y per sample, drawn from
            p(y | x), a single backward pass.
        normalise: "layer" or "map", see `Normalise`.
        logits: function of the task's outputs (B, K) that returns the logits of p(y | x), where not all of them are: an
            actor-critic's last output is a value, `lambda outputs: outputs[:, :-1]`.
        generator: a CPU generator for sampled labels. None makes a new one from `torch.initial_seed()`.

    Returns:
        The sensitivities. A map without variance has none, and neither has one that the outputs do not depend on.

    Raises:
        ValueError: If an argument is out of range, there is no column for `label`, no sample, samples of another task,
            columns of different width with normalise="map", or something is not finite.
        TypeError: If an argument or a batch is of another kind.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from avl_plugins.progressive import ProgressiveNetwork, average_fisher_sensitivity
        >>> network = ProgressiveNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), seed=0)
        >>> for label in (0, 1):
        ...     _ = network.add_task(label, classes=2)
        >>> x = torch.randn(20, 4)
        >>> sensitivity = average_fisher_sensitivity(network, [x], label=1)
        >>> sensitivity.layers.shape  # of a depth, the shares of the columns
        torch.Size([1, 2])
        >>> torch.allclose(sensitivity.layers.sum(1), torch.ones(1, dtype=torch.float64))
        True
    """
    check_choice("labels", labels, ("exact", "sampled"))
    check_choice("normalise", normalise, get_args(Normalise))
    check_callable("logits", logits, "outputs -> logits", none="all of them")
    check_network(network, label)
    generator = own_generator(generator)
    stages = stages_of(network, label)
    moments = {place: Moments() for place in stages}
    squares = {place: torch.zeros((), dtype=torch.float64) for place in stages}
    count = 0
    with unchanged(network), torch.enable_grad():
        for x, _ in read_batches(batches, label, next(network.parameters()).device):
            leaves: dict[Place, Tensor] = {}

            def tap(column: int, depth: int, h: Tensor, leaves: dict[Place, Tensor] = leaves) -> Tensor:
                moments[depth, column].add(by_map(h, stages[depth, column]))
                leaves[depth, column] = torch.zeros_like(h, requires_grad=True)
                return h + leaves[depth, column]

            outputs = network.forward_single_task(x, label, tap)
            z = outputs if logits is None else logits(outputs)
            if normalise == "map" and count == 0:
                _check_widths({place: m.sum for place, m in moments.items() if m.count})
            for score in _scores(z.detach(), labels, generator):
                grads = torch.autograd.grad(z, list(leaves.values()), score, retain_graph=True, allow_unused=True)
                for place, grad in zip(leaves, grads, strict=True):
                    if grad is not None:
                        squared = by_map(grad, stages[place]).double().square().sum((0, 2))
                        squares[place] = squares[place].to(squared) + squared
            count += len(x)
    if count == 0:
        raise ValueError("batches is empty: a sensitivity needs at least one sample")
    fisher, means = {}, {}
    for place, stage in stages.items():
        if moments[place].count == 0:  # nothing leads from this column, so that it has not been run
            fisher[place] = means[place] = torch.zeros(stage.maps, dtype=torch.float64)
            continue
        fisher[place] = (moments[place].variance() * squares[place] / count).cpu()
        means[place] = moments[place].mean().cpu()
        if not fisher[place].isfinite().all():
            raise ValueError(
                f"the Fisher at depth {place[0]} of column {place[1]} is not finite: activations or gradients "
                "overflow or are NaN; check the parameters and the inputs"
            )
    return FisherSensitivity(label, normalise, fisher, means)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """AFS of the maps of one depth, largest first (appendix B of the paper).

    Attributes:
        columns: one tensor (maps,) for each column; the last one is the task's own.
        source: all maps of the earlier columns together.
    """

    columns: tuple[Tensor, ...]
    source: Tensor


def afs_spectrum(sensitivity: FisherSensitivity, depth: int) -> Spectrum:
    """Return the sorted sensitivities of the maps of a depth, by column and of all earlier columns together.

    In the paper the spectrum over source maps gets sparser as columns are added, and the newest column's area smaller;
    `effective_maps` says it in a number.

    Raises:
        ValueError: If there is no such depth.
        TypeError: If it is no integer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from avl_plugins.progressive import ProgressiveNetwork, afs_spectrum, average_fisher_sensitivity
        >>> network = ProgressiveNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), seed=0)
        >>> for label in (0, 1):
        ...     _ = network.add_task(label, classes=2)
        >>> x = torch.randn(20, 4)
        >>> spectrum = afs_spectrum(average_fisher_sensitivity(network, [x], label=1), depth=0)
        >>> len(spectrum.source), [len(column) for column in spectrum.columns]
        (8, [8, 8])
    """
    depths, columns = sensitivity.shape
    check_count("depth", depth, low=0, high=depths - 1)
    maps = [sensitivity.maps[depth, j] for j in range(columns)]
    source = torch.cat([*maps[:-1], maps[0][:0]])
    return Spectrum(tuple(m.sort(descending=True).values for m in maps), source.sort(descending=True).values)


def effective_maps(spectrum: Tensor) -> float:
    """Return (sum_m a_m)^2 / sum_m a_m^2: n for n equal sensitivities and zeros, 0 where there are only zeros.

    Example:
        >>> import torch
        >>> from avl_plugins.progressive import effective_maps
        >>> effective_maps(torch.tensor([0.5, 0.5, 0.0, 0.0]))
        2.0
    """
    squares = float(spectrum.square().sum())
    return float(spectrum.sum()) ** 2 / squares if squares > 0 else 0.0


def column_shares(layers: Tensor) -> Tensor:
    """Return the mean over depths of each column's share of the depth; a depth of zeros has no shares."""
    totals = layers.sum(1, keepdim=True)
    return (layers / totals).where(totals > 0, 0.0).mean(0)


def _scores(z: Tensor, labels: str, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield g_c, shaped as the logits, with E_y[(d log p(y | x) / d h)^2] = sum_c (J^T g_c)^2, J = dz / dh."""
    p = z.softmax(1)
    if labels == "sampled":
        cdf = p.double().cumsum(1)
        u = torch.rand(len(z), 1, generator=generator, dtype=torch.float64).to(z.device) * cdf[:, -1:]
        y = torch.searchsorted(cdf, u, right=True).clamp_max(z.shape[1] - 1)
        yield torch.zeros_like(p).scatter_(1, y, 1.0) - p
        return
    for k in p.amax(0).nonzero().flatten().tolist():  # a class that the task does not have costs nothing
        score = -p
        score[:, k] += 1
        yield score * p[:, k : k + 1].sqrt()


def _check_widths(values: Mapping[Place, Tensor]) -> None:
    for i in sorted({depth for depth, _ in values}):
        widths = [len(v) for (depth, _), v in sorted(values.items()) if depth == i]
        if len(set(widths)) > 1:
            raise ValueError(
                f"normalise: 'map' compares maps of the same number, and at depth {i} the columns have {widths} maps; "
                "use normalise='layer'"
            )
