"""A model with its shape as plain values, and back."""

from collections.abc import Iterator
from typing import Any

import torch
from avalanche.models import DynamicModule, IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn

from avl_plugins.checkpoint.names import bare_class, bare_name, full_name
from avl_plugins.checkpoint.plain import from_plain, to_plain

__all__ = ["model_from_plain", "model_to_plain"]

# Their growth is known here; other modules that grow have to say how in their extra state.
_GROWN_HERE = (DynamicModule, MultiTaskModule, IncrementalClassifier, MultiHeadClassifier)


def model_to_plain(model: nn.Module) -> dict[str, Any]:
    """Return parameters, buffers, extra state, modes and frozen parameters of a model, by bare names.

    Raises:
        ValueError: If a module grows in a way that a file cannot repeat.
    """
    for name, module in model.named_modules():
        if isinstance(module, DynamicModule) and not _can_regrow(module):
            raise ValueError(
                f"{type(module).__qualname__} (module {name!r} of the model) changes its shape in adaptation() and a "
                "checkpoint could not be loaded: give it get_extra_state(), set_extra_state() and a "
                "load_state_dict pre-hook that grows it"
            )
    modules = {bare_name(model, name): module for name, module in model.named_modules()}
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return {
        "class": bare_class(model),
        "state": to_plain({bare_name(model, k): v for k, v in model.state_dict().items()}, "model.state_dict()"),
        "transient": to_plain({bare_name(model, k): v for k, v in _transient_buffers(model)}, "model.buffers()"),
        "training": {name: module.training for name, module in modules.items()},
        "frozen": [bare_name(model, name) for name in frozen],
        "tasks": {
            name: [module.max_class_label, sorted(module.known_train_tasks_labels)]
            for name, module in modules.items()
            if isinstance(module, MultiTaskModule)
        },
    }


def model_from_plain(model: nn.Module, plain: dict[str, Any]) -> None:
    """Grow a model to the saved shape and fill it, in place.

    Raises:
        ValueError: If what the file says of its modules does not fit.
    """
    state = {full_name(model, name): value for name, value in from_plain(plain["state"]).items()}
    _grow_heads(model, state)
    _make_buffers(model, state)
    model.load_state_dict(state)
    for name, value in plain.get("transient", {}).items():  # not in the first files
        _fill_transient(model, full_name(model, name), from_plain(value))
    _set_modes(model, plain)


def _set_modes(model: nn.Module, plain: dict[str, Any]) -> None:
    """Set what of modules and parameters is in no state_dict."""
    training, tasks, frozen = plain["training"], plain["tasks"], set(plain["frozen"])
    modules = {name: bare_name(model, name) for name, _ in model.named_modules()}
    parameters = {name: bare_name(model, name) for name, _ in model.named_parameters()}
    if unknown := set(training) ^ set(modules.values()) or frozen - set(parameters.values()):
        raise ValueError(f"modules or parameters that are only in the file, or only in the model: {sorted(unknown)}")
    if not all(isinstance(mode, bool) for mode in training.values()):
        raise ValueError("modes of modules that are neither True nor False")
    for name, module in model.named_modules():
        module.training = training[modules[name]]
        if isinstance(module, MultiTaskModule):
            largest, known = tasks[modules[name]]
            module.max_class_label, module.known_train_tasks_labels = int(largest), set(map(int, known))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = parameters[name] not in frozen


def _transient_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers that `state_dict()` leaves out: running values, caches and masks."""
    for name, module in model.named_modules():
        for key in module._non_persistent_buffers_set:
            if (value := module._buffers.get(key)) is not None:
                yield f"{name}.{key}" if name else key, value


def _fill_transient(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, key = name.rpartition(".")
    buffers = model.get_submodule(path)._buffers
    if key not in buffers:
        raise ValueError(f"buffer {name} is in the file, and not in the model")
    buffers[key] = value.to(_device(model))


def _make_buffers(model: nn.Module, state: dict[str, Any]) -> None:
    """Make the buffers that are registered as None and had been given a value when the model was saved."""
    modules = dict(model.named_modules())
    for name in state.keys() - model.state_dict().keys():
        path, _, key = name.rpartition(".")
        module = modules.get(path)
        # In torch's own modules None says how they were built: without running statistics, for example.
        if module is not None and key in module._buffers and not type(module).__module__.startswith("torch.nn."):
            module._buffers[key] = torch.zeros_like(state[name], device=_device(model))


def _device(model: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)


def _can_regrow(module: nn.Module) -> bool:
    kind = type(module)
    return kind.get_extra_state is not nn.Module.get_extra_state or any(
        kind.adaptation is known.adaptation  # type: ignore[attr-defined]
        for known in _GROWN_HERE
    )


def _grow_heads(model: nn.Module, state: dict[str, Any]) -> None:
    """Give Avalanche's classifiers, which cannot load a state of another shape, the shapes they have in `state`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, MultiHeadClassifier):
            prefix = f"{name}." if name else ""
            device = next(module.parameters()).device
            heads = [k.removeprefix(f"{prefix}classifiers.") for k in state if k.startswith(f"{prefix}classifiers.")]
            for task in dict.fromkeys(head.split(".")[0] for head in heads):
                if task not in module.classifiers:
                    head = IncrementalClassifier(
                        module.in_features, module.starting_out_features, masking=False, auto_adapt=False
                    )
                    module.classifiers[task] = head.to(device)
            for key in state:
                if key.startswith(f"{prefix}active_units_T"):
                    module.register_buffer(key.removeprefix(prefix), torch.zeros_like(state[key], device=device))
    for name, module in model.named_modules():
        if isinstance(module, IncrementalClassifier):
            prefix, old = f"{name}." if name else "", module.classifier
            weight = state.get(f"{prefix}classifier.weight")
            if weight is not None and weight.shape[0] > old.out_features:
                factory: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
                module.classifier = nn.Linear(old.in_features, weight.shape[0], **factory)
                units = state[f"{prefix}active_units"]
                module.active_units = torch.zeros_like(units, device=old.weight.device)
