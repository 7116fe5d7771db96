"""The phases of a task's training (Alg. 1): what each trains, with which penalties, what comes before and after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol

from torch import nn

from avl_plugins.den.checks import each_layer, loss_before_expansion
from avl_plugins.den.drift import Before
from avl_plugins.den.duplication import drifted_units, drifts, split_units
from avl_plugins.den.expansion import add_units, empty_units, remove_units
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.den.selection import units_with_a_path
from avl_plugins.den.stand_in import NewUnits, Selected, all_that_is_used
from avl_plugins.growth.seeds import drawn_from

__all__ = ["DRIFT", "EXPANSION", "FIRST", "FULL", "HEAD", "PHASES", "RETRAINING", "SPLIT", "Phase", "phases_of"]


class Settings(Protocol):
    """What phases use of a `DENPlugin`; see its arguments and attributes."""

    l1: float
    l2: float
    group_lasso: float
    drift_lambda: float
    retraining_drift: float
    loss_threshold: float
    drift_threshold: float
    zero_tolerance: float
    expand_by: Any
    max_splits: Any
    selective: bool
    expand: str | None
    split: bool
    seed: int | None
    history: list[dict[str, Any]]
    weights_before: Before


def _zero(plugin: Settings) -> float:
    return 0.0


def _write_back(plugin: Settings, strategy: Any) -> None:
    strategy.model.write_back()


@dataclass(frozen=True, eq=False)
class Phase:
    """A phase of a task's training.

    Attributes:
        name: in files, logs and messages.
        when: whether a plugin trains its task number t, from 1, in it.
        begin: do what comes before it; returns the part of the model that is trained, None to leave the phase out.
        finish: do what comes after it.
        l1: mu of L1's proximal step.
        l2: mu of the squares that are added to the loss, mu / 2 times their sum.
        group_lasso: weight of group lasso in its proximal step.
        drift: lambda of the drift penalty.
        full_length: as long as the strategy's own epochs, whatever `phase_epochs` is.

    Example:
        >>> from avl_plugins.den import DENPlugin
        >>> from avl_plugins.den.phases import phases_of
        >>> phases_of(DENPlugin(split=False), task=2)
        [<phase 'head'>, <phase 'retraining'>, <phase 'expansion'>]
    """

    name: str
    when: Callable[[Settings, int], bool]
    begin: Callable[[Settings, Any], nn.Module | None]
    finish: Callable[[Settings, Any], None] = _write_back
    l1: Callable[[Settings], float] = _zero
    l2: Callable[[Settings], float] = _zero
    group_lasso: Callable[[Settings], float] = _zero
    drift: Callable[[Settings], float] = _zero
    full_length: bool = False

    def __repr__(self) -> str:
        return f"<phase {self.name!r}>"


def phases_of(plugin: Settings, task: int) -> list[Phase]:
    """Return the phases of a plugin's task number `task`, from 1; the first one is trained in the strategy's epochs."""
    return [phase for phase in PHASES if phase.when(plugin, task)]


def _all(plugin: Settings, strategy: Any) -> nn.Module:
    """Train all that the task uses."""
    network: DynamicallyExpandableNetwork = strategy.model
    part = all_that_is_used(network)
    return network if part is None else network.put_in_place(part)


def _head(plugin: Settings, strategy: Any) -> nn.Module:
    """Train the task's head alone."""
    return strategy.model.head_of(strategy.model.newest)


def _selected(plugin: Settings, strategy: Any) -> nn.Module:
    """Select the units with a path to the outputs, and train these (Alg. 2)."""
    network: DynamicallyExpandableNetwork = strategy.model
    units = units_with_a_path(network, tolerance=plugin.zero_tolerance)
    counts = plugin.history[-1]["selected"] = [len(own) for own in units]
    if not all(counts):
        raise ValueError(
            f"l1: task {network.newest} selects {counts} inputs and units by layer; {plugin.l1} drives too many "
            "weights to zero, lower it"
        )
    return network.put_in_place(Selected(network, units))


def _measure(plugin: Settings, strategy: Any) -> None:
    """Take the loss that tau is compared with; before write-back, as the selected part is faster than the whole."""
    if plugin.expand:
        plugin.history[-1]["loss"] = loss_before_expansion(plugin, strategy)
    strategy.model.write_back()


def _new_units(plugin: Settings, strategy: Any) -> nn.Module | None:
    """Add units where the loss asks for them, and train these alone (Alg. 3)."""
    network: DynamicallyExpandableNetwork = strategy.model
    if plugin.expand == "dynamic" and plugin.history[-1]["loss"] <= plugin.loss_threshold:
        return None
    counts = each_layer(plugin.expand_by, len(network.layers))
    with drawn_from(plugin.seed, f"units of task {network.stamp}"):
        add_units(network, counts)
    plugin.history[-1] |= {"added": counts, "removed": [0] * len(counts)}
    return network.put_in_place(NewUnits(network, counts))


def _remove_empty(plugin: Settings, strategy: Any) -> None:
    """Take away new units that group lasso has emptied, from the top layer down."""
    network: DynamicallyExpandableNetwork = strategy.model
    network.write_back()
    if plugin.expand != "dynamic":
        return
    for index in reversed(range(len(network.layers))):
        layer = network.hidden[index]
        empty = empty_units(layer.layer.weight)
        empty = empty[[layer.stamps[unit] == network.stamp for unit in empty.tolist()]]
        remove_units(network, index, empty)
        plugin.history[-1]["removed"][index] = len(empty)


def _split(plugin: Settings, strategy: Any) -> nn.Module | None:
    """Split the units that have moved too far, and train all again; nothing where none has (Alg. 4)."""
    network: DynamicallyExpandableNetwork = strategy.model
    moved = drifts(network, plugin.weights_before)
    most = each_layer(plugin.max_splits, len(moved))
    units = [drifted_units(own, plugin.drift_threshold, k) for own, k in zip(moved, most, strict=True)]
    plugin.history[-1] |= {"drift": [float(own.max()) for own in moved], "split": [len(own) for own in units]}
    if not any(map(len, units)):
        return None
    split_units(network, units, plugin.weights_before)
    return _all(plugin, strategy)


_L1: Callable[[Settings], float] = attrgetter("l1")
_RETRAINING_DRIFT: Callable[[Settings], float] = attrgetter("retraining_drift")
_DRIFT: Callable[[Settings], float] = attrgetter("drift_lambda")

FIRST = Phase("first", when=lambda plugin, task: task == 1, begin=_all, l1=_L1)
FULL = Phase(
    "full",
    when=lambda plugin, task: task > 1 and not plugin.selective,
    begin=_all,
    finish=_measure,
    l1=_L1,
    drift=_RETRAINING_DRIFT,
)
HEAD = Phase("head", when=lambda plugin, task: task > 1 and plugin.selective, begin=_head, l1=_L1)
RETRAINING = Phase(
    "retraining",
    when=lambda plugin, task: task > 1 and plugin.selective,
    begin=_selected,
    finish=_measure,
    l2=attrgetter("l2"),
    drift=_RETRAINING_DRIFT,
    full_length=True,
)
EXPANSION = Phase(
    "expansion",
    when=lambda plugin, task: task > 1 and plugin.expand is not None,
    begin=_new_units,
    finish=_remove_empty,
    l1=lambda plugin: plugin.l1 if plugin.expand == "dynamic" else 0.0,
    group_lasso=lambda plugin: plugin.group_lasso if plugin.expand == "dynamic" else 0.0,
)
DRIFT = Phase("drift", when=lambda plugin, task: task > 1 and plugin.split, begin=_all, l1=_L1, drift=_DRIFT)
SPLIT = Phase("split", when=lambda plugin, task: task > 1 and plugin.split, begin=_split, l1=_L1, drift=_DRIFT)

PHASES = [FIRST, FULL, HEAD, RETRAINING, EXPANSION, DRIFT, SPLIT]
"""All of them, in order."""
