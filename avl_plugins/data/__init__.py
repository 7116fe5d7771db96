"""Data sets as tensors, and batches of them without a loader's overhead."""

from avl_plugins.data.loading import InMemoryLoaderPlugin
from avl_plugins.data.serving import Given, Served, ServedFeatures, TensorLoader
from avl_plugins.data.tensors import batches_in_memory, dataset_tensors

__all__ = [
    "Given",
    "InMemoryLoaderPlugin",
    "Served",
    "ServedFeatures",
    "TensorLoader",
    "batches_in_memory",
    "dataset_tensors",
]
