"""Parameters that grow while an optimizer trains them."""

from avl_plugins.growth.parameters import grow_parameter

__all__ = ["grow_parameter"]
