"""Deep Generative Replay as a ready-made strategy: Avalanche's supervised template plus the plugin."""

from collections.abc import Sequence
from typing import Any, Literal

from avalanche.core import BasePlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.optim import Optimizer

from avl_plugins.dgr.generator import Generator
from avl_plugins.dgr.plugin import DGRPlugin
from avl_plugins.dgr.scholar import Labels
from avl_plugins.dgr.sources import Replay
from avl_plugins.resume import Resumable

__all__ = ["DGR"]


class DGR(Resumable, SupervisedTemplate):
    """Deep Generative Replay: `SupervisedTemplate` with a `DGRPlugin` after the given plugins.

    It is `Resumable`: it can be saved and taken up again inside an experience, also inside the generator's training.

    Args:
        model: the solver.
        optimizer: its optimizer.
        generator: see `DGRPlugin`, likewise replay, replay_ratio, labels, temperature, generator_iterations,
            replay_batch_size and seed.
        replay: "generated", "exact" or "noise".
        replay_ratio: "1/t" or a number.
        labels: "hard" or "soft".
        temperature: of soft labels.
        generator_iterations: after each experience.
        replay_batch_size: replayed inputs a step.
        seed: of what is drawn for replay.
        plugins: further plugins; the list is not changed.
        **kwargs: the other arguments of `SupervisedTemplate` (criterion, train_mb_size, train_epochs, eval_mb_size,
            device, evaluator, eval_every, ...).

    Attributes:
        dgr: the plugin.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        generator: Generator | None = None,
        replay: Replay = "generated",
        replay_ratio: Literal["1/t"] | float = "1/t",
        labels: Labels = "hard",
        temperature: float = 2.0,
        generator_iterations: int = 3000,
        replay_batch_size: int | None = None,
        seed: int | None = None,
        plugins: Sequence[BasePlugin] | None = None,
        **kwargs: Any,
    ):
        self.dgr = DGRPlugin(
            generator=generator,
            replay=replay,
            replay_ratio=replay_ratio,
            labels=labels,
            temperature=temperature,
            generator_iterations=generator_iterations,
            replay_batch_size=replay_batch_size,
            seed=seed,
        )
        super().__init__(model=model, optimizer=optimizer, plugins=[*(plugins or []), self.dgr], **kwargs)
