"""A model with its shape and an optimizer by parameter names, as plain values and back."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from avalanche.models import DynamicModule, IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn

from avl_plugins.checkpoint.plain import from_plain, to_plain

# Their growth is known here; other modules that grow have to say how in their extra state.
_GROWN_HERE = (DynamicModule, MultiTaskModule, IncrementalClassifier, MultiHeadClassifier)


def model_to_plain(model: nn.Module) -> dict[str, Any]:
    """Return parameters, buffers, extra state, modes and frozen parameters of a model.

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
    return {
        "class": type(model).__qualname__,
        "state": to_plain(dict(model.state_dict()), "model.state_dict()"),
        "training": {name: module.training for name, module in model.named_modules()},
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "tasks": {
            name: [module.max_class_label, sorted(module.known_train_tasks_labels)]
            for name, module in model.named_modules()
            if isinstance(module, MultiTaskModule)
        },
    }


def model_from_plain(strategy: Any, plain: dict[str, Any]) -> None:
    """Move the model to the strategy's device, grow it to the saved shape and fill it, in place."""
    model = strategy.model.to(strategy.device)  # as train() does, which would leave optimizer state behind
    state = from_plain(plain["state"])
    _grow_heads(model, state)
    model.load_state_dict(state)
    modules = dict(model.named_modules())
    for name, training in plain["training"].items():
        modules[name].training = training
    for name, (max_class_label, known) in plain["tasks"].items():
        modules[name].max_class_label = max_class_label
        modules[name].known_train_tasks_labels = set(known)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in plain["frozen"])


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


def optimizer_to_plain(strategy: Any) -> dict[str, Any]:
    """Return groups, state and the names Avalanche has learned, all by parameter name.

    After an evaluation that grew the model the optimizer still holds the parameters from before. They go by the name
    under which `optimized_param_id` knows them, and without their state, as the next `make_optimizer()` will have it.

    Raises:
        ValueError: If a parameter that is being trained belongs neither to the model nor to the criterion.
    """
    named = _named_parameters(strategy)
    learned = getattr(strategy, "optimized_param_id", None)
    names = {id(p): name for name, p in (learned or {}).items() if name in named}
    names |= {id(p): name for name, p in named.items()}
    optimizer = strategy.optimizer
    groups, state = [], {}
    for group in optimizer.param_groups:
        members = []
        for parameter in group["params"]:
            if id(parameter) in names:
                members.append(names[id(parameter)])
            elif parameter.grad is not None or optimizer.state.get(parameter):
                raise ValueError(
                    f"the optimizer trains a parameter of shape {tuple(parameter.shape)} that is in neither the "
                    "model nor the criterion; train with remove_params=True if it has been taken out of the model"
                )
        groups.append(
            {**{k: to_plain(v, f"optimizer {k}") for k, v in group.items() if k != "params"}, "params": members}
        )
    for parameter, values in optimizer.state.items():
        name = names.get(id(parameter), "")
        if values and named.get(name) is parameter:
            state[name] = to_plain(values, f"optimizer state of {name}")
    return {
        "class": type(optimizer).__qualname__,
        "groups": groups,
        "state": state,
        "learned": None if learned is None else [name for name in learned if name in named],
    }


def optimizer_from_plain(strategy: Any, plain: dict[str, Any]) -> None:
    """Give the optimizer the saved groups, with the model's parameters in the saved order, and their state."""
    optimizer, named = strategy.optimizer, _named_parameters(strategy)
    fresh, saved = optimizer.param_groups, plain["groups"]
    if len(saved) < len(fresh):
        raise ValueError(f"optimizer: saved with {len(saved)} parameter groups, built with {len(fresh)}")
    if len(names := [name for group in saved for name in group["params"]]) != len(set(names)):
        raise ValueError("optimizer: the same parameter is in it twice")
    # Lists are replaced rather than changed, so that undoing needs no copy of the state.
    optimizer.param_groups = [
        {**(fresh[i] if i < len(fresh) else fresh[0]), "params": [named[name] for name in group["params"]]}
        for i, group in enumerate(saved)
    ]
    places = {name: place for place, name in enumerate(names)}
    groups = [{**from_plain(group), "params": [places[name] for name in group["params"]]} for group in saved]
    state = {places[name]: from_plain(values) for name, values in plain["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    if hasattr(strategy, "optimized_param_id"):
        learned = plain["learned"]
        strategy.optimized_param_id = None if learned is None else {name: named[name] for name in learned}


def undo_for(strategy: Any) -> Callable[[], None]:
    """Return a function that puts model and optimizer back as they are now, also after they have grown."""
    undo_model, optimizer = undo_for_model(strategy.model), strategy.optimizer
    groups, state = optimizer.param_groups, optimizer.state
    learned = getattr(strategy, "optimized_param_id", None)

    def undo() -> None:
        undo_model()
        optimizer.param_groups, optimizer.state = groups, state
        if hasattr(strategy, "optimized_param_id"):
            strategy.optimized_param_id = learned

    return undo


def undo_for_model(model: nn.Module) -> Callable[[], None]:
    """Return a function that puts a model back as it is now, also after it has grown."""
    modules = [(module, _copied_containers(vars(module))) for module in model.modules()]
    values = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def undo() -> None:
        for module, attributes in modules:
            vars(module).clear()
            vars(module).update(attributes)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)

    return undo


def _copied_containers(value: Any) -> Any:
    if type(value) in (list, set):
        return type(value)(_copied_containers(item) for item in value)
    if isinstance(value, dict):
        copy = value.copy() if type(value) is not defaultdict else defaultdict(value.default_factory)
        copy.update({key: _copied_containers(item) for key, item in value.items()})
        return copy
    return value


def _named_parameters(strategy: Any) -> dict[str, Tensor]:
    """Return the parameters a strategy may train: the model's, and those of a criterion that is a module."""
    criterion = getattr(strategy, "_criterion", None)
    own = criterion.named_parameters() if isinstance(criterion, nn.Module) else ()
    return dict(strategy.model.named_parameters()) | {f"criterion: {name}": p for name, p in own}
