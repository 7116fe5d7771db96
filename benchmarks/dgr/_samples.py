"""What generators give, as images and in numbers, while they are trained and after each task."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from avl_plugins import DGRPlugin
from avl_plugins.dgr.frechet import frechet_distance, small_classifier
from avl_plugins.metrics import replay_metrics
from benchmarks.data.arrays import Arrays, split
from benchmarks.dgr._arms import make_gan, make_vae, png, replayed_grids
from benchmarks.dgr._scholars import images_of, learn_generator, learn_solver
from benchmarks.harness.experiment import Context
from benchmarks.harness.files import write_atomically
from benchmarks.harness.unfinished import readable
from benchmarks.training.models import image_mlp, optimizer
from benchmarks.training.supervised import Training, default_plugins, make_evaluator, rounded, train_stream

SAMPLES = 2000


def as_training_goes_on(arm: str, arrays: Arrays, settings: Any, seed: int, context: Context) -> dict[str, Any]:
    """Train a generator on all classes; grids and distances after each of `settings.parts` of the iterations."""
    make, iterations = _generator(arm, settings)
    images = images_of(arrays.x_train)
    measured = small_classifier(images, torch.from_numpy(arrays.y_train))
    generator = make(tuple(images.shape[1:]), settings, fully_connected=False).to(context.device)
    generator.data_range = (0.0, 1.0)
    real = measured(images[torch.randperm(len(images))[:SAMPLES]])
    stops = [round(part * iterations) for part in settings.parts]
    saved: dict[str, Any] = {"done": 0, "grids": [], "distance": []}
    if context.resume and context.checkpoint is not None:
        with readable(context.checkpoint):
            saved = torch.load(context.checkpoint, weights_only=True)
            generator.load_state_dict(saved["generator"])
            torch.set_rng_state(saved["random"])
    for stop in stops[len(saved["distance"]) :]:
        for step in learn_generator(generator, None, arrays, stop - saved["done"], context.device):
            context.progress(saved["done"] + step, stops[-1], "generator")
        samples = generator.sample(SAMPLES, torch.Generator().manual_seed(0)).cpu()
        grid = make_grid(samples[:64], nrow=8, padding=1)
        saved["grids"].append(png(grid))
        saved["distance"].append(round(frechet_distance(real, measured(samples)), 4))
        saved |= {"done": stop, "generator": generator.state_dict(), "random": torch.get_rng_state()}
        if context.logdir is not None:
            with SummaryWriter(str(context.logdir)) as writer:
                writer.add_image("Samples", grid, stop)
                writer.add_scalar("FrechetDistance", saved["distance"][-1], stop)
        if context.checkpoint is not None:
            torch.save(saved, file := io.BytesIO())
            write_atomically(context.checkpoint, file.getvalue())
    return {"grids": saved["grids"], "distance": saved["distance"]}


def after_each_task(arm: str, arrays: Arrays, settings: Any, seed: int, context: Context) -> dict[str, Any]:
    """Train a scholar on a few classes at a time; grids, distances and the rarest class's share after each task."""
    make, iterations = _generator(arm, settings)
    classifier = image_mlp(arrays, settings.width).to(context.device)
    learn_solver(classifier, None, arrays, settings)
    classifier.eval().requires_grad_(False)
    benchmark = split(arrays, settings.tasks, seed=seed, task_labels=False, flat=False)
    shape = benchmark.train_stream[0].dataset[0][0].shape
    model = image_mlp(arrays, settings.width)
    plugin = DGRPlugin(generator=make(tuple(shape), settings, fully_connected=False), generator_iterations=iterations)
    metrics = replay_metrics(distance=True, classifier=classifier, samples=SAMPLES)
    strategy = Training(
        model=model,
        optimizer=optimizer(settings.optimizer, model, lr=settings.lr),
        train_mb_size=settings.batch_size,
        eval_mb_size=1000,
        device=context.device,
        plugins=[*default_plugins(context, settings.tasks), plugin],
        evaluator=make_evaluator(context, *metrics),
    )
    train_stream(strategy, benchmark, context)
    history = strategy.evaluator.get_all_metrics()

    def values(name: str) -> list[float]:
        return next(own for key, (_, own) in history.items() if key.startswith(f"{name}/"))

    shares = [values(f"dgr/ReplayShare/class{c}") for c in range(arrays.n_classes)]
    seen = [(k + 1) * arrays.n_classes // settings.tasks for k in range(settings.tasks)]
    # A class's list begins with the task that it came with.
    rarest = [n * min(own[k - settings.tasks] for own in shares[:n]) for k, n in enumerate(seen)]
    return {
        "grids": replayed_grids(strategy),
        "distance": rounded(values("dgr/ReplayDistance")),
        "rarest": rounded(rarest),
    }


def _generator(arm: str, settings: Any) -> tuple[Callable[..., Any], int]:
    return (make_gan, settings.gan_iterations) if arm == "gr" else (make_vae, settings.vae_iterations)
