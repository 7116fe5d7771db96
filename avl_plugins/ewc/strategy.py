"""EWC as a ready-made strategy: Avalanche's supervised template plus the plugin."""

import inspect
from collections.abc import Sequence
from typing import Any, Self

from avalanche.core import BasePlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.optim import Optimizer

from avl_plugins.checkpoint.resume import Resumable
from avl_plugins.ewc.checks import refuse_avalanche_arguments
from avl_plugins.ewc.plugin import EWCPlugin
from avl_plugins.tasks.keywords import take_arguments_of, with_arguments_of


class EWC(Resumable, SupervisedTemplate):
    """Elastic Weight Consolidation: `SupervisedTemplate` with an `EWCPlugin` after the given plugins.

    It is `Resumable`: it can be saved and taken up again inside an experience.

    Args:
        model: the network.
        optimizer: its optimizer.
        ewc_lambda: lambda of the paper, see `EWCPlugin`.
        plugins: further plugins; the list is not changed.
        **kwargs: the other arguments of `EWCPlugin` (labels, mode, step, ...) and of `SupervisedTemplate` (criterion,
            train_mb_size, train_epochs, eval_mb_size, device, evaluator, eval_every, ...).

    Attributes:
        ewc: the plugin.

    Raises:
        TypeError: an unknown or positional argument, or one of Avalanche's own EWC that means something else here.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse Avalanche's arguments with an explanation, before its own check takes them for misspelt."""
        if inspect.unwrap(cls.__init__) is inspect.unwrap(EWC.__init__):  # a subclass may have arguments of its own
            refuse_avalanche_arguments(args, kwargs, "EWC(model=..., optimizer=..., ewc_lambda=...)")
        return super().__new__(cls)

    @with_arguments_of(EWCPlugin)
    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        ewc_lambda: float,
        plugins: Sequence[BasePlugin] | None = None,
        **kwargs: Any,
    ):
        self.ewc = EWCPlugin(ewc_lambda=ewc_lambda, **take_arguments_of(EWCPlugin, kwargs))
        super().__init__(model=model, optimizer=optimizer, plugins=[*(plugins or []), self.ewc], **kwargs)
