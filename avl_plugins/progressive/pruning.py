"""Pruning lateral connections by sensitivity.

Rusu et al. (2016, appendix B) see the sensitivities of source maps get sparser as columns are added, and propose to
prune lateral connections, whose number is quadratic in that of the columns; they run no experiment. Here a new column's
laterals no longer read the maps of earlier columns that its task is least sensitive to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from avl_plugins.progressive.activations import Place, check_network, unchanged
from avl_plugins.progressive.adapters import MLPAdapter
from avl_plugins.progressive.perturbation import Evaluate, PerturbationSensitivity, accuracy_above_chance
from avl_plugins.progressive.sensitivity import FisherSensitivity
from avl_plugins.tasks.arguments import check_choice, check_number
from avl_plugins.tasks.copies import copy_module

if TYPE_CHECKING:
    from avl_plugins.progressive.network import ProgressiveNetwork

Sensitivity = FisherSensitivity | PerturbationSensitivity | Mapping[Place, Tensor]
"""By (depth, column) a value for each map. `PerturbationSensitivity` has the same one for all maps of a column."""


@dataclass(frozen=True, eq=False)
class Pruned:
    """What `prune_laterals` did.

    Attributes:
        network: a copy of the network, pruned.
        kept: number of lateral parameters of the task's column that are left.
        total: number of those before.
        maps: by (depth, column): which maps of the earlier columns are still read, bool (maps,).
    """

    network: ProgressiveNetwork
    kept: int
    total: int
    maps: dict[Place, Tensor]


@dataclass(frozen=True)
class PruningPoint:
    """A point of a pruning curve: share of source maps kept, lateral parameters kept and in all, score."""

    keep: float
    kept: int
    total: int
    score: float


def prune_laterals(
    network: ProgressiveNetwork,
    label: int,
    sensitivity: Sensitivity,
    *,
    keep: float,
    across: Literal["depth", "network"] = "depth",
) -> Pruned:
    """Return a copy of the network in which one task's laterals read only the most sensitive maps of earlier columns.

    In the copy, a map that is no longer read is replaced by its mean over the data. The weights that read it (a column
    of V, or of U with linear adapters) are zero, what they gave for the mean is in the bias of V, or of the
    layer, and they do not count as kept; neither does the alpha of an earlier column of which nothing is read. Where no
    map of a depth is kept, the adapter is removed, and what it still gave is in the bias of its layer. Layers without
    bias get one. At the zero-padded borders of a convolution a constant in its bias is not quite that in its input.
    All other columns, and what the network gives for earlier tasks, are the same bits. Tasks after this one read its
    changed features. The network itself stays as it is.

    Args:
        network: a trained network.
        label: the task whose laterals are pruned, not the first one.
        sensitivity: of this task: an `average_fisher_sensitivity` or `average_perturbation_sensitivity`, or any
            values by (depth, column), tensors (maps,), for which means are taken to be 0.
        keep: share of the earlier columns' maps that are kept, 0 to 1, rounded to whole maps.
        across: "depth": this share of each depth's maps, by AFS(i, j, m). "network": this share of all maps of all
            depths, for a `FisherSensitivity` by the Fisher itself, which compares across depths.

    Raises:
        ValueError: If an argument is out of range, `label` has no laterals, or the sensitivity is that of another task
            or lacks a value.
        TypeError: If an argument is of another kind.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from avl_plugins.progressive import ProgressiveNetwork, average_fisher_sensitivity, prune_laterals
        >>> network = ProgressiveNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), seed=0)
        >>> for label in (0, 1):
        ...     _ = network.add_task(label, classes=2)
        >>> x = torch.randn(20, 4)
        >>> sensitivity = average_fisher_sensitivity(network, [x], label=1)
        >>> pruned = prune_laterals(network, 1, sensitivity, keep=0.5)
        >>> int(pruned.maps[0, 0].sum()), pruned.kept < pruned.total
        (4, True)
    """
    check_number("keep", keep, low=0, high=1)
    check_choice("across", across, ("depth", "network"))
    index = check_network(network, label)
    total = network.parameters_of(label)["lateral"]
    if total == 0:
        raise ValueError(f"label: the column of task {label} has no lateral connections to prune")
    copy = copy_module(network)
    columns: list[Any] = list(copy.columns)
    targets = [*columns[index].stages[1:], columns[index].head]  # the target at depth i reads what depth i gives
    widths = {(i, j): _source_maps(columns[j], i) for i in range(len(targets)) for j in range(index)}
    given = getattr(sensitivity, "means", {})
    means = {place: given[place] if place in given else torch.zeros(n) for place, n in widths.items()}
    masks = _most_sensitive(_values(sensitivity, label, widths, across), keep, across)
    kept = 0
    for depth, target in enumerate(targets):
        if target.lateral is None:
            continue
        own = [masks[depth, j] for j in range(index)]
        _forget(target, torch.cat(own), torch.cat([means[depth, j] for j in range(index)]))
        if any(bool(mask.any()) for mask in own):
            kept += _count(target.lateral, own)
        else:
            _remove(target)
    return Pruned(copy, kept, total, masks)


def pruning_curve(
    network: ProgressiveNetwork,
    label: int,
    sensitivity: Sensitivity,
    data: Iterable[Any] | Evaluate,
    *,
    keep: Sequence[float] = (1.0, 0.75, 0.5, 0.25, 0.1, 0.0),
    across: Literal["depth", "network"] = "depth",
) -> list[PruningPoint]:
    """Return a task's score against its lateral parameters, for several shares of source maps kept.

    Args:
        network: as for `prune_laterals`, likewise `label`, `sensitivity` and `across`. It stays as it is.
        label: the task.
        sensitivity: values that say which maps go first.
        data: batches of the task, for its accuracy above chance, or a function from the task's forward pass to a score,
            as for `average_perturbation_sensitivity`.
        keep: the shares.
        across: "depth" or "network".

    Raises:
        ValueError: As `prune_laterals`; if there is no sample, or no labels with them.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from avl_plugins.progressive import ProgressiveNetwork, average_fisher_sensitivity, pruning_curve
        >>> network = ProgressiveNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), seed=0)
        >>> for label in (0, 1):
        ...     _ = network.add_task(label, classes=2)
        >>> x = torch.randn(20, 4)
        >>> y = network.eval()(x, 1).argmax(1)
        >>> sensitivity = average_fisher_sensitivity(network, [x], label=1)
        >>> [(point.keep, point.kept) for point in pruning_curve(network, 1, sensitivity, [(x, y)], keep=(1.0, 0.0))]
        [(1.0, 89), (0.0, 0)]
    """
    for share in keep:
        check_number("keep", share, low=0, high=1)
    check_network(network, label)
    evaluate = data if callable(data) else accuracy_above_chance(network, data, label)
    points = []
    for share in keep:
        pruned = prune_laterals(network, label, sensitivity, keep=share, across=across)
        with unchanged(pruned.network), torch.no_grad():
            score = float(evaluate(partial(pruned.network.forward_single_task, task_label=label)))
        points.append(PruningPoint(share, pruned.kept, pruned.total, score))
    return points


def _values(sensitivity: Any, label: int, widths: dict[Place, int], across: str) -> dict[Place, Tensor]:
    """Return a value for each map of the earlier columns, by place."""
    if isinstance(sensitivity, FisherSensitivity | PerturbationSensitivity) and sensitivity.label != label:
        raise ValueError(f"sensitivity: it is that of task {sensitivity.label}, and label is {label}")
    found: Mapping[Place, Tensor]
    if isinstance(sensitivity, FisherSensitivity):
        found = sensitivity.maps if across == "depth" else sensitivity.fisher
    elif isinstance(sensitivity, PerturbationSensitivity):
        values = sensitivity.layers if across == "depth" else sensitivity.precision
        found = {(i, j): values[i, j].expand(n) for (i, j), n in widths.items()}
    elif isinstance(sensitivity, Mapping):
        found = sensitivity
    else:
        raise TypeError(f"sensitivity must be a sensitivity or a mapping, got a {type(sensitivity).__name__}")
    for (i, j), n in widths.items():
        if (i, j) not in found or len(found[i, j]) != n or not torch.as_tensor(found[i, j]).isfinite().all():
            raise ValueError(f"sensitivity must have {n} finite values for depth {i} of column {j}")
    return {place: torch.as_tensor(found[place]).detach().cpu().double() for place in widths}


def _most_sensitive(values: dict[Place, Tensor], keep: float, across: str) -> dict[Place, Tensor]:
    """Return which maps are kept, by place; of equals, those of earlier columns."""
    depths = sorted({i for i, _ in values})
    groups = [[place for place in values if place[0] == i] for i in depths] if across == "depth" else [list(values)]
    masks: dict[Place, Tensor] = {}
    for group in groups:
        joined = torch.cat([values[place] for place in group])
        chosen = torch.zeros(len(joined), dtype=torch.bool)
        order = joined.sort(descending=True, stable=True).indices
        chosen[order[: int(keep * len(joined) + 0.5)]] = True
        masks |= dict(zip(group, chosen.split([len(values[place]) for place in group]), strict=True))
    return masks


def _source_maps(column: Any, depth: int) -> int:
    """Return how many maps of a depth an adapter tells apart."""
    return column.source(depth + 1, column.layer_at(depth + 1)).maps


@torch.no_grad()
def _forget(target: Any, mask: Tensor, means: Tensor) -> None:
    """Have a stage's adapter read the means of the maps that are not in the mask."""
    adapter = target.lateral
    reader: Any = adapter.V if isinstance(adapter, MLPAdapter) else adapter.U
    weight: Tensor = reader.weight
    positions = weight.shape[1] // len(mask)  # flattened maps have a column of weights for each pixel
    mask = mask.to(weight.device).repeat_interleave(positions)
    constant = means.to(weight).repeat_interleave(positions).masked_fill(mask, 0.0)
    if isinstance(adapter, MLPAdapter):
        column_of_map: Any = adapter.column_of_map
        constant = constant * adapter.alpha[column_of_map]
    given = weight.flatten(2).sum(2) @ constant if weight.dim() > 2 else weight @ constant
    _add_to_bias(reader if isinstance(adapter, MLPAdapter) else target.layer, given)
    weight.mul_(mask.view(1, -1, *[1] * (weight.dim() - 2)))


def _count(adapter: Any, masks: list[Tensor]) -> int:
    """Return how many parameters an adapter has that still matter."""
    mlp = isinstance(adapter, MLPAdapter)
    weight = adapter.V.weight if mlp else adapter.U.weight
    mask = torch.cat(masks)
    kept = weight.numel() // len(mask) * int(mask.sum())
    if mlp:
        kept += adapter.V.bias.numel() + adapter.U.weight.numel() + sum(bool(m.any()) for m in masks)
    return kept


@torch.no_grad()
def _remove(target: Any) -> None:
    """Take away an adapter that reads nothing; what it gives goes into the layer's bias."""
    adapter, target.lateral = target.lateral, None
    if isinstance(adapter, MLPAdapter):
        bias: Any = adapter.V.bias
        weight: Any = adapter.U.weight
        hidden = bias.relu().repeat_interleave(adapter.positions)
        _add_to_bias(target.layer, weight.flatten(2).sum(2) @ hidden if weight.dim() > 2 else weight @ hidden)


def _add_to_bias(layer: Any, constant: Tensor) -> None:
    if layer.bias is not None:
        layer.bias.add_(constant)
    elif constant.any():
        layer.bias = nn.Parameter(constant, requires_grad=layer.weight.requires_grad)
