"""Runs of Deep Generative Replay for the tests: small solvers and generators, and a strategy."""

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from silent import Silent
from torch import nn

from avl_plugins import DGR, VAE, WGANGP
from avl_plugins.dgr.networks import mlp_critic, mlp_decoder, mlp_encoder


def net():
    return nn.Sequential(nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))


def vae(**options):
    return VAE(
        encoder=mlp_encoder((64,), 8, units=(64,)),
        decoder=mlp_decoder(8, (64,), units=(64,)),
        latent=8,
        batch_size=32,
        **options,
    )


def gan():
    return WGANGP(
        generator=mlp_decoder(8, (64,), units=(32,), output=nn.Tanh()),
        critic=mlp_critic((64,), units=(32,)),
        latent=8,
        samples=8,
        critic_steps=2,
    )


def build(model=None, strategy=DGR, plugins=(), epochs=1, metrics=None, **options):
    torch.manual_seed(0)
    model = model or net()
    if strategy is DGR:
        options = {"generator": vae(), "generator_iterations": 5, **options}
    return strategy(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=20,
        train_epochs=epochs,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(metrics or accuracy_metrics(epoch=True, stream=True), loggers=[Silent()]),
        **options,
    )
