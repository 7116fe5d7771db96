"""The state of a strategy as plain values, and back, all or nothing."""

import dis
import functools
import random
from collections.abc import Callable, Collection
from enum import Enum
from pathlib import PurePath
from types import FunctionType
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, LRSchedulerPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.supervised import Cumulative
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.base_sgd import PeriodicEval
from avalanche.training.utils import trigger_plugins
from torch import nn

from avl_plugins.checkpoint.model_state import (
    model_from_plain,
    model_to_plain,
    optimizer_from_plain,
    optimizer_to_plain,
    undo_for,
)
from avl_plugins.checkpoint.past_data import past_data_from_plain, past_data_to_plain
from avl_plugins.checkpoint.plain import from_plain, is_wiring, keeps_state, to_plain

# What of Avalanche's own plugins changes in training; the rest is how they were built.
_AVALANCHE_STATE: dict[type, tuple[str, ...]] = {
    Clock: tuple(vars(Clock())),
    PeriodicEval: ("do_final", "_is_eval_updated"),
    EvaluationPlugin: ("_active", "last_metric_results", "all_metric_results", "_metric_values"),
    EarlyStoppingPlugin: ("best_state", "best_val", "best_step"),
    LRSchedulerPlugin: ("scheduler", "rolling_metric", "_was_training", "_just_validated", "_executed_train_iteration"),
}
_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, Enum, PurePath, torch.device, torch.dtype)


def capture(strategy: Any) -> dict[str, Any]:
    """Return everything a strategy needs to go on, as plain values that later training does not change.

    Raises:
        ValueError: If something has state that cannot be saved; the message names it.
    """
    return {
        "strategy": type(strategy).__qualname__,
        "device": str(strategy.device),
        "experiences": strategy.clock.train_exp_counter,
        "progress": to_plain(getattr(strategy, "progress", None), "strategy.progress"),
        "stop_training": getattr(strategy, "_stop_training", False),
        "model": model_to_plain(strategy.model),
        "optimizer": optimizer_to_plain(strategy),
        "own": _own_to_plain(strategy),
        "criterion": _criterion_to_plain(strategy),
        "plugins": _plugins_to_plain(strategy),
        "past_data": past_data_to_plain(strategy),
        "random": random_to_plain(),
    }


def restore(strategy: Any, plain: dict[str, Any], device: torch.device | None = None) -> None:
    """Put the captured state into `strategy`, which has been built as the captured one was.

    `restored(strategy)` is then called on the plugins that have such a method.

    Args:
        strategy: The strategy to fill; its model and optimizer grow to the captured shapes.
        plain: What `capture` returned.
        device: Where tensors of plugins go; `strategy.device` by default, where the model and optimizer state go.

    Raises:
        ValueError: If the state does not fit; `strategy` is as it was before.
    """
    before = {"own": _own_to_plain(strategy), "criterion": _criterion_to_plain(strategy)}
    before |= {"plugins": _plugins_to_plain(strategy), "random": random_to_plain()}
    undo_model = undo_for(strategy)
    try:
        _check_fits(strategy, plain, before)
        device = device or strategy.device
        model_from_plain(strategy, plain["model"])
        optimizer_from_plain(strategy, plain["optimizer"])
        _fill(strategy, plain, device, floats=plain["device"] == "cpu")
    except Exception as error:
        undo_model()
        _fill(strategy, before, None, floats=False)
        raise ValueError(f"the saved state does not fit this strategy, which is left as it was: {error}") from error
    strategy._stop_training = plain["stop_training"]
    if hasattr(strategy, "progress"):
        strategy.progress = from_plain(plain["progress"])
    trigger_plugins(strategy, "restored")


def restore_past_data(strategy: Any, plain: dict[str, Any]) -> None:
    """Have a fresh `Cumulative` find the data of past experiences again; part of loading a file, not of `restore`."""
    past_data_from_plain(strategy, plain["past_data"])


def _check_fits(strategy: Any, plain: dict[str, Any], before: dict[str, Any]) -> None:
    for what, saved, own in (
        ("strategy", plain["strategy"], type(strategy).__qualname__),
        ("model", plain["model"]["class"], type(strategy.model).__qualname__),
        ("optimizer", plain["optimizer"]["class"], type(strategy.optimizer).__qualname__),
        ("plugins with state", *([name for name, _ in state["plugins"]] for state in (plain, before))),
    ):
        if saved != own:
            raise ValueError(f"{what}: saved with {saved}, built with {own}")
    if plain["progress"] is not None and not hasattr(strategy, "progress"):
        raise ValueError("it was saved inside an experience, and this strategy is not Resumable")


def _fill(strategy: Any, plain: dict[str, Any], device: torch.device | None, *, floats: bool) -> None:
    read = functools.partial(from_plain, device=device, floats=floats)
    if plain["own"] is not None:
        strategy.load_state_dict(read(plain["own"]))
    if plain["criterion"] is not None:
        strategy._criterion.load_state_dict(read(plain["criterion"]))
    stateful = [plugin for plugin in strategy.plugins if keeps_state(plugin) or _kind_of(plugin)]
    for plugin, (_, state) in zip(stateful, plain["plugins"], strict=True):
        if keeps_state(plugin):
            plugin.load_state_dict(read(state))
        else:
            _avalanche_from_plain(plugin, state, read, device)
    random_from_plain(plain["random"])


def _own_to_plain(strategy: Any) -> Any:
    """Return the state a strategy class adds to the templates, None where it says it has none."""
    if keeps_state(strategy):
        return to_plain(strategy.state_dict(), "strategy.state_dict()")
    # What the templates keep is saved elsewhere, or set again by the next train() or eval().
    known = {*_stored_names(SupervisedTemplate, include_init=True), "progress", "at_safe_point", "_resuming"}
    if isinstance(strategy, Cumulative):
        known.add("dataset")
    _refuse_hidden_state(strategy, strategy, known)
    return None


def _criterion_to_plain(strategy: Any) -> Any:
    criterion = getattr(strategy, "_criterion", None)
    if isinstance(criterion, nn.Module):
        return to_plain(criterion.state_dict(), "criterion.state_dict()")
    if criterion is not None and not is_wiring(criterion) and criterion not in strategy.plugins:
        _refuse_hidden_state(criterion, strategy, ())
    return None


def _plugins_to_plain(strategy: Any) -> list[list[Any]]:
    states = ((type(plugin).__qualname__, _plugin_to_plain(plugin, strategy)) for plugin in strategy.plugins)
    return [[name, state] for name, state in states if state is not None]


def _plugin_to_plain(plugin: Any, strategy: Any) -> Any:
    name = type(plugin).__qualname__
    if keeps_state(plugin):
        return to_plain(plugin.state_dict(), f"{name}.state_dict()")
    kind = _kind_of(plugin)
    if kind is None:
        _refuse_hidden_state(plugin, strategy, ())
        return None
    if type(plugin) is not kind:
        _refuse_hidden_state(plugin, strategy, _stored_names(kind, include_init=True))
    state = {key: to_plain(getattr(plugin, key), f"{name}.{key}") for key in _AVALANCHE_STATE[kind]}
    if kind is EvaluationPlugin:
        state["metrics"] = [to_plain(m, f"metric {type(m).__qualname__}") for m in plugin.metrics]
    return state


def _kind_of(plugin: Any) -> type | None:
    return next((kind for kind in _AVALANCHE_STATE if isinstance(plugin, kind)), None)


def _avalanche_from_plain(plugin: Any, state: dict[str, Any], read: Callable, device: torch.device | None) -> None:
    metrics = getattr(plugin, "metrics", [])
    saved, own = [m["class"] for m in state.get("metrics", [])], [type(m).__qualname__ for m in metrics]
    if saved != own:
        raise ValueError(f"metrics of the evaluator: saved with {saved}, built with {own}")
    for key, value in state.items():
        # A metric's tensors are on the CPU unless they were seen elsewhere, so floats do not move.
        vars(plugin)[key] = from_plain(value, getattr(plugin, key), device=device)


def _refuse_hidden_state(holder: Any, strategy: Any, known: Collection[str]) -> None:
    """Raise a ValueError if `holder`, which has no `state_dict`, has an attribute that may change in training.

    That is an attribute that a method other than `__init__` assigns, or whose value can change in place. Plain
    constants and references to the strategy's model, optimizer and plugins, saved by themselves, are neither.
    """
    saved_elsewhere = [strategy.model, strategy.optimizer, getattr(strategy, "_criterion", None), *strategy.plugins]
    kind: Any = type(holder)
    assigned = _stored_names(kind, include_init=False)
    for name, value in vars(holder).items():
        if name in known or is_wiring(value) or any(value is other for other in saved_elsewhere):
            continue
        if name in assigned or not _is_constant(value):
            raise ValueError(
                f"{type(holder).__qualname__} keeps state in its attribute {name!r} and cannot be saved: give it "
                "state_dict() and load_state_dict(state), which may return {} and do nothing if it needs nothing kept"
            )


def _is_constant(value: Any) -> bool:
    if isinstance(value, (tuple, frozenset)):
        return all(_is_constant(item) for item in value)
    return isinstance(value, (*_CONSTANTS, np.generic))


@functools.cache
def _stored_names(kind: type, *, include_init: bool) -> frozenset[str]:
    """Return the names of the attributes that the methods of a class and of its bases assign."""
    functions = [
        function
        for base in kind.__mro__
        for name, function in vars(base).items()
        if isinstance(function, FunctionType) and (include_init or name != "__init__")
    ]
    return frozenset(
        step.argval for function in functions for step in dis.get_instructions(function) if step.opname == "STORE_ATTR"
    )


def random_to_plain() -> dict[str, Any]:
    """Return the global random states of torch, CUDA (where it is in use), NumPy and Python as tensors and numbers."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (the global state is what other code draws from)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, torch.tensor(words), gauss],
    }


def random_from_plain(plain: dict[str, Any]) -> None:
    """Set the global random states; those of CUDA devices that are not here are left out."""
    version, words, gauss = plain["python"]
    name, keys, *rest = plain["numpy"]
    torch.set_rng_state(plain["torch"])
    for index, state in enumerate(plain["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, index)
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate((version, tuple(words.tolist()), gauss))
