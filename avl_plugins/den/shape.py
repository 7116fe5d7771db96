"""The shape of a dynamically expandable network as plain values, and growing a network to it."""

from typing import Any

import torch
from torch import nn

from avl_plugins.den.stand_in import make_stand_in
from avl_plugins.tasks.network import TRAINING_ON
from avl_plugins.tasks.states import Entry, check_entries, is_count, list_of

__all__ = ["grow_to", "shape_of"]


def _are_heads(value: Any) -> bool:
    """Return whether a value is a dict of a head's inputs and outputs by task label."""
    if not isinstance(value, dict):
        return False
    labels, shapes = value.keys(), value.values()
    return all(label.lstrip("-").isdigit() for label in labels) and all(
        list_of(is_count)(shape) and len(shape) == 2 for shape in shapes
    )


_ENTRIES: dict[str, Entry] = {
    "stamps": ("a list of integers for each layer", list_of(list_of(is_count))),
    "heads": ("a dict of inputs and outputs by task label", _are_heads),
    "training_on": TRAINING_ON,
    "stand_in": ("a dict, or None", lambda value: isinstance(value, dict | None)),
}


def shape_of(network: Any) -> dict[str, Any]:
    """Return stamps, splits, heads, and what a phase trains."""
    return {
        "stamps": [list(layer.stamps) for layer in network.hidden],
        "splits": [list(layer.splits) for layer in network.hidden],
        "heads": {label: [head.in_features, head.out_features] for label, head in network.heads.items()},
        "training_on": network.training_on,
        "stand_in": None if network.stand_in is None else network.stand_in.shape(),
    }


def grow_to(network: Any, shape: dict[str, Any]) -> None:
    """Make layers, heads and stand-in of a shape; random numbers are left as they were.

    The shapes of earlier versions do not say which units have been split: in these networks all tasks use them.

    Raises:
        ValueError: If it is no such shape, or not one that the network can grow to.
    """
    check_entries(type(network).__name__, shape, _ENTRIES, optional={"splits": _ENTRIES["stamps"]})
    own, saved = list(network.heads), list(shape["heads"])
    if own != saved[: len(own)]:
        raise ValueError(f"the network has heads for the tasks {own}, the state for {saved}")
    counts = [len(stamps) for stamps in shape["stamps"]]
    if len(counts) != len(network.layers):
        raise ValueError(f"the network has {len(network.layers)} hidden layers, the state {len(counts)}")
    all_splits = shape.get("splits", [[0] * count for count in counts])
    if [len(splits) for splits in all_splits] != counts:
        raise ValueError("the state has stamps and splits of different numbers of units")
    first = next(network.parameters())
    below: int | None = None
    for layer, stamps, splits, units in zip(
        network.hidden, shape["stamps"], all_splits, network.first_units, strict=True
    ):
        if list(stamps) != sorted(stamps):
            raise ValueError("the state has units whose stamps are not in order")
        if stamps.count(1) != units:
            raise ValueError(f"the network was built with {units} units in a layer, the state's with another number")
        size = layer.layer.weight.shape
        wanted = (len(stamps), size[1] if below is None else below * layer.positions, *size[2:])
        if wanted != tuple(size):
            bias = None if layer.layer.bias is None else first.new_zeros(len(stamps))
            layer.set_tensors(first.new_zeros(wanted), bias, stamps)
        layer.stamps, layer.splits = list(stamps), list(splits)
        below = len(stamps)
    for label, (inputs, outputs) in shape["heads"].items():
        head: Any = network.heads[label] if label in own else None
        if head is None or (head.in_features, head.out_features) != (inputs, outputs):
            with torch.random.fork_rng(devices=[first.device] if first.is_cuda else []):
                network.heads[label] = nn.Linear(inputs, outputs).to(first)
    network.stand_in = None if shape["stand_in"] is None else make_stand_in(network, shape["stand_in"])
    network.training_on = None if shape["training_on"] is None else tuple(shape["training_on"])
