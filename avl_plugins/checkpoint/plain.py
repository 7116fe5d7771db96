"""Python objects as plain values, and back.

A checkpoint holds None, bool, int, float, complex, str, list, tuple, dict and tensors and nothing else, which is what
`torch.load(weights_only=True)` reads. Whatever else a strategy keeps is written as a dict with the key "@", which
names its kind. Nothing here builds an object from a name in the file, except the metric classes of Avalanche.
"""

import functools
import io
import logging
import threading
import time
import types
import weakref
from collections import defaultdict, deque
from typing import Any

import avalanche.evaluation.metrics as avalanche_metrics
import numpy as np
import torch
from avalanche.evaluation.metric_definitions import Metric
from avalanche.evaluation.metric_results import AlternativeValues, LoggingType, MetricValue, TensorImage
from avalanche.evaluation.metrics import ElapsedTime
from avalanche.training.templates.base import BaseTemplate
from avalanche.training.utils import ParamData
from matplotlib.figure import Figure
from PIL.Image import Image
from PIL.Image import open as open_image
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy
from torch.optim.lr_scheduler import LRScheduler

KIND = "@"
SCALARS = (type(None), bool, int, float, complex, str)
"""Types of the values that are written as they are."""
_KINDS = ((int, float, complex, np.number, np.bool_, Tensor, np.ndarray), (str, bytes), (list, tuple, deque), dict, set)
_METRIC_CLASSES = {
    c.__qualname__: c for c in vars(avalanche_metrics).values() if isinstance(c, type) and Metric in c.__mro__
}
_WIRING = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    functools.partial,
    threading.Thread,
    logging.Logger,
    io.IOBase,
    BaseTemplate,
)
_drawn: weakref.WeakKeyDictionary[Figure, Tensor] = weakref.WeakKeyDictionary()


def to_plain(value: Any, where: str) -> Any:
    """Return `value` as plain values; tensors are copied to the CPU, so that later changes do not reach them.

    NumPy scalars become Python's, other dicts, lists and queues become dict and list, and a matplotlib figure is drawn
    and becomes a PIL image. `where` names the value in errors.

    Raises:
        ValueError: If there is something in `value` that cannot be written as plain values.
    """
    if type(value) in SCALARS:
        return value
    if isinstance(value, np.generic):
        return to_plain(value.item(), where)
    if is_lazy(value):
        return {KIND: "uninitialised", "dtype": str(value.dtype), "buffer": isinstance(value, UninitializedBuffer)}
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise ValueError(f"{where} is a {value.layout} tensor, which a checkpoint cannot hold; make it dense")
        copy = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return copy if value.device.type == "cpu" else {KIND: "device", "value": copy}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {KIND: "array", "value": torch.from_numpy(value.copy())}
    if isinstance(value, dict):
        items = [(to_plain(k, f"a key of {where}"), to_plain(v, f"{where}[{k!r}]")) for k, v in value.items()]
        if all(type(k) in SCALARS and k != KIND for k, _ in items):
            return dict(items)
        return {KIND: "dict", "items": [list(item) for item in items]}
    if isinstance(value, tuple):
        return tuple(to_plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, (list, deque)):
        return [to_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return {KIND: "set", "items": [to_plain(item, where) for item in value]}
    if isinstance(value, (bytes, bytearray)):
        return {KIND: "bytes", "value": torch.tensor(list(value), dtype=torch.uint8)}
    if isinstance(value, (Figure, Image)):
        return {KIND: "png", "value": _png(value)}
    if isinstance(value, TensorImage):
        if getattr(value, "png", None) is not None:  # a figure's Picture, of avl_plugins.metrics
            return {KIND: "png", "value": torch.frombuffer(bytearray(value.png), dtype=torch.uint8)}
        return {KIND: "image", "value": to_plain(value.image, where)}
    if isinstance(value, AlternativeValues):
        return {KIND: "alternatives", "items": [to_plain(v, where) for v in value.alternatives]}
    if isinstance(value, MetricValue):
        fields = (value.name, to_plain(value.value, value.name), value.x_plot, value.logging_type.name)
        return {KIND: "metric value", "fields": fields}
    if isinstance(value, ParamData):
        return {KIND: "parameter data", "name": value.name, "value": to_plain(value.data, where)}
    if isinstance(value, ElapsedTime):
        started = value._init_time is not None
        return {KIND: "elapsed", "seconds": value.result() if started else None}
    if keeps_state(value):
        return {KIND: "object", "class": type(value).__qualname__, "state": to_plain(value.state_dict(), where)}
    if Metric in type(value).__mro__:
        return _metric_to_plain(value)
    raise ValueError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold; "
        "give its owner state_dict() and load_state_dict(state)"
    )


def from_plain(plain: Any, current: Any = None, *, device: torch.device | None = None, floats: bool = False) -> Any:
    """Return the value that `to_plain` wrote, filled into `current` where that is a container or an object.

    Filling in place keeps what a file cannot hold: the factory of a defaultdict, the length of a deque, functions.
    Tensors that were on an accelerator go to `device`; with `floats`, all floating point ones do.

    Raises:
        ValueError: If the kind is unknown or an object of another class is expected.
    """
    again = functools.partial(from_plain, device=device, floats=floats)
    if isinstance(plain, Tensor):
        moved = device is not None and floats and plain.is_floating_point()
        return plain.to(device, copy=True) if moved else plain.clone()
    if isinstance(plain, tuple):
        before = current if isinstance(current, tuple) and len(current) == len(plain) else (None,) * len(plain)
        return tuple(again(item, old) for item, old in zip(plain, before, strict=True))
    if isinstance(plain, list):
        return _refill_list(plain, current, again)
    if not isinstance(plain, dict):
        return plain
    kind = plain.get(KIND)
    if kind is None or kind == "dict":
        items = plain.items() if kind is None else [(again(k), v) for k, v in plain["items"]]
        return _refill_dict(items, current, again)
    if kind == "device":
        return plain["value"].to(device or "cpu", copy=True)
    if kind == "array":
        return plain["value"].clone().numpy()
    if kind == "set":
        return {again(item) for item in plain["items"]}
    if kind == "bytes":
        return plain["value"].numpy().tobytes()
    if kind == "png":
        return open_image(io.BytesIO(plain["value"].numpy().tobytes()))
    if kind == "image":
        return TensorImage(again(plain["value"]))
    if kind == "alternatives":
        return AlternativeValues(*(again(item) for item in plain["items"]))
    if kind == "metric value":
        name, value, x, logging_type = plain["fields"]
        return MetricValue(None, name, again(value), x, LoggingType[logging_type])  # type: ignore[arg-type]
    if kind == "elapsed" and isinstance(current, ElapsedTime):
        # The clock of another process: the pause between saving and loading is left out.
        now = time.perf_counter()
        current._prev_time = None if plain["seconds"] is None else now
        current._init_time = None if plain["seconds"] is None else now - plain["seconds"]
        return current
    if kind == "object" and type(current).__qualname__ == plain["class"]:
        current.load_state_dict(again(plain["state"]))
        return current
    if kind == "metric":
        return _metric_from_plain(plain, current, again)
    if kind == "uninitialised":
        lazy: Any = UninitializedBuffer if plain["buffer"] else UninitializedParameter
        return lazy(requires_grad=False, dtype=getattr(torch, plain["dtype"].removeprefix("torch.")))
    if kind == "parameter data":
        value = again(plain["value"])
        return ParamData(plain["name"], init_tensor=value, device=value.device)
    raise ValueError(f"it holds a value of kind {kind!r} where this strategy has a {type(current).__name__}")


def _metric_to_plain(metric: Any) -> Any:
    name = type(metric).__qualname__
    own = {key: to_plain(value, f"{name}.{key}") for key, value in vars(metric).items() if not is_wiring(value)}
    return {KIND: "metric", "class": name, "attributes": own}


def _metric_from_plain(plain: dict[str, Any], current: Any, again: Any) -> Any:
    name = plain["class"]
    if current is None and name in _METRIC_CLASSES:
        current = _METRIC_CLASSES[name]()
    if type(current).__qualname__ != name:
        raise ValueError(f"it holds a metric {name} where this strategy has a {type(current).__name__}")
    # What is None in a fresh metric may be a process or the strategy by now, which are in no file.
    own = {attribute for attribute, value in vars(current).items() if not (value is None or is_wiring(value))}
    if missing := own - plain["attributes"].keys():
        raise ValueError(f"it holds a metric {name} without {', '.join(sorted(missing))}")
    for attribute, value in plain["attributes"].items():
        before = vars(current).get(attribute)
        vars(current)[attribute] = of_same_kind(again(value, before), before, f"{name}.{attribute}", none=True)
    return current


def of_same_kind(value: Any, before: Any, where: str, *, none: bool = False) -> Any:
    """Return `value`, which takes the place of `before`: a number of a number, a list of a list, any value of None.

    Args:
        value: What a file holds.
        before: What is there.
        where: What errors call it.
        none: Whether it may be None: training may have set what was None, and is undone.

    Raises:
        ValueError: If it is of another kind.
    """
    if value is before or before is None or (value is None and none and not _is_needed(before)):
        return value
    kind = next((k for k in _KINDS if isinstance(before, k)), type(before))
    if not isinstance(value, kind):
        raise ValueError(f"{where} is a {type(value).__name__} in it, and a {type(before).__name__} in this strategy")
    return value


def _is_needed(value: Any) -> bool:
    return isinstance(value, (LRScheduler, defaultdict)) or Metric in type(value).__mro__


def _refill_dict(items: Any, current: Any, again: Any) -> Any:
    if not isinstance(current, dict):
        return {key: again(value) for key, value in items}
    factory = getattr(current, "default_factory", None)

    def before(key: Any) -> Any:
        return current[key] if key in current else factory() if factory is not None else None

    filled = {key: again(value, before(key)) for key, value in items}
    if factory is not None:
        filled = {key: of_same_kind(value, factory(), f"entry {key!r}") for key, value in filled.items()}
    current.clear()
    current.update(filled)
    return current


def _refill_list(plain: list[Any], current: Any, again: Any) -> Any:
    if not isinstance(current, (list, deque)):
        return [again(item) for item in plain]
    before = list(current) if len(current) == len(plain) else [None] * len(plain)
    filled = [again(item, old) for item, old in zip(plain, before, strict=True)]
    current.clear()
    current.extend(filled)
    return current


def is_wiring(value: Any) -> bool:
    """Tell whether `value` ties an object to its surroundings (functions, files, the strategy) and is no state."""
    return isinstance(value, _WIRING) or type(value).__module__.startswith("psutil")


def keeps_state(value: Any) -> bool:
    """Tell whether `value` follows the protocol `state_dict()`, `load_state_dict(state)`."""
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def _png(picture: Figure | Image) -> Tensor:
    """Return the bytes of a PNG file; a figure is drawn once, since histories keep figures for ever."""
    buffer = io.BytesIO()
    if isinstance(picture, Image):
        picture.save(buffer, format="png")
    elif picture in _drawn:
        return _drawn[picture]
    else:
        picture.savefig(buffer, format="png")
    png = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    if isinstance(picture, Figure):
        _drawn[picture] = png
    return png
