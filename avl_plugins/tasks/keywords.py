"""Keywords of a plugin as keywords of the strategy that is the template plus the plugin."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["keywords_only", "refuse_positional", "take_arguments_of", "with_arguments_of"]


def refuse_positional(
    name: str, args: Sequence[Any], arguments: str = "model=..., optimizer=..., criterion=..."
) -> None:
    """Refuse positional arguments of a constructor, which Avalanche would take for others, one by one.

    Args:
        name: The class's.
        args: The positional arguments.
        arguments: What to write instead.

    Raises:
        TypeError: There is one.
    """
    if args:
        raise TypeError(f"{name} takes keyword arguments only: {name}({arguments})")


def keywords_only(kind: type) -> type:
    """Have a class refuse positional arguments; its subclasses, too, unless they have a constructor of their own."""
    _, *own = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    if any(p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in own):
        return kind
    arguments = () if any(p.name == "model" for p in own) else ("argument=value, ...",)

    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:
        if inspect.unwrap(cls.__init__) is inspect.unwrap(kind.__init__):  # type: ignore[misc]
            refuse_positional(cls.__name__, args, *arguments)
        return super(kind, cls).__new__(cls)  # type: ignore[arg-type, misc]

    __new__.__signature__ = inspect.signature(kind.__init__)  # type: ignore[attr-defined, misc]
    kind.__new__ = __new__  # type: ignore[assignment]
    return kind


def with_arguments_of(*kinds: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Show keywords of a plugin or template in a constructor's signature, by which Avalanche tells misspelt ones."""

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(init)
        *named, rest = own.parameters.values()
        found = {name: p for kind in kinds for name, p in _arguments(kind).items()}
        more = [p for name, p in found.items() if name not in own.parameters]
        init.__signature__ = own.replace(parameters=[*named, *more, rest])  # type: ignore[attr-defined]
        return init

    return decorate


def take_arguments_of(plugin: type, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take the plugin's keywords out of `kwargs`, and return them."""
    return {name: kwargs.pop(name) for name in _arguments(plugin).keys() & kwargs.keys()}


def _arguments(plugin: Any) -> dict[str, inspect.Parameter]:
    _, *own = inspect.signature(plugin.__init__).parameters.values()  # without self
    return {parameter.name: parameter for parameter in own}
