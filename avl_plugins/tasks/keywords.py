"""Constructors' keywords: a plugin's as those of its strategy, and positional arguments refused."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)


def refuse_positional(name: str, args: Sequence[Any]) -> None:
    """Refuse positional arguments, which Avalanche takes for the keywords in their order.

    Args:
        name: of the class that takes keywords only.
        args: the positional arguments.

    Raises:
        TypeError: there are any.
    """
    if args:
        raise TypeError(
            f"{name} takes keyword arguments only, got {len(args)} positional: write {name}(argument=value, ...)"
        )


def keywords_only(cls: Class) -> Class:
    """Have a class whose constructor takes keywords only refuse others clearly; its signature stays as it is."""
    init = cls.__init__  # type: ignore[misc]
    _, *own = inspect.signature(init).parameters.values()
    if any(p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in own):
        return cls

    @functools.wraps(init)
    def refusing(self: Any, *args: Any, **kwargs: Any) -> None:
        refuse_positional(type(self).__name__, args)
        init(self, **kwargs)

    cls.__init__ = refusing  # type: ignore[misc]
    return cls


def with_arguments_of(plugin: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Show the plugin's keywords in a constructor's signature, by which Avalanche tells them from misspelt ones."""

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(init)
        *named, rest = own.parameters.values()
        more = [p for name, p in _arguments(plugin).items() if name not in own.parameters]
        init.__signature__ = own.replace(parameters=[*named, *more, rest])  # type: ignore[attr-defined]
        return init

    return decorate


def take_arguments_of(plugin: type, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take the plugin's keywords out of `kwargs`, and return them."""
    return {name: kwargs.pop(name) for name in _arguments(plugin).keys() & kwargs.keys()}


def _arguments(plugin: Any) -> dict[str, inspect.Parameter]:
    _, *own = inspect.signature(plugin.__init__).parameters.values()  # without self
    return {parameter.name: parameter for parameter in own}
