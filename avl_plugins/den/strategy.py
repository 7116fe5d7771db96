"""Dynamically Expandable Networks as a ready-made strategy: Avalanche's supervised template plus the plugin."""

from collections.abc import Sequence
from typing import Any

from avalanche.core import BasePlugin
from avalanche.training.templates import SupervisedTemplate
from torch.optim import Optimizer

from avl_plugins.checkpoint.resume import Resumable
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.den.plugin import DENPlugin
from avl_plugins.tasks.keywords import keywords_only, take_arguments_of, with_arguments_of
from avl_plugins.tasks.words import renamed

__all__ = ["DEN"]


@renamed(drift_step="penalty_step")
@keywords_only
class DEN(Resumable, SupervisedTemplate):
    """Dynamically Expandable Networks: `SupervisedTemplate` with a `DENPlugin` after the given plugins.

    It is `Resumable`: it can be saved and taken up again inside an experience, in any phase.

    Args:
        model: the network.
        optimizer: an optimizer of `model.parameters()`.
        plugins: further plugins; the list is not changed.
        **kwargs: the arguments of `DENPlugin` (l1, l2, group_lasso, drift_lambda, loss_threshold, ...) and the other
            arguments of `SupervisedTemplate` (criterion, train_mb_size, train_epochs, eval_mb_size, device, ...).

    Attributes:
        den: the plugin.

    Raises:
        TypeError: If the model is no `DynamicallyExpandableNetwork`, or an argument is positional.

    Example:
        >>> import torch
        >>> from avalanche.benchmarks import tensors_benchmark
        >>> from avalanche.logging import BaseLogger
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> from torch import nn
        >>> from avl_plugins.den import DEN, DynamicallyExpandableNetwork
        >>> x, y = torch.randn(40, 4), torch.arange(40) % 2
        >>> data = [(x, y), (-x, y)]
        >>> benchmark = tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0, 1])
        >>> model = DynamicallyExpandableNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU()))
        >>> strategy = DEN(
        ...     model=model,
        ...     optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        ...     train_mb_size=8,
        ...     evaluator=EvaluationPlugin(loggers=BaseLogger()),
        ... )
        >>> _ = strategy.train(benchmark.train_stream)
        >>> model.labels, strategy.den
        ([0, 1], DENPlugin())
    """

    @with_arguments_of(DENPlugin, SupervisedTemplate)
    def __init__(
        self,
        *,
        model: DynamicallyExpandableNetwork,
        optimizer: Optimizer,
        plugins: Sequence[BasePlugin] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(model, DynamicallyExpandableNetwork):
            raise TypeError(f"model must be a DynamicallyExpandableNetwork, got a {type(model).__name__}")
        self.den = DENPlugin(**take_arguments_of(DENPlugin, kwargs))
        super().__init__(model=model, optimizer=optimizer, plugins=[*(plugins or []), self.den], **kwargs)
