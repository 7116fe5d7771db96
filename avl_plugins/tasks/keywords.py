"""Keywords of a plugin as keywords of the strategy that is the template plus the plugin."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["refuse_positional", "take_arguments_of", "with_arguments_of"]


def refuse_positional(name: str, args: Sequence[Any]) -> None:
    """Refuse positional arguments, in `__new__`: Avalanche would give them to keywords in the order of a signature.

    Raises:
        TypeError: There are some; the message shows the call of the strategy `name` with keywords.
    """
    if args:
        raise TypeError(
            f"{name} takes keyword arguments only: {name}(model=..., optimizer=..., criterion=...), "
            f"got {len(args)} positional"
        )


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
