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
from avl_plugins.tasks.words import renamed

__all__ = ["DGR"]


@renamed(labels="answers")
@keywords_only
class DGR(Resumable, SupervisedTemplate):
    """Deep Generative Replay: `SupervisedTemplate` with a `DGRPlugin` after the given plugins.

    It is `Resumable`: it can be saved and taken up again inside an experience, also inside the generator's training.

    Args:
        model: the solver.
        optimizer: its optimizer.
        plugins: further plugins; the list is not changed.
        **kwargs: the arguments of `DGRPlugin` (generator, replay, replay_ratio, answers, generator_iterations, ...) and
            the other arguments of `SupervisedTemplate` (criterion, train_mb_size, train_epochs, eval_mb_size, device,
            evaluator, eval_every, ...).

    Attributes:
        dgr: the plugin.

    Raises:
        TypeError: an unknown or positional argument, or one of another kind.
        ValueError: one that is out of range.

    Example:
        >>> import torch
        >>> from avalanche.benchmarks import tensors_benchmark
        >>> from avl_plugins.dgr import VAE, mlp_decoder, mlp_encoder
        >>> tasks = [(torch.rand(20, 4), torch.arange(20) % 2 + first) for first in (0, 2)]
        >>> benchmark = tensors_benchmark(train_tensors=tasks, test_tensors=tasks, task_labels=[0, 0])
        >>> model = nn.Linear(4, 4)
        >>> strategy = DGR(
        ...     model=model,
        ...     optimizer=torch.optim.Adam(model.parameters()),
        ...     generator=VAE(encoder=mlp_encoder((4,), 2), decoder=mlp_decoder(2, (4,)), latent=2),
        ...     generator_iterations=10,
        ...     train_mb_size=10,
        ...     evaluator=None,
        ... )
        >>> metrics = strategy.train(benchmark.train_stream)
        >>> strategy.dgr.classes, strategy.dgr.scholar.sample(5).x.shape
        ([0, 1, 2, 3], torch.Size([5, 4]))
    """

    @with_arguments_of(DGRPlugin, SupervisedTemplate)
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
