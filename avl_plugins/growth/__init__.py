"""Parameters that grow while an optimizer trains them."""

from typing import TYPE_CHECKING

from avl_plugins._lazy import lazily

if TYPE_CHECKING:
    from avl_plugins.growth.parameters import grow_parameter as grow_parameter

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "parameters": ["grow_parameter"],
    },
)
