"""Moved to `avl_plugins.data.tensors`; this path is there for one more release."""

import warnings

from avl_plugins.data.tensors import Batches, batches_in_memory, dataset_tensors

__all__ = ["Batches", "batches_in_memory", "dataset_tensors"]

warnings.warn("avl_plugins.tensors has moved to avl_plugins.data.tensors", DeprecationWarning, stacklevel=2)
