"""What a phase trains in the place of the whole network: a selected part of it, or its new units alone.

Nothing else can move then, whatever the optimizer does: it sees these parameters only.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avl_plugins.den.layers import affine, entries

__all__ = ["NewUnits", "Selected", "StandIn", "make_stand_in"]


class StandIn(nn.Module):
    """Computes the newest task's logits from parameters of its own.

    Args:
        network: The network whose newest task is trained.
    """

    kind = ""

    def __init__(self, network: Any) -> None:
        super().__init__()
        # Kept out of the module tree: the network has the stand-in as a part.
        self._network = (network,)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()

    @property
    def network(self) -> Any:
        """The network."""
        return self._network[0]

    def shape(self) -> dict[str, Any]:
        """Return what `make_stand_in` needs."""
        raise NotImplementedError

    def sources(self) -> dict[str, str]:
        """Return the name of the network's parameter that each of these is a part of."""
        raise NotImplementedError

    def write_back(self) -> None:
        """Put what was trained into the network."""
        raise NotImplementedError


class Selected(StandIn):
    """The sub-network of selected units (Eq. 4), as matrices of its own: smaller, so that a step is faster.

    Args:
        network: The network.
        units: Selected inputs and units of each layer, as `select_units` gives them.
    """

    kind = "selected"

    def __init__(self, network: Any, units: Sequence[Tensor]) -> None:
        super().__init__(network)
        self.units = [own.cpu() for own in units]
        inputs = network.hidden[0].layer.weight.shape[1]
        self.all_inputs = len(self.units[0]) == inputs
        head = network.head_of(network.labels[-1])
        below = self.units[0]
        for layer, own in zip(network.hidden, self.units[1:], strict=True):
            columns = entries(below, layer.positions)
            self.weights.append(layer.layer.weight.detach()[own][:, columns].contiguous())
            self.biases.append(torch.empty(0) if layer.layer.bias is None else layer.layer.bias.detach()[own])
            below = own
        self.weights.append(head.weight.detach()[:, entries(below, network.head_positions)].contiguous())
        self.biases.append(head.bias.detach().clone())

    def forward(self, h: Tensor) -> Tensor:
        """Return the logits."""
        if not self.all_inputs:
            h = h.index_select(1, self.units[0].to(h.device))
        *hidden, head = zip(self.weights, self.biases, strict=True)
        for layer, (weight, bias) in zip(self.network.hidden, hidden, strict=True):
            h = layer(h, weight, bias if bias.numel() else None)
        return nn.functional.linear(h.flatten(1), *head)

    def anchors(self, before: Sequence[tuple[Tensor, Tensor | None]]) -> list[tuple[Tensor, Tensor]]:
        """Return the selected weights and biases of the hidden layers, and what they were `before`."""
        found: list[tuple[Tensor, Tensor]] = []
        below = self.units[0]
        hidden = zip(self.network.hidden, self.units[1:], before, self.weights, self.biases, strict=False)
        for layer, own, (past, past_bias), weight, bias in hidden:
            found.append((weight, past[own][:, entries(below, layer.positions)]))
            if past_bias is not None:
                found.append((bias, past_bias[own]))
            below = own
        return found

    def shape(self) -> dict[str, Any]:
        """Return the selected units."""
        return {"kind": self.kind, "units": [own.tolist() for own in self.units]}

    def sources(self) -> dict[str, str]:
        """Return the name of the network's parameter that each of these is a part of."""
        return _sources(self.network, [(f"weights.{k}", f"biases.{k}") for k in range(len(self.weights))])

    @torch.no_grad()
    def write_back(self) -> None:
        """Scatter the sub-matrices."""
        below = self.units[0]
        for layer, own, weight, bias in zip(
            self.network.hidden, self.units[1:], list(self.weights)[:-1], list(self.biases)[:-1], strict=True
        ):
            columns = entries(below, layer.positions)
            layer.layer.weight[own[:, None], columns[None]] = weight
            if layer.layer.bias is not None:
                layer.layer.bias[own] = bias
            below = own
        head = self.network.head_of(self.network.labels[-1])
        head.weight[:, entries(below, self.network.head_positions)] = self.weights[-1]
        head.bias.copy_(self.biases[-1])


class NewUnits(StandIn):
    """The new units of each layer (Eq. 5): their incoming weights, those from them to old units, and the head.

    Args:
        network: The network, which has the new units at the end of each layer.
        added: How many of each layer are new.
    """

    kind = "new"

    def __init__(self, network: Any, added: Sequence[int]) -> None:
        super().__init__(network)
        self.added = list(added)
        self.outgoing = nn.ParameterList()
        below_added = 0
        for layer, new in zip(network.hidden, self.added, strict=True):
            weight, old = layer.layer.weight.detach(), layer.units - new
            split = weight.shape[1] - below_added * layer.positions
            self.weights.append(weight[old:].clone())
            self.outgoing.append(weight[:old, split:].clone())
            self.biases.append(torch.empty(0) if layer.layer.bias is None else layer.layer.bias.detach()[old:].clone())
            below_added = new
        head = network.head_of(network.labels[-1])
        self.weights.append(head.weight.detach().clone())
        self.biases.append(head.bias.detach().clone())

    def forward(self, h: Tensor) -> Tensor:
        """Return the logits; old weights are constants."""
        for k, layer in enumerate(self.network.hidden):
            h = layer.after(affine(layer.layer, h, *self._joined(k, layer)))
        return nn.functional.linear(h.flatten(1), self.weights[-1], self.biases[-1])

    def shape(self) -> dict[str, Any]:
        """Return how many units are new."""
        return {"kind": self.kind, "added": list(self.added)}

    def sources(self) -> dict[str, str]:
        """Return the name of the network's parameter that each of these is a part of."""
        found = _sources(self.network, [(f"weights.{k}", f"biases.{k}") for k in range(len(self.weights))])
        return found | {f"outgoing.{k}": f"layers.{k}.layer.weight" for k in range(len(self.outgoing))}

    @torch.no_grad()
    def write_back(self) -> None:
        """Put the new blocks into the layers, and the head's weights into the head."""
        for k, layer in enumerate(self.network.hidden):
            weight, bias = self._joined(k, layer)
            layer.layer.weight.copy_(weight)
            if bias is not None:
                layer.layer.bias.copy_(bias)
        head = self.network.head_of(self.network.labels[-1])
        head.weight.copy_(self.weights[-1])
        head.bias.copy_(self.biases[-1])

    def _joined(self, k: int, layer: Any) -> tuple[Tensor, Tensor | None]:
        old, outgoing = layer.units - self.added[k], self.outgoing[k]
        known = layer.layer.weight.detach()[:old, : layer.layer.weight.shape[1] - outgoing.shape[1]]
        weight = torch.cat([torch.cat([known, outgoing], dim=1), self.weights[k]])
        if layer.layer.bias is None:
            return weight, None
        return weight, torch.cat([layer.layer.bias.detach()[:old], self.biases[k]])


def make_stand_in(network: Any, shape: dict[str, Any]) -> StandIn:
    """Make a stand-in of the shape that one said of itself; its values are filled from a state_dict."""
    if shape["kind"] == Selected.kind:
        return Selected(network, [torch.tensor(units, dtype=torch.long) for units in shape["units"]])
    return NewUnits(network, shape["added"])


def _sources(network: Any, names: Sequence[tuple[str, str]]) -> dict[str, str]:
    *hidden, (head_weight, head_bias) = names
    label = network.labels[-1]
    found = {head_weight: f"heads.{label}.weight", head_bias: f"heads.{label}.bias"}
    for k, (weight, bias) in enumerate(hidden):
        found |= {weight: f"layers.{k}.layer.weight", bias: f"layers.{k}.layer.bias"}
    return found
