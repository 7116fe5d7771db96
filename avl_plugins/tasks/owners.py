"""One strategy for each object that keeps what a strategy has met."""

from __future__ import annotations

import weakref
from typing import Any

__all__ = ["claim"]

_owners: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()
"""Beside the objects, so that copies of them are free."""


def claim(holder: Any, strategy: Any) -> None:
    """Note which strategy an object serves, and refuse to have it serve another.

    Args:
        holder: a plugin, or what it keeps: a generator, a recognition.
        strategy: the one whose hook is called.

    Raises:
        ValueError: it has served another strategy, which is still there.
    """
    owner = _owners.get(holder)
    other = None if owner is None else owner()
    if other is not None and other is not strategy:
        raise ValueError(
            f"this {type(holder).__name__} serves another {type(other).__name__} already, and keeps what that one has "
            "met: make one for each strategy, or pass copy.deepcopy of it"
        )
    _owners[holder] = weakref.ref(strategy)
