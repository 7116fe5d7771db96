"""Deep Generative Replay as a ready-made strategy: Avalanche's supervised template plus the plugin."""

from collections.abc import Sequence
from typing import Any

from avalanche.core import BasePlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.optim import Optimizer

from avl_plugins.checkpoint.resume import Resumable
from avl_plugins.dgr.plugin import DGRPlugin
from avl_plugins.tasks.keywords import keywords_only, take_arguments_of, with_arguments_of

__all__ = ["DGR"]


@keywords_only
class DGR(Resumable, SupervisedTemplate):
    """Deep Generative Replay: `SupervisedTemplate` with a `DGRPlugin` after the given plugins.

    It is `Resumable`: it can be saved and taken up again inside an experience, also inside the generator's training.

    Args:
        model: the solver.
        optimizer: its optimizer.
        plugins: further plugins; the list is not changed.
        **kwargs: the arguments of `DGRPlugin` (generator, replay, replay_ratio, labels, generator_iterations, ...) and
            the other arguments of `SupervisedTemplate` (criterion, train_mb_size, train_epochs, eval_mb_size, device,
            evaluator, eval_every, ...).

    Attributes:
        dgr: the plugin.

    Raises:
        TypeError: an unknown or positional argument, or one of another kind.
        ValueError: one that is out of range.
    """

    @with_arguments_of(DGRPlugin)
    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        plugins: Sequence[BasePlugin] | None = None,
        **kwargs: Any,
    ):
        self.dgr = DGRPlugin(**take_arguments_of(DGRPlugin, kwargs))
        super().__init__(model=model, optimizer=optimizer, plugins=[*(plugins or []), self.dgr], **kwargs)
        self.dgr.model = self.model
