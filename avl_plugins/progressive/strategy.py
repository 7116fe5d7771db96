"""Progressive networks as a ready-made strategy: Avalanche's supervised template plus the plugin."""

from collections.abc import Sequence
from typing import Any

from avalanche.core import BasePlugin
from avalanche.training.templates import SupervisedTemplate
from torch.optim import Optimizer

from avl_plugins.checkpoint.resume import Resumable
from avl_plugins.progressive.network import ProgressiveNetwork
from avl_plugins.progressive.old_words import takes_cache_frozen
from avl_plugins.progressive.plugin import ProgressivePlugin
from avl_plugins.tasks.keywords import keywords_only, take_arguments_of, with_arguments_of

__all__ = ["Progressive"]


@takes_cache_frozen
@keywords_only
class Progressive(Resumable, SupervisedTemplate):
    """Progressive Networks: `SupervisedTemplate` with a `ProgressivePlugin` after the given plugins.

    It is `Resumable`: it can be saved and taken up again inside an experience.

    Args:
        model: the network.
        optimizer: an optimizer of `model.parameters()`; columns join it as they are added.
        plugins: further plugins; the list is not changed.
        **kwargs: the arguments of `ProgressivePlugin` (cache_bytes) and the other arguments of
            `SupervisedTemplate` (criterion, train_mb_size, train_epochs, eval_mb_size, device, evaluator, ...).

    Attributes:
        progressive: the plugin.

    Raises:
        TypeError: If the model is no `ProgressiveNetwork`, or an argument is positional.

    Example:
        >>> import torch
        >>> from avalanche.benchmarks import tensors_benchmark
        >>> from avalanche.logging import BaseLogger
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> from torch import nn
        >>> from avl_plugins.progressive import Progressive, ProgressiveNetwork
        >>> x, y = torch.randn(40, 4), torch.arange(40) % 2
        >>> data = [(x, y), (-x, y)]
        >>> benchmark = tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0, 1])
        >>> model = ProgressiveNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU()))
        >>> strategy = Progressive(
        ...     model=model,
        ...     optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        ...     train_mb_size=8,
        ...     evaluator=EvaluationPlugin(loggers=BaseLogger()),
        ... )
        >>> _ = strategy.train(benchmark.train_stream)
        >>> strategy.model.labels
        [0, 1]
        >>> strategy.progressive
        ProgressivePlugin()
    """

    @with_arguments_of(ProgressivePlugin, SupervisedTemplate)
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
