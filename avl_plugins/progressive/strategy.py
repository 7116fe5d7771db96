"""Progressive networks as a ready-made strategy: Avalanche's supervised template plus the plugin."""

from collections.abc import Sequence
from typing import Any

from avalanche.core import BasePlugin
from avalanche.training.templates import SupervisedTemplate
from torch.optim import Optimizer

from avl_plugins.progressive.network import ProgressiveNetwork
from avl_plugins.progressive.plugin import ProgressivePlugin
from avl_plugins.resume import Resumable

__all__ = ["Progressive"]


class Progressive(Resumable, SupervisedTemplate):
    """Progressive Networks: `SupervisedTemplate` with a `ProgressivePlugin` after the given plugins.

    It is `Resumable`: it can be saved and taken up again inside an experience.

    Args:
        model: the network.
        optimizer: an optimizer of `model.parameters()`; columns join it as they are added.
        plugins: further plugins; the list is not changed.
        cache_frozen: see `ProgressivePlugin`.
        cache_bytes: see `ProgressivePlugin`.
        **kwargs: the other arguments of `SupervisedTemplate` (criterion, train_mb_size, train_epochs, eval_mb_size,
            device, evaluator, eval_every, ...).

    Raises:
        TypeError: If the model is no `ProgressiveNetwork`.
    """

    def __init__(
        self,
        *,
        model: ProgressiveNetwork,
        optimizer: Optimizer,
        plugins: Sequence[BasePlugin] | None = None,
        cache_frozen: bool = False,
        cache_bytes: int = 2**32,
        **kwargs: Any,
    ):
        if not isinstance(model, ProgressiveNetwork):
            raise TypeError(f"model: expected a ProgressiveNetwork, got a {type(model).__name__}")
        plugin = ProgressivePlugin(cache_frozen=cache_frozen, cache_bytes=cache_bytes)
        super().__init__(model=model, optimizer=optimizer, plugins=[*(plugins or []), plugin], **kwargs)
