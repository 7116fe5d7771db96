"""What the newest head reads of all training samples, computed once, as nothing below moves while it is trained."""

import logging
from typing import Any

from avl_plugins.data.serving import NotOnce, ServedFeatures, TensorLoader

__all__ = ["head_inputs"]

log = logging.getLogger(__name__)


def head_inputs(network: Any, loader: Any, *, device: Any, limit: int) -> ServedFeatures | None:
    """Compute what the newest head reads of a loader's samples; None, with a log line, where steps have to do that.

    That is so where batches are not served from memory, so that they may differ in each epoch, the layers do not give
    the same twice (dropout), or there is too little memory. No random number is used up.

    Args:
        network: a `DynamicallyExpandableNetwork`, in the mode in which it is trained.
        loader: of the strategy.
        device: where the network is.
        limit: bytes that the features may take.
    """
    label = network.labels[-1]
    try:
        if not isinstance(loader, TensorLoader):
            raise NotOnce("the batches do not come from InMemoryLoaderPlugin")
        return ServedFeatures(loader, lambda x: [network.features(x, label)], device=device, limit=limit)
    except NotOnce as why:
        log.info("what the new head reads is computed in each step: %s", why)
        return None
