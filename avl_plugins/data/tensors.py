"""From a data set to the tensors it stands for, by index where the data are tensors already.

An Avalanche data set is a tree of concatenations, subsets and transforms over ordinary data sets. Where every leaf
keeps tensors and the only transforms rewrite class labels, the samples are gathered by index; else they are read
one by one. Leaves that keep tensors are :class:`torch.utils.data.TensorDataset` and anything with a method

    ``gather(rows) -> tuple[Tensor, ...]``

that returns, for a vector of row numbers, the columns that ``default_collate`` makes of those samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.data import AvalancheDataset, _FlatDataWithTransform
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from avalanche.benchmarks.utils.transforms import TupleTransform
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset, default_collate

from avl_plugins.tasks.arguments import check_count

Columns = tuple[Tensor, ...]
_CHUNK = 512


@dataclass(frozen=True)
class Part:
    """Samples of a data set that come from one leaf, through the same transforms."""

    leaf: Any
    rows: Tensor
    """Their row numbers in the leaf, int64."""
    places: Tensor
    """Their positions in the data set, int64, ascending."""
    transforms: tuple[Any, ...]
    """What is applied to them, the leaf's own first."""


def dataset_tensors(dataset: Any) -> Columns:
    """Return the columns of a data set: what one batch of all its samples, in order, would hold.

    Args:
        dataset: a data set of (x, y, ...) samples. Of an Avalanche data set the current transform group is used, and
            columns for its per-sample attributes (task labels) follow, as in Avalanche's batches: (x, y, t).

    Returns:
        Tensors with the samples along dimension 0. They may share memory with the data set: do not write to them.

    Raises:
        ValueError: The data set is empty, or its samples do not form one batch.
    """
    if len(dataset) == 0:
        raise ValueError("the data set is empty: there is nothing to put in a batch")
    return sample_columns(dataset, dataset_parts(dataset)) + attribute_columns(dataset)


def batches_in_memory(dataset: Any, batch_size: int | None = None) -> Iterator[Any]:
    """Return an iterator over (x, y, t), or (x, y) without task labels, in order, in the *eval* transform group.

    For one pass, such as a Fisher's: data that are not tensors are read batch by batch and never all held. A data set
    with a `collate_fn` of its own makes the batches, whatever they hold; of any other the iterator is `Batches`, which
    can pass over samples without reading them.

    Args:
        dataset: an experience's data set.
        batch_size: samples per batch; the last one may be smaller. None: 1000, or fewer where a batch of them would
            hold more than 2**25 numbers; 256 for a data set with a `collate_fn`, which may pad.

    Raises:
        ValueError: ``batch_size`` is not positive, the data set is empty or its samples do not form batches.
    """
    check_count("batch_size", batch_size, none="a size that suits the samples")
    if len(dataset) == 0:
        raise ValueError("the data set is empty: there is nothing to put in a batch")
    if isinstance(dataset, AvalancheDataset):
        dataset = dataset.eval()
    rows = torch.arange(len(dataset))
    collate_fn = getattr(dataset, "collate_fn", default_collate)
    if collate_fn is not default_collate:
        return (collate_fn([dataset[i] for i in part.tolist()]) for part in rows.split(batch_size or 256))
    parts = dataset_parts(dataset)
    if keeps_tensors(parts):
        return Batches(batch_reader(dataset, parts), rows, batch_size)
    return Batches(lambda rows: collate([dataset[i] for i in rows.tolist()]), rows, batch_size)


class Batches(Iterator[Columns]):
    """Batches of the samples at some positions of a data set, each read when its turn comes.

    Args:
        read: a function from a vector of positions to the columns of these samples.
        rows: the positions, (N,) int64.
        batch_size: samples per batch; None: as `batches_in_memory` says.
    """

    def __init__(self, read: Callable[[Tensor], Columns], rows: Tensor, batch_size: int | None) -> None:
        self._read, self._rows, self._batch_size = read, rows, batch_size

    @property
    def n_samples(self) -> int:
        """How many samples are still to come."""
        return len(self._rows)

    def only(self, chosen: Tensor) -> Batches:
        """Return the batches of some of these samples, by their numbers 0, 1, ... among those still to come."""
        return Batches(self._read, self._rows[chosen], self._batch_size)

    def __next__(self) -> Columns:
        if len(self._rows) == 0:
            raise StopIteration
        if self._batch_size is None:
            numbers = max(column.numel() for column in self._read(self._rows[:1]))
            self._batch_size = max(1, min(1000, 2**25 // max(1, numbers)))
        now, self._rows = self._rows[: self._batch_size], self._rows[self._batch_size :]
        return self._read(now)


def batch_reader(dataset: Any, parts: list[Part], *, ahead_bytes: int = 0) -> Callable[[Tensor], Columns]:
    """Return a function from positions in a data set that keeps tensors to the columns of these samples.

    Args:
        dataset: the data set.
        parts: its parts, as `dataset_parts` gives them.
        ahead_bytes: what a leaf's `gather` computes is computed now if it takes no more than this.
    """
    attributes = attribute_columns(dataset)
    if len(parts) == 1 and not parts[0].transforms:
        leaf, own = parts[0].leaf, parts[0].rows
        computed = ahead_bytes > 0 and type(leaf) is not TensorDataset
        if not computed or len(own) * sum(c.nbytes for c in _leaf_rows(leaf, own[:1])) > ahead_bytes:
            return lambda rows: _leaf_rows(leaf, own[rows]) + select(attributes, rows)  # nothing is copied beforehand
    columns = sample_columns(dataset, parts) + attributes
    return lambda rows: select(columns, rows)


def select(columns: Columns, rows: Tensor) -> Columns:
    """Return some rows of each column, as new tensors."""
    return tuple(column.index_select(0, rows) for column in columns)


def dataset_parts(dataset: Any) -> list[Part]:
    """Return the parts of a data set: for each leaf, which of its rows are where, and how they are transformed."""
    rows = torch.arange(len(dataset))
    if isinstance(dataset, AvalancheDataset):
        flat = dataset._flat_data
        return _parts(flat, flat._transform_groups.current_group, rows, rows, ())
    return _parts(dataset, None, rows, rows, ())


def keeps_tensors(parts: list[Part]) -> bool:
    """Whether the samples of these parts can be gathered by index."""
    return all(
        (type(part.leaf) is TensorDataset or hasattr(part.leaf, "gather"))
        and all(_maps_labels_only(transform) for transform in part.transforms)
        for part in parts
    )


def sample_columns(dataset: Any, parts: list[Part]) -> Columns:
    """Return the columns of the samples themselves, without Avalanche's attributes."""
    if not keeps_tensors(parts):
        samples = bare_samples(dataset)
        starts = range(0, len(samples), _CHUNK)
        chunks = [collate([samples[i] for i in range(start, min(start + _CHUNK, len(samples)))]) for start in starts]
        return _by_column(chunks, torch.cat)
    gathered = [_gather(part) for part in parts]
    if len(parts) == 1:
        return gathered[0]
    places = torch.cat([part.places for part in parts])
    if torch.equal(places, torch.arange(len(places))):
        return _by_column(gathered, torch.cat)
    return _by_column(gathered, lambda columns: torch.cat(columns)[places.argsort()])


def bare_samples(dataset: Any) -> Any:
    """Return the samples of a data set without Avalanche's attributes, as something to be indexed."""
    return dataset._flat_data if isinstance(dataset, AvalancheDataset) else dataset


def collate(samples: list[Any]) -> Columns:
    """Return the columns of one batch of samples; a ValueError says that they do not form one."""
    try:
        columns = default_collate(samples)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"samples of the data set do not form a batch: {error}") from error
    if not isinstance(columns, list | tuple) or not all(isinstance(column, Tensor) for column in columns):
        raise ValueError("samples must be (x, y, ...) tuples of tensors, arrays or numbers to be batched in memory")
    return tuple(columns)


def attribute_columns(dataset: Any) -> Columns:
    """Return a column for each attribute that Avalanche appends to its samples (task labels, above all)."""
    columns = []
    if isinstance(dataset, AvalancheDataset):
        for attribute in dataset._data_attributes.values():
            if attribute.use_in_getitem:
                if isinstance(attribute.data, ConstantSequence):
                    (column,) = collate([(attribute[0],)])
                    columns.append(column.expand(len(attribute)).contiguous())
                else:
                    columns += collate([(value,) for value in attribute])
    return tuple(columns)


def _parts(data: Any, group: str | None, rows: Tensor, places: Tensor, outer: tuple[Any, ...]) -> list[Part]:
    """Descend from ``rows`` of ``data``, found at ``places`` of the whole, down to the leaves."""
    if isinstance(data, _FlatDataWithTransform) and group is not None:
        stages = (data._frozen_transform_groups.transform_groups, data._transform_groups.transform_groups)
        outer = tuple(t for stage in stages if not _is_idle(t := stage[group])) + outer
        if data._indices is not None:
            rows = torch.from_numpy(np.fromiter(data._indices, np.int64, len(data._indices)))[rows]
        children = data._datasets
    elif type(data) is Subset:
        rows = torch.as_tensor(np.asarray(data.indices, np.int64))[rows]
        children, group = [data.dataset], None  # an Avalanche data set below keeps to its own group
    elif type(data) is ConcatDataset:
        children, group = data.datasets, None
    else:
        return [Part(data, rows, places, outer)]
    if len(children) == 1:
        return _parts(children[0], group, rows, places, outer)
    parts, start = [], 0
    for child in children:
        own = (rows >= start) & (rows < start + len(child))
        if own.any():
            parts += _parts(child, group, rows[own] - start, places[own], outer)
        start += len(child)
    return parts


def _is_idle(transform: Any) -> bool:
    return transform is None or (
        isinstance(transform, TupleTransform) and all(step is None for step in transform.transforms)
    )


def _maps_labels_only(transform: Any) -> bool:
    return isinstance(transform, TupleTransform) and len(transform.transforms) == 2 and transform.transforms[0] is None


def _leaf_rows(leaf: Any, rows: Tensor) -> Columns:
    return select(leaf.tensors, rows) if type(leaf) is TensorDataset else tuple(leaf.gather(rows))


def _gather(part: Part) -> Columns:
    if type(part.leaf) is TensorDataset and torch.equal(part.rows, torch.arange(len(part.leaf))):
        columns = part.leaf.tensors
    else:
        columns = _leaf_rows(part.leaf, part.rows)
    for transform in part.transforms:
        columns = (columns[0], _map_labels(part, transform.transforms[1], columns[1]), *columns[2:])
    return columns


def _map_labels(part: Part, mapping: Callable, labels: Tensor) -> Tensor:
    values, inverse = labels, torch.arange(len(labels))
    if labels.ndim == 1 and not labels.is_floating_point():
        values, inverse = labels.unique(return_inverse=True)  # ten calls, not one a sample
    # Leaves of our own kind give their labels as numbers, a TensorDataset as 0-d tensors.
    samples = list(values) if type(part.leaf) is TensorDataset else values.tolist()
    return default_collate([mapping(sample) for sample in samples])[inverse]


def _by_column(chunks: list[Columns], join: Callable[[list[Tensor]], Tensor]) -> Columns:
    columns = list(zip(*chunks, strict=True))
    for column in columns:
        kinds = {(tuple(chunk.shape[1:]), chunk.dtype) for chunk in column}
        if len(kinds) > 1:
            raise ValueError(f"samples of the data set differ in shape or dtype: {sorted(kinds, key=str)}")
    return tuple(join(list(column)) for column in columns)
