"""What a phase trains in the place of the whole network: a selected part of it, or its new units alone.

Nothing else can move then, whatever the optimizer does: it sees these parameters only.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avl_plugins.den.layers import entries, take
from avl_plugins.tasks.states import is_count, list_of

__all__ = ["NewUnits", "Selected", "StandIn", "all_that_is_used", "make_stand_in"]


class StandIn(nn.Module):
    """Computes the newest task's logits from parameters of its own, and otherwise with what the network has.

    Its methods are given the network that it was made for.
    """

    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()

    @property
    def incoming(self) -> list[Tensor]:
        """Incoming weights of new units, by layer, to which group lasso applies."""
        return []

    def anchors(self, network: Any, before: Sequence[tuple[Tensor, Tensor | None]]) -> list[tuple[Tensor, Tensor]]:
        """Return the weights and biases that there were before, the first ones of each layer, and what they were."""
        return []

    def shape(self) -> dict[str, Any]:
        """Return what `make_stand_in` needs."""
        raise NotImplementedError

    def sources(self, network: Any) -> dict[str, str]:
        """Return the name of the network's parameter that each of these is a part of."""
        raise NotImplementedError

    def write_back(self, network: Any) -> None:
        """Put what was trained into the network."""
        raise NotImplementedError


class Selected(StandIn):
    """The sub-network of selected units (Eq. 4), as matrices of its own: smaller, so that a step is faster.

    Args:
        network: the network.
        units: selected inputs and units of each layer, in order, as `select_units` gives them.
    """

    kind = "selected"

    def __init__(self, network: Any, units: Sequence[Sequence[int] | Tensor]) -> None:
        super().__init__()
        self.units: list[list[int]] = [torch.as_tensor(own).tolist() for own in units]
        self.all_inputs = len(self.units[0]) == network.hidden[0].layer.weight.shape[1]
        for layer, own, below in self._layers(network):
            weight, bias = layer.block(own, below)
            self.weights.append(weight.detach().clone())
            self.biases.append(torch.empty(0) if bias is None else bias.detach().clone())
        head = network.head_of(network.newest)
        self.weights.append(take(head.weight.detach(), 1, self.units[-1], network.head_positions).clone())
        self.biases.append(head.bias.detach().clone())

    def forward(self, network: Any, x: Tensor) -> Tensor:
        """Return the logits."""
        h = network.before(x)
        if not self.all_inputs:
            h = take(h, 1, self.units[0])
        *hidden, head = zip(self.weights, self.biases, strict=True)
        for layer, (weight, bias) in zip(network.hidden, hidden, strict=True):
            h = layer(h, weight, bias if bias.numel() else None)
        return nn.functional.linear(h.flatten(1), *head)

    def anchors(self, network: Any, before: Sequence[tuple[Tensor, Tensor | None]]) -> list[tuple[Tensor, Tensor]]:
        """Return the weights and biases that there were before, the first ones of each layer, and what they were."""
        found: list[tuple[Tensor, Tensor]] = []
        parts = zip(self._layers(network), before, self.weights, self.biases, strict=False)
        for (layer, own, below), (past, past_bias), weight, bias in parts:
            units = [unit for unit in own if unit < len(past)]
            inputs = [unit for unit in below if unit * layer.positions < past.shape[1]]
            found.append((weight, take(take(past, 0, units), 1, inputs, layer.positions)))
            if past_bias is not None:
                found.append((bias, take(past_bias, 0, units)))
        return found

    def shape(self) -> dict[str, Any]:
        """Return the selected units."""
        return {"kind": self.kind, "units": [list(own) for own in self.units]}

    def sources(self, network: Any) -> dict[str, str]:
        """Return the name of the network's parameter that each of these is a part of."""
        return _sources(network, [(f"weights.{k}", f"biases.{k}") for k in range(len(self.weights))])

    @torch.no_grad()
    def write_back(self, network: Any) -> None:
        """Scatter the sub-matrices."""
        parts = zip(self._layers(network), self.weights, self.biases, strict=False)
        for (layer, own, below), weight, bias in parts:
            layer.put(own, below, weight, bias if bias.numel() else None)
        _write_head(network, self.units[-1], self.weights[-1], self.biases[-1])

    def _layers(self, network: Any) -> Iterator[tuple[Any, list[int], list[int]]]:
        """Yield the layers with their selected units and those below."""
        yield from zip(network.hidden, self.units[1:], self.units[:-1], strict=True)


class NewUnits(StandIn):
    """The new units of each layer (Eq. 5): their incoming weights, those from them to old units, and the head.

    Args:
        network: the network, which has the new units at the end of each layer.
        added: how many of each layer are new.
    """

    kind = "new"

    def __init__(self, network: Any, added: Sequence[int]) -> None:
        super().__init__()
        self.added = list(added)
        self.outgoing = nn.ParameterList()
        for layer, (old, new), below, below_new in self._layers(network):
            weight, bias = layer.block(new, below)
            self.weights.append(weight.detach().clone())
            self.outgoing.append(layer.block(old, below_new)[0].detach().clone())
            self.biases.append(torch.empty(0) if bias is None else bias.detach().clone())
        self.weights.append(network.head_weight(network.newest).detach().clone())
        self.biases.append(network.head_of(network.newest).bias.detach().clone())

    @property
    def incoming(self) -> list[Tensor]:
        """Incoming weights of the new units, by layer."""
        return list(self.weights)[:-1]

    def forward(self, network: Any, x: Tensor) -> Tensor:
        """Return the logits; old weights are constants."""
        h = network.before(x)
        parts = zip(self._layers(network), self.weights, self.outgoing, self.biases, strict=False)
        for (layer, (old, _), below, below_new), weight, outgoing, bias in parts:
            below_old = None if below is None else below[: len(below) - len(below_new)]
            known, known_bias = layer.block(old, below_old)
            joined = torch.cat([torch.cat([known.detach(), outgoing], dim=1), weight])
            h = layer(h, joined, None if known_bias is None else torch.cat([known_bias.detach(), bias]))
        return nn.functional.linear(h.flatten(1), self.weights[-1], self.biases[-1])

    def shape(self) -> dict[str, Any]:
        """Return how many units are new."""
        return {"kind": self.kind, "added": list(self.added)}

    def sources(self, network: Any) -> dict[str, str]:
        """Return the name of the network's parameter that each of these is a part of."""
        found = _sources(network, [(f"weights.{k}", f"biases.{k}") for k in range(len(self.weights))])
        return found | {f"outgoing.{k}": f"layers.{k}.layer.weight" for k in range(len(self.outgoing))}

    @torch.no_grad()
    def write_back(self, network: Any) -> None:
        """Put the new blocks into the layers, and the head's weights into the head."""
        parts = zip(self._layers(network), self.weights, self.outgoing, self.biases, strict=False)
        for (layer, (old, new), below, below_new), weight, outgoing, bias in parts:
            layer.put(new, below, weight, bias if bias.numel() else None)
            layer.put(old, below_new, outgoing, None)
        _write_head(network, network.units_of(network.newest)[-1], self.weights[-1], self.biases[-1])

    def _layers(self, network: Any) -> Iterator[tuple[Any, tuple[list[int], list[int]], list[int] | None, list[int]]]:
        """Yield layers, their old and new units, the units below (None for all inputs) and the new ones of these."""
        below: list[int] | None = None
        below_new: list[int] = []
        for layer, units, added in zip(network.hidden, network.units_of(network.newest), self.added, strict=True):
            old, new = units[: len(units) - added], units[len(units) - added :]
            yield layer, (old, new), below, below_new
            below, below_new = units, new


def all_that_is_used(network: Any) -> Selected | None:
    """Return a stand-in for all that the newest task uses; None where that is the network as a whole.

    Units that have been split, and what reads them, are the earlier tasks' and must not move.
    """
    if not any(map(any, (layer.splits for layer in network.hidden))):
        return None
    inputs = network.hidden[0].layer.weight.shape[1]
    return Selected(network, [range(inputs), *network.units_of(network.newest)])


def make_stand_in(network: Any, shape: dict[str, Any]) -> StandIn:
    """Make a stand-in of the shape that one said of itself; its values are filled from a state_dict.

    Raises:
        ValueError: It is the shape of none.
    """
    kinds: dict[str, tuple[type[Selected | NewUnits], str, Any]] = {
        Selected.kind: (Selected, "units", list_of(list_of(is_count))),
        NewUnits.kind: (NewUnits, "added", list_of(is_count)),
    }
    made, name, fits = kinds.get(shape.get("kind", ""), kinds[NewUnits.kind])
    if shape.keys() != {"kind", name} or not fits(shape[name]):
        raise ValueError(f"stand_in: no phase trains a part of the shape {shape!s:.80}")
    return made(network, shape[name])


def _write_head(network: Any, units: Sequence[int], weight: Tensor, bias: Tensor) -> None:
    head = network.head_of(network.newest)
    head.weight[:, entries(torch.tensor(units, device=head.weight.device), network.head_positions)] = weight
    head.bias.copy_(bias)


def _sources(network: Any, names: Sequence[tuple[str, str]]) -> dict[str, str]:
    *hidden, (head_weight, head_bias) = names
    label = network.newest
    found = {head_weight: f"heads.{label}.weight", head_bias: f"heads.{label}.bias"}
    for k, (weight, bias) in enumerate(hidden):
        found |= {weight: f"layers.{k}.layer.weight", bias: f"layers.{k}.layer.bias"}
    return found
