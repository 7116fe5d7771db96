"""Old names of arguments, which still work for one release; a `repr` of what was set apart from the defaults."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["renamed", "repr_of_arguments"]

Thing = TypeVar("Thing", bound=Callable[..., Any])


def renamed(**words: str) -> Callable[[Thing], Thing]:
    """Have a class or function take old keywords for one more release, with a DeprecationWarning of the new ones.

    It goes around a class's constructor as it is once the class has been made, so that Avalanche, which refuses
    keywords that no signature shows, sees the new words only; signatures and help show these alone, too.

    Args:
        **words: The new keyword by the old one.

    Raises:
        TypeError: When it is called, if both are given.
    """

    def decorate(thing: Thing) -> Thing:
        function: Any = thing.__init__ if isinstance(thing, type) else thing  # type: ignore[misc]

        @functools.wraps(function)
        def taking_old_words(*args: Any, **kwargs: Any) -> Any:
            for old, new in words.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(f"{old} is called {new} now: give {new} alone")
                name = type(args[0]).__name__ if isinstance(thing, type) else function.__name__
                warnings.warn(f"{name}: {old} is called {new} now", DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        if not isinstance(thing, type):
            return taking_old_words  # type: ignore[return-value]
        thing.__init__ = taking_old_words  # type: ignore[misc]
        return thing

    return decorate


def repr_of_arguments(self: Any) -> str:
    """Return one line, the class and those arguments that are not the defaults, as a class's `__repr__`.

    Arguments are read from the attributes of their names; those without one are left out.
    """
    _, *parameters = inspect.signature(type(self).__init__).parameters.values()
    shown = []
    for parameter in parameters:
        value = getattr(self, parameter.name, parameter.default)
        if not _same(value, parameter.default) and parameter.kind is not parameter.VAR_KEYWORD:
            shown.append(f"{parameter.name}={_short(value)}")
    return f"{type(self).__name__}({', '.join(shown)})"


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and isinstance(value, _PLAIN) and value == default)


_PLAIN = (bool, int, float, str, tuple, list, type(None))


def _short(value: Any) -> str:
    if isinstance(value, nn.Module | Tensor) or len(repr(value)) > 60:
        return f"<{type(value).__name__}>"
    return repr(value) if isinstance(value, _PLAIN) else getattr(value, "__name__", f"<{type(value).__name__}>")
