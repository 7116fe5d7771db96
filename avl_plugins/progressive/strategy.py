"""Progressive networks as a ready-made strategy: Avalanche's supervised template plus the plugin."""

from collections.abc import Sequence
from typing import Any

from avalanche.core import BasePlugin
from avalanche.training.templates import SupervisedTemplate
from torch.optim import Optimizer

from avl_plugins.checkpoint.resume import Resumable
from avl_plugins.progressive.network import ProgressiveNetwork
from avl_plugins.progressive.plugin import ProgressivePlugin
from avl_plugins.tasks.keywords import keywords_only, take_arguments_of, with_arguments_of

__all__ = ["Progressive"]


@keywords_only
class Progressive(Resumable, SupervisedTemplate):
    """Progressive Networks: `SupervisedTemplate` with a `ProgressivePlugin` after the given plugins.

    It is `Resumable`: it can be saved and taken up again inside an experience.

    Args:
        model: the network.
        optimizer: an optimizer of `model.parameters()`; columns join it as they are added.
        plugins: further plugins; the list is not changed.
        **kwargs: the arguments of `ProgressivePlugin` (cache_frozen, cache_bytes) and the other arguments of
            `SupervisedTemplate` (criterion, train_mb_size, train_epochs, eval_mb_size, device, evaluator, ...).

    Attributes:
        progressive: the plugin.

    Raises:
        TypeError: If the model is no `ProgressiveNetwork`, or an argument is positional.
    """

    @with_arguments_of(ProgressivePlugin)
    def __init__(
        self,
        *,
        model: ProgressiveNetwork,
        optimizer: Optimizer,
        plugins: Sequence[BasePlugin] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(model, ProgressiveNetwork):
            raise TypeError(f"model must be a ProgressiveNetwork, got a {type(model).__name__}")
        self.progressive = ProgressivePlugin(**take_arguments_of(ProgressivePlugin, kwargs))
        super().__init__(model=model, optimizer=optimizer, plugins=[*(plugins or []), self.progressive], **kwargs)
