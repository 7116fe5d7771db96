"""What the Deep Generative Replay experiments share: generators, arms, and image grids that fit into a result.

The arms: "gr", the paper's, with WGAN-GP; "vae", the same with a variational autoencoder; "er", exact replay; "noise";
"none", plain training; "avalanche", Avalanche's GenerativeReplay with its own autoencoder.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import loss_metrics
from avalanche.models.generator import MlpVAE, VAE_loss
from avalanche.training import GenerativeReplay, VAETraining
from avalanche.training.plugins import EvaluationPlugin, GenerativeReplayPlugin
from torch import Tensor, nn

from avl_plugins import DGRPlugin
from avl_plugins.dgr.networks import (
    conv_critic,
    conv_decoder,
    conv_encoder,
    mlp_critic,
    mlp_decoder,
    mlp_encoder,
)
from avl_plugins.dgr.vae import VAE
from avl_plugins.dgr.wgan_gp import WGANGP
from avl_plugins.metrics import replay_metrics
from benchmarks.harness.experiment import Context
from benchmarks.training.models import optimizer
from benchmarks.training.supervised import (
    Training,
    accuracy_curves,
    accuracy_matrix,
    default_plugins,
    job_plugins,
    make_evaluator,
    rounded,
    train_stream,
)

ARMS = ("gr", "vae", "er", "noise", "none", "avalanche")


def make_gan(shape: Sequence[int], settings: Any, *, fully_connected: bool) -> WGANGP:
    """WGAN-GP with a convolutional pair, or a fully connected one for images without spatial structure."""
    if fully_connected:
        units = (settings.units, settings.units)
        generator = mlp_decoder(settings.latent, shape, units=units, output=nn.Tanh())
        critic = mlp_critic(shape, units=units)
    else:
        generator = conv_decoder(settings.latent, shape, maps=settings.maps, output=nn.Tanh())
        critic = conv_critic(shape, maps=settings.maps)
    return WGANGP(
        generator=generator,
        critic=critic,
        latent=settings.latent,
        samples=settings.gan_batch,
        critic_steps=settings.critic_steps,
        penalty_every=settings.penalty_every,
        lr=settings.gan_lr,
        average=settings.average or None,
    )


def make_vae(shape: Sequence[int], settings: Any, *, fully_connected: bool) -> VAE:
    """Variational autoencoder, convolutional or fully connected (2 x 400, as van de Ven's)."""
    if fully_connected:
        encoder = mlp_encoder(shape, settings.latent)
        decoder = mlp_decoder(settings.latent, shape, units=(400, 400))
    else:
        encoder = conv_encoder(shape, settings.latent, maps=settings.maps)
        decoder = conv_decoder(settings.latent, shape, maps=settings.maps)
    return VAE(encoder=encoder, decoder=decoder, latent=settings.latent)


class UntilLastTask(DGRPlugin):
    """Deep Generative Replay that makes no scholar of the last task, as nobody will learn from it.

    Args:
        tasks_in_all: how many experiences there will be.
        **options: of `DGRPlugin`.
    """

    def __init__(self, tasks_in_all: int, **options: Any) -> None:
        super().__init__(**options)
        self.tasks_in_all = tasks_in_all

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Make the scholar, or drop it."""
        if strategy.experience.current_experience + 1 < self.tasks_in_all:
            super().after_training_exp(strategy, **kwargs)
        else:
            self.scholar = None


def make_plugin(
    arm: str, shape: Sequence[int], settings: Any, *, fully_connected: bool, tasks: int, **options: Any
) -> DGRPlugin | None:
    """Make the arm's plugin, with further options of `DGRPlugin`; None for "none".

    Raises:
        ValueError: If there is no such arm.
    """
    if arm == "none":
        return None
    options["chunk"] = settings.batch_size * 16
    if arm in ("er", "noise"):
        return UntilLastTask(tasks, replay={"er": "exact", "noise": "noise"}[arm], **options)
    if arm not in ("gr", "vae"):
        raise ValueError(f"arm {arm!r}: expected one of {', '.join(ARMS)}")
    make = make_gan if arm == "gr" else make_vae
    generator: Any = make(shape, settings, fully_connected=fully_connected)
    iterations = settings.gan_iterations if arm == "gr" else settings.vae_iterations
    return UntilLastTask(tasks, generator=generator, generator_iterations=iterations, **options)


def train_arm(
    arm: str,
    model: nn.Module,
    benchmark: Any,
    settings: Any,
    context: Context,
    *,
    shape: Sequence[int],
    fully_connected: bool,
    each_epoch: bool = False,
) -> dict[str, Any]:
    """Train an arm on all tasks and return what the tables need.

    Args:
        arm: one of `ARMS`.
        model: the solver, freshly initialised.
        benchmark: without task labels; inputs of `shape`.
        settings: has iterations, batch_size, optimizer, lr, labels, evaluate, and the generators' settings.
        context: of the job.
        shape: (C, H, W) of an input.
        fully_connected: for the generators.
        each_epoch: evaluate on all tasks after every epoch, not on those so far after each task.

    Returns:
        "so_far": accuracy over all test images of the tasks so far after each, and "matrix", by task; with
        `each_epoch`, "accuracy", that of each task before training and after every epoch. "grids": PNG images of
        replayed inputs after each task but the last, base64.
    """
    tasks = len(benchmark.train_stream)
    plugin = None
    if arm != "avalanche":
        plugin = make_plugin(
            arm, shape, settings, fully_connected=fully_connected, tasks=tasks, answers=settings.labels
        )
    batches = -(-len(benchmark.train_stream[0].dataset) // settings.batch_size)
    options: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer(settings.optimizer, model, lr=settings.lr),
        "train_mb_size": settings.batch_size,
        "train_epochs": -(-settings.iterations // batches),
        "eval_mb_size": 1000,
        "device": context.device,
        "eval_every": 1 if each_epoch else -1,
    }
    if arm == "avalanche":
        context = replace(context, checkpoint=None, resume=False)  # its plugins have no state_dict
        strategy: Any = avalanche_strategy(options, shape, context, tasks)
    else:
        metrics = replay_metrics(losses=arm in ("gr", "vae")) if plugin else []
        plugins = [*default_plugins(context, tasks), *([plugin] if plugin else [])]
        strategy = Training(**options, plugins=plugins, evaluator=make_evaluator(context, *metrics))
    train_stream(strategy, benchmark, context, stream=settings.evaluate, each_epoch=each_epoch)
    found: dict[str, Any] = {"grids": replayed_grids(strategy)}
    if each_epoch:
        curves = accuracy_curves(strategy, settings.evaluate)
        return found | {"accuracy": [rounded(values) for _, values in curves.values()]}
    history = strategy.evaluator.get_all_metrics()
    stream = next(v for k, v in history.items() if k.startswith(f"Top1_Acc_Stream/eval_phase/{settings.evaluate}"))
    matrix = accuracy_matrix(strategy, settings.evaluate)
    return found | {"so_far": rounded(stream[1]), "matrix": [rounded(row) for row in matrix]}


def replayed_grids(strategy: Any) -> list[str]:
    """Return what `replay_metrics` drew after each task, as PNG images in base64."""
    history = strategy.evaluator.get_all_metrics()
    images: Sequence[Any] = next((v[1] for k, v in history.items() if k.startswith("dgr/ReplayImages")), [])
    return [png(image.image) for image in images]


class Normalise(SupervisedPlugin):
    """Gives the batches MNIST's mean and scale, which the samples of Avalanche's autoencoder have."""

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Normalise the inputs."""
        strategy.mbatch[0] = (strategy.mbatch[0] - 0.1307) / 0.3081

    before_eval_iteration = before_training_iteration


def avalanche_strategy(options: dict[str, Any], shape: Sequence[int], context: Context, tasks: int) -> GenerativeReplay:
    """Avalanche's GenerativeReplay with its default autoencoder, for images of `shape`.

    The autoencoder, its optimizer and its plugin are those that Avalanche makes by itself for 28 x 28 images.
    """
    generator = MlpVAE(tuple(shape), nhid=2, device=context.device)
    its = VAETraining(
        model=generator,
        optimizer=torch.optim.Adam(generator.parameters(), lr=0.01, weight_decay=1e-4),
        criterion=VAE_loss,
        **{k: options[k] for k in ("train_mb_size", "train_epochs", "eval_mb_size", "device")},
        plugins=[Normalise(), GenerativeReplayPlugin()],
        evaluator=EvaluationPlugin(loss_metrics(epoch=True), loggers=[]),
    )
    plugins = [*job_plugins(context, tasks), Normalise()]
    return GenerativeReplay(**options, plugins=plugins, evaluator=make_evaluator(context), generator_strategy=its)


def png(grid: Tensor) -> str:
    """Return an image (3, H, W) in [0, 1] as a PNG in base64, a grey one where the channels are alike."""
    from PIL import Image

    pixels = (grid.cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    grey = bool((pixels == pixels[..., :1]).all())
    file = io.BytesIO()
    Image.fromarray((pixels[..., 0] if grey else pixels).numpy()).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
