"""The checks of arguments that all constructors share: kind, finite, range, integer, bool refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

__all__ = [
    "check_callable",
    "check_choice",
    "check_count",
    "check_each_layer",
    "check_flag",
    "check_kind",
    "check_number",
    "check_seed",
]


def check_number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    none: str | None = None,
) -> None:
    """Refuse what is not a finite number within the bounds.

    Args:
        name: The argument's.
        value: An int or float, also of NumPy; no bool.
        low: Smallest value.
        high: Largest value.
        open_low: Whether `low` itself is refused.
        open_high: Whether `high` itself is refused.
        none: What None means, where it is allowed.

    Raises:
        TypeError: It is no number.
        ValueError: It is not finite, or out of bounds.
    """
    _check(name, value, Real, "a number", low, high, open_low, open_high, none)


def check_count(name: str, value: Any, *, low: int = 1, high: float = math.inf, none: str | None = None) -> None:
    """Refuse what is not an integer within the bounds; see `check_number`."""
    _check(name, value, Integral, "an integer", low, high, False, False, none)


def check_seed(name: str, value: Any, *, none: str = "torch.initial_seed()") -> None:
    """Refuse what is no seed: None, or an integer from 0 on that fits into 63 bits."""
    check_count(name, value, low=0, high=2**63 - 1, none=none)


def check_each_layer(name: str, value: Any, *, low: int = 1, none: str | None = None) -> None:
    """Refuse what is neither an integer within the bounds nor a list or tuple of them, one for each layer."""
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"{name} must be an integer or one for each layer, got {value!r}")
        for number in value:
            check_count(name, number, low=low, none=none)
    else:
        check_count(name, value, low=low, none=none)


def check_choice(name: str, value: Any, choices: Sequence[Any], hint: str = "") -> None:
    """Refuse what is not one of the choices, with a ValueError."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name} must be {_listed(choices)}, got {value!r}{hint}")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is not a bool, with a TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_callable(name: str, value: Any, what: str, *, none: str | None = None) -> None:
    """Refuse what cannot be called, with a TypeError.

    Args:
        name: The argument's.
        value: A function, or None if `none` says what that means.
        what: What it takes and returns, for example "strategy -> bool".
        none: What None means, where it is allowed.
    """
    if value is None and none is not None:
        return
    if not isinstance(value, Callable):  # type: ignore[arg-type]
        or_none = "" if none is None else f", or None for {none}"
        raise TypeError(f"{name} must be a function {what}{or_none}, got {value!r}")


def check_kind(name: str, value: Any, kind: type, what: str, *, none: str | None = None) -> None:
    """Refuse what is no instance of a class, with a TypeError that says `what` it has to be."""
    if value is None and none is not None:
        return
    if not isinstance(value, kind):
        or_none = "" if none is None else f", or None for {none}"
        raise TypeError(f"{name} must be {what}{or_none}, got {value!r}")


def _check(
    name: str,
    value: Any,
    kind: type,
    kind_name: str,
    low: float,
    high: float,
    open_low: bool,
    open_high: bool,
    none: str | None,
) -> None:
    if value is None and none is not None:
        return
    bounds = _bounds(low, high, open_low, open_high)
    expected = f"{name} must be {kind_name}{bounds}" + ("" if none is None else f", or None for {none}")
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{expected}, got {value!r}")
    number: Any = value
    too_low = number <= low if open_low else number < low
    too_high = number >= high if open_high else number > high
    if not _finite(number) or too_low or too_high:
        raise ValueError(f"{expected}, got {value!r}")


def _finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer that no float can hold
        return False


def _bounds(low: float, high: float, open_low: bool, open_high: bool) -> str:
    parts = []
    if low > -math.inf:
        parts.append(f"{'>' if open_low else '>='} {low:g}")
    if high < math.inf:
        parts.append(f"{'<' if open_high else '<='} {high:g}")
    return " " + " and ".join(parts) if parts else ""


def _listed(choices: Sequence[Any]) -> str:
    *most, last = map(repr, choices)
    return f"{', '.join(most)} or {last}" if most else last
