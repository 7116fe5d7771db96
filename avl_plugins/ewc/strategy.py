"""EWC as a ready-made strategy: Avalanche's supervised template plus the plugin."""

from collections.abc import Sequence
from typing import Any

from avalanche.core import BasePlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.optim import Optimizer

from avl_plugins.checkpoint.resume import Resumable
from avl_plugins.ewc.checks import explains_avalanche_arguments
from avl_plugins.ewc.plugin import EWCPlugin
from avl_plugins.tasks.keywords import take_arguments_of, with_arguments_of
from avl_plugins.tasks.words import renamed

__all__ = ["EWC"]


@renamed(labels="fisher_labels", step="penalty_step")
@explains_avalanche_arguments("EWC(model=..., optimizer=..., ewc_lambda=...)")
class EWC(Resumable, SupervisedTemplate):
    """Elastic Weight Consolidation: `SupervisedTemplate` with an `EWCPlugin` after the given plugins.

    It is `Resumable`: it can be saved and taken up again inside an experience.

    Args:
        model: the network.
        optimizer: its optimizer.
        ewc_lambda: lambda of the paper, see `EWCPlugin`.
        plugins: further plugins; the list is not changed.
        **kwargs: the other arguments of `EWCPlugin` (fisher_labels, mode, penalty_step, ...) and of
            `SupervisedTemplate` (criterion, train_mb_size, train_epochs, eval_mb_size, device, evaluator, ...).

    Attributes:
        ewc: the plugin.

    Raises:
        TypeError: an unknown or positional argument, or one of Avalanche's own EWC that means something else here.
        ValueError: one that is out of range.

    Example:
        >>> import torch
        >>> from avalanche.benchmarks import tensors_benchmark
        >>> tasks = [(torch.randn(40, 4), torch.arange(40) % 2) for _ in range(2)]
        >>> benchmark = tensors_benchmark(train_tensors=tasks, test_tensors=tasks, task_labels=[0, 0])
        >>> model = nn.Linear(4, 2)
        >>> strategy = EWC(
        ...     model=model,
        ...     optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        ...     ewc_lambda=10,
        ...     train_mb_size=10,
        ...     evaluator=None,
        ... )
        >>> _ = strategy.train(benchmark.train_stream)
        >>> strategy.ewc, strategy.ewc.tasks
        (EWCPlugin(ewc_lambda=10), 2)
    """

    @with_arguments_of(EWCPlugin, SupervisedTemplate)
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
