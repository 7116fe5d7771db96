"""Names of modules and parameters without what torch.compile and DataParallel put into them.

A checkpoint holds bare names, so that compiled, parallel and plain models can load each other's files.
"""

from typing import Any

from torch import nn

__all__ = ["bare_class", "bare_name", "full_name", "with_bare_names"]

_COMPILED = "_orig_mod"
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_WRAPPERS = ("OptimizedModule", *(kind.__qualname__ for kind in _PARALLEL))


def bare_class(model: nn.Module) -> str:
    """Return the class of the model inside its wrappers."""
    while inner := _inner(model):
        model = getattr(model, inner)
    return type(model).__qualname__


def bare_name(model: nn.Module, name: str) -> str:
    """Return a name without the parts that stand for wrappers in the model; those of torch.compile anywhere."""
    parts: list[str] = []
    module: Any = model
    for part in name.split("."):
        if part not in (_COMPILED, _inner(module)):
            parts.append(part)
        module = getattr(module, part, None)
    return ".".join(parts)


def full_name(model: nn.Module, bare: str) -> str:
    """Return the name that something has in the model, or will have once the model has grown to it."""
    parts: list[str] = []
    module: Any = model
    for part in bare.split("."):
        while inner := _inner(module):
            parts.append(inner)
            module = getattr(module, inner)
        parts.append(part)
        module = getattr(module, part, None)
    return ".".join(parts)


def with_bare_names(plain: dict[str, Any], built: nn.Module) -> dict[str, Any]:
    """Return a strategy's state with bare names, which the first files lack, and without a wrapper for a class."""
    model, optimizer = plain["model"], plain["optimizer"]
    if "transient" in model:
        return plain
    wrapped = model["class"] in _WRAPPERS

    def bare(name: str) -> str:
        parts = name.split(".")
        while wrapped and parts and parts[0] in (_COMPILED, "module"):
            parts.pop(0)
        return bare_name(built, ".".join(parts))

    def renamed(entries: Any) -> Any:
        if isinstance(entries, dict):
            return {bare(name): value for name, value in entries.items()}
        return entries and [bare(name) for name in entries]

    names = {key: renamed(model[key]) for key in ("state", "training", "frozen", "tasks")}
    groups = [{**group, "params": renamed(group["params"])} for group in optimizer["groups"]]
    optimizer = {**optimizer, "groups": groups, **{key: renamed(optimizer[key]) for key in ("state", "learned")}}
    names["class"] = None if wrapped else model["class"]
    return {**plain, "model": {**model, **names}, "optimizer": optimizer}


def _inner(module: Any) -> str | None:
    """Return the name of the module that a wrapper wraps."""
    if isinstance(module, nn.Module) and _COMPILED in module._modules:
        return _COMPILED
    return "module" if isinstance(module, _PARALLEL) else None
