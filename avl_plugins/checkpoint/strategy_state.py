"""The state of a strategy as plain values, and back, all or nothing."""

import copy
import functools
import random
from collections.abc import Callable
from operator import attrgetter
from types import NoneType
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.utils import trigger_plugins
from torch import nn

from avl_plugins.checkpoint.known import UnsaveableError, keeps_tensors_on_device, refuse_hidden_state, state_names
from avl_plugins.checkpoint.model_state import model_from_plain, model_to_plain
from avl_plugins.checkpoint.names import bare_class, with_bare_names
from avl_plugins.checkpoint.optimizer_state import optimizer_from_plain, optimizer_to_plain
from avl_plugins.checkpoint.past_data import keeps_past_data, past_data_to_plain
from avl_plugins.checkpoint.plain import KIND, from_plain, is_wiring, keeps_state, of_same_kind, to_plain
from avl_plugins.checkpoint.progress import Progress
from avl_plugins.checkpoint.undo import undo_for

__all__ = ["capture", "random_from_plain", "random_to_plain", "restore"]

_COPY_OF_MODEL = "model"
"""Kind of a value that is a copy of the model from before."""
# What a captured state consists of.
_FORM: dict[str, type | tuple[type, ...]] = {
    "strategy": str,
    "device": str,
    "experiences": int,
    "progress": (dict, NoneType),
    "stop_training": bool,
    "model": dict,
    "optimizer": (dict, NoneType),
    "own": object,
    "criterion": object,
    "plugins": list,
    "past_data": (dict, NoneType),
    "random": dict,
}


def capture(strategy: Any) -> dict[str, Any]:
    """Return everything a strategy needs to go on, as plain values that later training does not change.

    Raises:
        UnsaveableError: If something has state that cannot be saved; the message names it.
    """
    criterion, progress = _criterion(strategy), getattr(strategy, "progress", None)
    for holder in (strategy, criterion, *strategy.plugins):
        if holder is not None:
            refuse_hidden_state(holder, strategy)
    try:
        return {
            "strategy": type(strategy).__qualname__,
            "device": str(strategy.device),
            "experiences": strategy.clock.train_exp_counter,
            "progress": progress and to_plain(progress.to_plain(), "strategy.progress"),
            "stop_training": getattr(strategy, "_stop_training", False),
            "model": model_to_plain(strategy.model),
            "optimizer": optimizer_to_plain(strategy),
            "own": _state_to_plain(strategy, "strategy"),
            "criterion": _state_to_plain(criterion, "criterion"),
            "plugins": [[name, _state_to_plain(plugin, name)] for name, plugin in _stateful_plugins(strategy)],
            "past_data": past_data_to_plain(strategy),
            "random": random_to_plain(),
        }
    except ValueError as error:
        raise UnsaveableError(str(error)) from error


def restore(
    strategy: Any,
    plain: dict[str, Any],
    device: torch.device | None = None,
    *,
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Put the captured state into `strategy`, which has been built as the captured one was.

    `restored(strategy)` is then called on the plugins that have such a method.

    Args:
        strategy: The strategy to fill; its model and optimizer grow to the captured shapes.
        plain: What `capture` returned.
        device: Where tensors of plugins go; `strategy.device` by default, where the model and optimizer state go.
        finish: What belongs to it, and is done last.

    Raises:
        ValueError: If the state does not fit. Whatever is raised, an interruption too, `strategy` is as it was before.
    """
    undo, randomness = undo_for(strategy), random_to_plain()
    try:
        plain = with_bare_names(_checked(plain), strategy.model)
        _check_fits(strategy, plain)
        _fill(strategy, plain, device or strategy.device)
        finish()
        trigger_plugins(strategy, "restored")
    except BaseException as error:
        undo()
        random_from_plain(randomness)
        if not isinstance(error, Exception):
            raise
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"the saved state does not fit this strategy, which is left as it was: {reason}") from error


def _checked(plain: Any) -> dict[str, Any]:
    """Return a state in which what every state has is there."""
    for name, kind in _FORM.items():
        if not isinstance(plain, dict) or name not in plain:
            raise ValueError(f"it has no entry {name!r}")
        if not isinstance(plain[name], kind):
            raise ValueError(f"its entry {name!r} is a {type(plain[name]).__name__}")
    torch.device(plain["device"])
    return plain


def _check_fits(strategy: Any, plain: dict[str, Any]) -> None:
    optimizer, criterion = strategy.optimizer, _criterion(strategy)
    saved_optimizer = plain["optimizer"] and plain["optimizer"]["class"]
    for what, saved, own in (
        ("strategy", plain["strategy"], type(strategy).__qualname__),
        ("model", plain["model"]["class"] or bare_class(strategy.model), bare_class(strategy.model)),
        ("optimizer", saved_optimizer, optimizer and type(optimizer).__qualname__),
        ("plugins with state", [n for n, _ in plain["plugins"]], [n for n, _ in _stateful_plugins(strategy)]),
        ("the strategy's own state", plain["own"] is not None, _has_state(strategy)),
        ("a criterion with state", plain["criterion"] is not None, _has_state(criterion)),
        ("data of the past", plain["past_data"] is not None, keeps_past_data(strategy, plain["experiences"])),
    ):
        if saved != own:
            raise ValueError(f"{what}: saved with {saved}, built with {own}")
    if plain["progress"] is not None and not hasattr(strategy, "progress"):
        raise ValueError("it was saved inside an experience, and this strategy is not Resumable")


def _fill(strategy: Any, plain: dict[str, Any], device: torch.device) -> None:
    read = functools.partial(from_plain, device=device)
    floats = plain["device"] == "cpu"
    model = strategy.model.to(strategy.device)  # as train() does, which would leave optimizer state behind
    states = [state for _, state in plain["plugins"]]
    unfilled = copy.deepcopy(model) if any(map(_has_copy_of_model, states)) else None
    model_from_plain(model, plain["model"])
    if plain["optimizer"] is not None:
        optimizer_from_plain(strategy, plain["optimizer"])
    holders = [strategy, _criterion(strategy), *(plugin for _, plugin in _stateful_plugins(strategy))]
    for holder, state in zip(holders, [plain["own"], plain["criterion"], *states], strict=True):
        if keeps_state(holder):
            holder.load_state_dict(read(state, floats=floats))
        elif state is not None:
            move = floats and keeps_tensors_on_device(type(holder))
            _attributes_from_plain(holder, state, functools.partial(read, floats=move), unfilled)
    strategy._stop_training = plain["stop_training"]
    if hasattr(strategy, "progress"):
        progress = plain["progress"]
        strategy.progress = None if progress is None else Progress.from_plain(from_plain(progress))
    if strategy.clock.train_exp_counter != plain["experiences"]:
        raise ValueError("its clock does not show the number of experiences")
    random_from_plain(plain["random"])


def _criterion(strategy: Any) -> Any:
    """Return the criterion where it is an object that may have state, and None where it is a function."""
    criterion = getattr(strategy, "_criterion", None)
    return None if is_wiring(criterion) or any(criterion is plugin for plugin in strategy.plugins) else criterion


def _stateful_plugins(strategy: Any) -> list[tuple[str, Any]]:
    return [(type(plugin).__qualname__, plugin) for plugin in strategy.plugins if _has_state(plugin)]


def _has_state(holder: Any) -> bool:
    return keeps_state(holder) or bool(state_names(type(holder)))


def _has_copy_of_model(state: Any) -> bool:
    values = state.values() if isinstance(state, dict) else ()
    return any(isinstance(value, dict) and value.get(KIND) == _COPY_OF_MODEL for value in values)


def _state_to_plain(holder: Any, name: str) -> Any:
    """Return what an object says by `state_dict()`, or what is known of its class; None where it has no state."""
    if keeps_state(holder):
        return to_plain(holder.state_dict(), f"{name}.state_dict()")
    state = {key: attrgetter(key)(holder) for key in state_names(type(holder))}
    return {key: _attribute_to_plain(value, f"{name}.{key}") for key, value in state.items()} or None


def _attribute_to_plain(value: Any, where: str) -> Any:
    if isinstance(value, nn.Module):
        return {KIND: _COPY_OF_MODEL, **model_to_plain(value)}
    return to_plain(value, where)


def _attributes_from_plain(holder: Any, state: dict[str, Any], read: Callable, unfilled: nn.Module | None) -> None:
    names = state_names(type(holder))
    if wrong := set(names) ^ state.keys():
        raise ValueError(f"{type(holder).__qualname__}: entries missing or unknown: {', '.join(sorted(wrong))}")
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner, plain = attrgetter(path)(holder) if path else holder, state[name]
        current = getattr(owner, leaf)
        if isinstance(holder, EvaluationPlugin) and name == "metrics":
            _check_metrics(plain, current)
        if isinstance(plain, dict) and plain.get(KIND) == _COPY_OF_MODEL:
            value: Any = current if isinstance(current, nn.Module) else copy.deepcopy(unfilled)
            model_from_plain(value, plain)
        else:
            value = of_same_kind(read(plain, current), current, f"{type(holder).__qualname__}.{name}", none=True)
        vars(owner)[leaf] = value


def _check_metrics(plain: list[Any], current: list[Any]) -> None:
    saved, own = [metric["class"] for metric in plain], [type(metric).__qualname__ for metric in current]
    if saved != own:
        raise ValueError(f"metrics of the evaluator: saved with {saved}, built with {own}")


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
