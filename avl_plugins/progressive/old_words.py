"""An argument of earlier versions, which still works for one release."""

import functools
import warnings
from typing import Any, TypeVar

from avl_plugins.tasks.arguments import check_flag

__all__ = ["takes_cache_frozen"]

Class = TypeVar("Class", bound=type)


def takes_cache_frozen(cls: Class) -> Class:
    """Have a class take `cache_frozen`, with a DeprecationWarning: True is `cache_bytes=2**32`, its default of then.

    False is `cache_bytes=0`, also beside a `cache_bytes`, which was then the bound of a cache that is not wanted.
    """
    init = cls.__init__  # type: ignore[misc]

    @functools.wraps(init)
    def taking_cache_frozen(self: Any, *args: Any, **kwargs: Any) -> None:
        if "cache_frozen" in kwargs:
            wanted = kwargs.pop("cache_frozen")
            check_flag("cache_frozen", wanted)
            warnings.warn(
                f"{type(self).__name__}: cache_frozen={wanted} is cache_bytes={'2**32' if wanted else 0} now",
                DeprecationWarning,
                stacklevel=2,
            )
            kwargs["cache_bytes"] = kwargs.get("cache_bytes", 2**32) if wanted else 0
        init(self, *args, **kwargs)

    cls.__init__ = taking_cache_frozen  # type: ignore[misc]
    return cls
