"""Which strategy has trained a plugin, or what that trains: one that is shared by two is noticed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["note_owner", "refuse_shared"]

_owners: Any = WeakIdKeyDictionary()
"""Thing -> weak reference to its strategy. Not an attribute of the thing, so that copies of it belong to nobody."""


def refuse_shared(strategy: Any, method: str, *, gone: bool = True, **things: Any) -> None:
    """Refuse things that another strategy has trained, in `before_training`; see `note_owner`.

    This strategy would go on from what the other one left in them, without a word: its replayed inputs, say, would be
    those of another run.

    Args:
        strategy: that is about to train.
        method: of the message.
        gone: whether another strategy counts that is gone by now. A new strategy may go on with a network, where a
            plugin still has what belongs to the old one.
        **things: by the name that the message has for them; None for one that there is not. Of a module, those in it
            that have parameters to train count as well.

    Raises:
        ValueError: Another strategy has trained one of them.
    """
    for name, thing in things.items():
        for part in _parts(thing):
            owner = _owners.get(part)
            if owner is None or owner() is strategy:
                continue
            if not gone:
                gc.collect()  # it may be kept by nothing but a cycle
            if gone or owner() is not None:
                raise ValueError(
                    f"{name}: another strategy has trained it, and what it learnt there would become part of this run: "
                    f"make a {name} for each strategy that trains with {method}. To go on with what it has learnt, "
                    "pass it through state_dict() and load_state_dict(), or copy it with copy.deepcopy"
                )


def note_owner(strategy: Any, *things: Any) -> None:
    """Note that a strategy trains these things, once nothing is left to refuse. Their copies are nobody's yet."""
    for thing in things:
        for part in _parts(thing):
            _owners[part] = weakref.ref(strategy)


def _parts(thing: Any) -> Iterator[Any]:
    if isinstance(thing, nn.Module):
        for module in thing.modules():
            if module is thing or any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                yield module
    elif thing is not None and type(thing).__weakrefoffset__:  # objects with __slots__ may have no weak references
        yield thing
