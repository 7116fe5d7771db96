"""What layers are called in logs."""

from collections import Counter
from collections.abc import Iterable


def layer_of(parameter: str) -> str:
    """Return the name of the module that a parameter is in; its own name where that is the model itself."""
    return parameter.rpartition(".")[0] or parameter


def readable_layers(parameters: Iterable[str]) -> dict[str, str]:
    """Return what the layers of these parameters are called in logs, by their modules' names, in order.

    In an `nn.Sequential` modules have only numbers, gaps included, as activations count: "0", "2" are called "layer 1",
    "layer 2", and "features.3" after "features.0" is "features layer 2". Others keep their names.
    """
    found: dict[str, str] = {}
    numbers: Counter[str] = Counter()
    for layer in dict.fromkeys(map(layer_of, parameters)):
        parent, _, own = layer.rpartition(".")
        if own.isdecimal():
            numbers[parent] += 1
            found[layer] = f"{parent} layer {numbers[parent]}".lstrip()
        else:
            found[layer] = layer
    return found
