"""Growing a parameter together with its optimizer state.

Dynamically expandable networks and progressive networks add units to layers that are being trained. Replacing the
`Parameter` by hand loses its momentum, and `make_optimizer()` then puts it into the optimizer a second time;
resizing `.data` leaves optimizer state of the old shape behind. `grow_parameter` does the whole exchange at once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from avl_plugins.tasks.arguments import check_callable, check_count

__all__ = ["grow_parameter"]


def grow_parameter(
    model: nn.Module,
    name: str,
    shape: Sequence[int],
    *,
    init: Tensor | Callable[[Tensor], Any],
    owner: Any,
) -> nn.Parameter:
    """Replace a parameter of `model` by a larger one that starts with the old values.

    With old shape (d_1, ..., d_n) and new shape (D_1, ..., D_n), D_i >= d_i, the block [:d_1, ..., :d_n] of the new
    parameter holds the old values, bit for bit, and the rest comes from `init`. In the optimizer the new parameter
    takes the place of the old one in its group, and every state tensor of the old shape (momentum, exp_avg, ...) is
    padded with the value the optimizer gives a parameter it has never stepped (zero; Adagrad's initial accumulator,
    Rprop's step size). The step count is kept: Adam's bias correction is that of the old entries, so that the first
    step of a new entry is about (1 - beta1) / sqrt(1 - beta2) times the learning rate (3.2 for the defaults)
    where a fresh Adam makes it 1.

    `requires_grad`, dtype, device and the pending gradient (padded with zeros) are kept. A parameter shared by several
    modules is replaced in all of them. Attributes that describe the layer (`out_features`, ...) are the caller's to
    set, and hooks registered on the old tensor are not carried over.

    Args:
        model: the module that `name` is looked up in.
        name: qualified name, as in `model.named_parameters()`, for example `"fc1.weight"`.
        shape: the new shape, as many dimensions as the parameter has, none smaller.
        init: the new values: a tensor of the new shape, or a function that fills such a tensor in place
            (`torch.nn.init.zeros_`) or returns one. What it puts in the old block is overwritten.
        owner: who trains the parameter: an Avalanche strategy (its optimizer and its `optimized_param_id`, by which
            `make_optimizer()` recognises parameters, both follow), a bare optimizer, or None where no optimizer
            has been built yet.

    Returns:
        The new parameter, which is the one in the model and in the optimizer.

    Raises:
        ValueError: If `name` is no parameter of `model` or has no shape yet, `shape` has another number of dimensions
            or is smaller somewhere, `init` gives another shape, the parameter is in none of the optimizer's groups, or
            the optimizer keeps a state tensor of another shape, which cannot be padded. Nothing has changed then.
        TypeError: If `shape` holds something else than integers, `init` is no tensor or function, or `owner` is neither
            a strategy, nor an optimizer, nor None.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from avl_plugins.growth import grow_parameter
        >>> layer = nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        >>> weight = grow_parameter(layer, "weight", (4, 3), init=nn.init.zeros_, owner=optimizer)
        >>> weight.shape, weight is layer.weight, weight is optimizer.param_groups[0]["params"][0]
        (torch.Size([4, 3]), True, True)
    """
    if not isinstance(init, Tensor):
        check_callable("init", init, "that fills a tensor in place or returns one, or a tensor")
    holders = dict(model.named_parameters(remove_duplicate=False))
    if name not in holders:
        raise ValueError(f"name: {name!r} is no parameter of the model; it has {sorted(holders)}")
    old = holders[name]
    if isinstance(old, nn.parameter.UninitializedParameter):
        raise ValueError(f"name: {name!r} has no shape yet, as its module is lazy; run a forward pass first")
    new_shape = _checked_shape(name, old, shape)
    optimizer = _optimizer_of(owner)

    block = tuple(slice(size) for size in old.shape)
    with torch.no_grad():
        new = nn.Parameter(_initial_values(init, old, new_shape), requires_grad=old.requires_grad)
        new[block] = old
        if old.grad is not None:
            new.grad = _padded(old.grad, new_shape, fill=0.0)

    if optimizer is not None:
        _exchange_in_optimizer(optimizer, name, old, new)
        learned_names = getattr(owner, "optimized_param_id", None) or {}
        for learned_name, parameter in learned_names.items():
            if parameter is old:
                learned_names[learned_name] = new
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is old:
                module._parameters[key] = new
    return new


def _checked_shape(name: str, old: nn.Parameter, shape: Sequence[int]) -> torch.Size:
    for size in shape:
        check_count("shape", size, low=0)
    new_shape = torch.Size(shape)
    if len(new_shape) != old.dim():
        raise ValueError(
            f"shape: {name} has {old.dim()} dimensions, {tuple(old.shape)}; {tuple(new_shape)} has {len(new_shape)}"
        )
    if any(new < size for new, size in zip(new_shape, old.shape, strict=True)):
        raise ValueError(f"shape: {name} cannot shrink from {tuple(old.shape)} to {tuple(new_shape)}")
    return new_shape


def _optimizer_of(owner: Any) -> Optimizer | None:
    optimizer = getattr(owner, "optimizer", owner)
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"owner must be an Avalanche strategy, a torch optimizer or None, got a {type(owner).__name__}")
    return optimizer


def _initial_values(init: Tensor | Callable[[Tensor], Any], old: Tensor, shape: torch.Size) -> Tensor:
    values = old.new_zeros(shape)
    given = init if isinstance(init, Tensor) else init(values)
    if not isinstance(given, Tensor | None):
        raise TypeError(f"init must return a tensor, or None if it fills the one it is given, got {given!r}")
    if given is not None and given is not values:
        if given.shape != shape:
            raise ValueError(f"init must give values of shape {tuple(shape)}, got {tuple(given.shape)}")
        values.copy_(given)
    return values


def _padded(tensor: Tensor, shape: torch.Size, fill: float) -> Tensor:
    larger = tensor.new_full(shape, fill)
    larger[tuple(slice(size) for size in tensor.shape)] = tensor
    return larger


def _exchange_in_optimizer(optimizer: Optimizer, name: str, old: nn.Parameter, new: nn.Parameter) -> None:
    """Put `new` in the place of `old` and pad the state; checks everything before changing anything."""
    places = [
        (group, index)
        for group in optimizer.param_groups
        for index, parameter in enumerate(group["params"])
        if parameter is old
    ]
    if not places:
        raise ValueError(
            f"owner: {name} is in no parameter group of the optimizer; add it to one, or pass owner=None "
            "if it is not meant to be trained"
        )
    state = {
        key: _grown_state(optimizer, places[0][0], name, key, value, old.shape, new.shape)
        for key, value in optimizer.state.get(old, {}).items()
    }
    for group, index in places:
        group["params"][index] = new
    if old in optimizer.state:
        del optimizer.state[old]
        optimizer.state[new] = state


def _grown_state(
    optimizer: Optimizer,
    group: dict[str, Any],
    name: str,
    key: str,
    value: Any,
    old_shape: torch.Size,
    new_shape: torch.Size,
) -> Any:
    if not isinstance(value, Tensor) or (value.dim() == 0 and len(old_shape) > 0):
        return value
    if value.shape != old_shape:
        raise ValueError(
            f"owner: {type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for {name} of shape "
            f"{tuple(old_shape)}, which cannot be grown; use an optimizer with state of the parameter's shape"
        )
    fill = 0.0
    if key == "sum":  # Adagrad
        fill = float(group.get("initial_accumulator_value", 0.0))
    elif key == "step_size":  # Rprop
        fill = float(group["lr"])
    return _padded(value, new_shape, fill)
