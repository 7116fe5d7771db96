"""Runs of Deep Generative Replay for the tests: small solvers and generators, and a strategy."""

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from silent import Silent
from torch import nn
from torch.utils.data import TensorDataset

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


class Recorder:
    """A generator of a user's own: no module, it gives the first inputs it saw, and notes what `fit_batch` gets."""

    def __init__(self, batch_size=32, data_range=None):
        self.batch_size, self.data_range = batch_size, data_range
        self.calls, self.seen = [], None

    def fit_batch(self, real, replayed, ratio):
        self.calls.append((real, replayed, ratio))
        self.seen = real if self.seen is None else self.seen
        return {"loss": real.new_zeros(())}

    def sample(self, n, generator=None):
        return self.seen[torch.randint(len(self.seen), (n,), generator=generator)]

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


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


def stream_of(*columns):
    """Experiences without task labels of these inputs, or (inputs, targets)."""
    pairs = [c if isinstance(c, tuple) else (c, torch.arange(len(c)) % 10) for c in columns]
    return benchmark_from_datasets(train=[make_avalanche_dataset(TensorDataset(*pair)) for pair in pairs]).train_stream


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(before, module):
    """Whether a module has these weights still."""
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
