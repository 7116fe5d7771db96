"""Speed of generative replay beside Avalanche's, and of a WGAN-GP's iterations.

The solver is dgr-classes': 784-400-400-10 with Adam, and a batch has 128 images and as many replayed ones. For the
comparison both generators are variational autoencoders with the layers and the two latent dimensions of Avalanche's
default.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.models.generator import MlpVAE, VAE_loss
from avalanche.training import GenerativeReplay, Naive, VAETraining
from avalanche.training.plugins import EvaluationPlugin, GenerativeReplayPlugin
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from avl_plugins import DGR, InMemoryLoaderPlugin
from avl_plugins.dgr.networks import conv_critic, conv_decoder, mlp_decoder, mlp_encoder
from avl_plugins.dgr.scholar import Answers, Scholar, replay_loss
from avl_plugins.dgr.vae import VAE
from avl_plugins.dgr.wgan_gp import WGANGP
from benchmarks.data.arrays import Arrays, split
from benchmarks.perf.timing import EpochTimer, Line, compare, few, rotate
from benchmarks.training.clock import timed
from benchmarks.training.models import image_mlp, optimizer

BATCH = 128
CHUNK = 2048
IMAGES = 25_600
LR = 1e-3
LATENT = 2
GAN_LATENT = 64
MAPS = 32


def replay(arrays: Arrays, rounds: int) -> list[Line]:
    """A training step with replay and its parts, and iterations of generators."""
    tasks = split(few(arrays, IMAGES), 2, task_labels=False, flat=False).train_stream
    steps = -(-len(tasks[1].dataset) // BATCH)
    shape = tuple(tasks[0].dataset[0][0].shape)
    iterations: list[float] = []

    def epoch(make: Callable[[list[SupervisedPlugin]], Any]) -> Callable[[], float]:
        def run() -> float:
            timer = EpochTimer()
            strategy = make([InMemoryLoaderPlugin(), timer])
            strategy.train(tasks[0])
            strategy.train(tasks[1])
            return timer.seconds[-1] / steps

        return run

    def their_strategy(plugins: list[SupervisedPlugin]) -> GenerativeReplay:
        generators_timer = EpochTimer()
        strategy, its = avalanche(arrays, shape, plugins, generators_timer)
        its.plugins.append(Collect(generators_timer, iterations, steps))
        return strategy

    made = ours(arrays, shape, [InMemoryLoaderPlugin()])
    made.train(tasks[0])
    x, y = (torch.stack([torch.as_tensor(row[k]) for row in list(tasks[0].dataset)[:BATCH]]) for k in (0, 1))
    scholar: Any = made.dgr.scholar
    parts = step_parts(made.model, scholar, x, y)
    alternatives = {
        "plain epoch": epoch(lambda plugins: plain(arrays, plugins)),
        "ours": epoch(lambda plugins: ours(arrays, shape, plugins)),
        "theirs": epoch(their_strategy),
        **parts,
        "our iteration": iteration(made.dgr.generator, x),
        "gan": iteration(gan(shape), x),
        "gan, lazy": iteration(gan(shape, penalty_every=5), x),
        "gan, 2": iteration(gan(shape, critic_steps=2), x),
    }
    rotate(1, alternatives)  # the first time costs more
    iterations.clear()
    median = rotate(rounds, alternatives)
    its = statistics.median(iterations)
    added = median["doubled"] - median["plain"] + median["sampling"] + median["labelling"]
    five = f"WGAN-GP iteration, {MAPS} maps, 5 critic steps of 64"
    lines = [
        Line("step without replay, bare", median["plain"]),
        compare("step on real and replayed batch, bare", median["doubled"], median["plain"], "without", ("<=", 2)),
        Line("sampling a batch, in chunks", median["sampling"]),
        Line("labelling a batch, in chunks", median["labelling"]),
        compare(
            "step of DGR",
            median["ours"],
            median["plain epoch"] + added,
            "plain strategy's step + the parts",
            ("<=", 1.1),
        ),
        compare("step of DGR", median["ours"], median["theirs"], "Avalanche's GenerativeReplay"),
        compare("iteration of the autoencoder", median["our iteration"], its, "Avalanche's VAETraining"),
        Line(five, median["gan"]),
        compare("the same, penalty every 5th step", median["gan, lazy"], median["gan"], "every step"),
        compare("the same, 2 critic steps", median["gan, 2"], median["gan"], "5 critic steps"),
    ]
    return [*lines, Line("WGAN-GP iterations a second (5 critic steps)", 1 / median["gan"])]


class Collect(SupervisedPlugin):
    """Collects the seconds of an iteration of Avalanche's generator in its latest epoch."""

    def __init__(self, timer: EpochTimer, found: list[float], steps: int) -> None:
        super().__init__()
        self.timer, self.found, self.steps = timer, found, steps

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Collect."""
        self.found.append(self.timer.seconds[-1] / self.steps)


def options(arrays: Arrays, plugins: list[SupervisedPlugin]) -> dict[str, Any]:
    """What the strategies have in common."""
    torch.manual_seed(0)
    model = image_mlp(arrays, 400)
    return {
        "model": model,
        "optimizer": optimizer("adam", model, lr=LR),
        "train_mb_size": BATCH,
        "plugins": plugins,
        "evaluator": EvaluationPlugin(accuracy_metrics(epoch=True), loggers=[]),
    }


def plain(arrays: Arrays, plugins: list[SupervisedPlugin]) -> Naive:
    """Plain training."""
    return Naive(**options(arrays, plugins))


def ours(arrays: Arrays, shape: tuple[int, ...], plugins: list[SupervisedPlugin]) -> DGR:
    """Ours, whose generator takes a few iterations only."""
    generator = VAE(
        encoder=mlp_encoder(shape, LATENT, units=(400, 128)),
        decoder=mlp_decoder(LATENT, shape, units=(64, 128, 256)),
        latent=LATENT,
        data_range=(0.0, 1.0),
        batch_size=2 * BATCH,
    )
    return DGR(**options(arrays, plugins), generator=generator, generator_iterations=5, chunk=CHUNK)


def avalanche(
    arrays: Arrays, shape: tuple[int, ...], plugins: list[SupervisedPlugin], timer: EpochTimer
) -> tuple[GenerativeReplay, VAETraining]:
    """Avalanche's, and the strategy that trains its generator, one epoch a task."""
    generator = MlpVAE(shape, nhid=LATENT, device=torch.device("cpu"))
    its = VAETraining(
        model=generator,
        optimizer=torch.optim.Adam(generator.parameters(), lr=0.01),
        criterion=VAE_loss,
        train_mb_size=BATCH,
        plugins=[InMemoryLoaderPlugin(), GenerativeReplayPlugin(), timer],
        evaluator=EvaluationPlugin(loss_metrics(epoch=True), loggers=[]),
    )
    return GenerativeReplay(**options(arrays, plugins), generator_strategy=its), its


def step_parts(model: nn.Module, scholar: Scholar, x: Tensor, y: Tensor) -> dict[str, Callable[[], float]]:
    """The parts of a step with replay."""
    adam = optimizer("adam", model, lr=0.0)  # learning one batch by heart would make gradients denormal, and slow
    batches = CHUNK // BATCH
    inputs = scholar.source(CHUNK, None)
    answers = Answers(inputs, scholar.solver.logits(inputs)).rows(0, BATCH)

    def step(replayed: bool) -> None:
        adam.zero_grad()
        loss = cross_entropy(model(x), y)
        if replayed:
            loss = (loss + replay_loss(model, answers, answers="hard", temperature=2.0)) / 2
        loss.backward()
        adam.step()

    def median_of(run: Callable[[], Any], parts: int = 1) -> Callable[[], float]:
        return lambda: statistics.median(timed(run) for _ in range(20)) / parts

    return {
        "plain": median_of(lambda: step(False)),
        "doubled": median_of(lambda: step(True)),
        "sampling": median_of(lambda: scholar.source(CHUNK, None), batches),
        "labelling": median_of(lambda: scholar.solver.logits(inputs), batches),
    }


def gan(shape: tuple[int, ...], **changed: Any) -> WGANGP:
    """Build a convolutional WGAN-GP."""
    torch.manual_seed(0)
    return WGANGP(
        generator=conv_decoder(GAN_LATENT, shape, maps=MAPS, output=nn.Tanh()),
        critic=conv_critic(shape, maps=MAPS),
        latent=GAN_LATENT,
        data_range=(0.0, 1.0),
        **changed,
    )


def iteration(generator: Any, x: Tensor) -> Callable[[], float]:
    """Seconds of a generator's iteration on real and replayed images, half of each: the mean of five."""
    half = x[torch.arange(generator.batch_size // 2) % len(x)]
    return lambda: timed(lambda: [generator.fit_batch(half, half, 0.5) for _ in range(5)]) / 5
