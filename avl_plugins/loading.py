"""Moved to `avl_plugins.data.loading`; this path is there for one more release."""

import warnings

from avl_plugins.data.loading import InMemoryLoaderPlugin, batches_in_memory

__all__ = ["InMemoryLoaderPlugin", "batches_in_memory"]

warnings.warn("avl_plugins.loading has moved to avl_plugins.data.loading", DeprecationWarning, stacklevel=2)
