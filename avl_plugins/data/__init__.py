"""Data sets as tensors, and batches of them without a loader's overhead."""

from typing import TYPE_CHECKING

from avl_plugins._lazy import lazily

if TYPE_CHECKING:
    from avl_plugins.data.loading import InMemoryLoaderPlugin as InMemoryLoaderPlugin
    from avl_plugins.data.tensors import batches_in_memory as batches_in_memory
    from avl_plugins.data.tensors import dataset_tensors as dataset_tensors

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "loading": ["InMemoryLoaderPlugin"],
        "tensors": ["batches_in_memory", "dataset_tensors"],
    },
)
