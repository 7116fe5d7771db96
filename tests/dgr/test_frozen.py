"""Copies of networks answer as these did, bit for bit, whatever the networks keep, share or compute."""

import copy
import warnings

import pytest
import torch
from dgr_cases import build, gan, stream_of, vae
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as older_spectral_norm

from avl_plugins import VAE, WGANGP
from avl_plugins.dgr.frozen import detached_copy, frozen_copy
from avl_plugins.dgr.networks import mlp_critic, mlp_decoder, mlp_encoder


def older_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


class KeepsActivations(nn.Module):
    """As an attribute, in containers, and in an object of its own."""

    class Cache:
        pass

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))
        self.cache = self.Cache()

    def forward(self, x):
        self.last = self.layers[0](x)
        self.history = [{"h": (self.last, x)}]
        self.cache.hidden = self.layers[1](self.last)
        return self.layers[2](self.cache.hidden)


class Tied(nn.Module):
    """The same parameter under two names, in another place in each, and a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.second = nn.Linear(64, 10), nn.Linear(10, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.full((10,), 1.5), persistent=False)
        self.shift = torch.arange(10.0)

    def forward(self, x):
        return self.second(self.middle(self.first(x))) * self.scale + self.shift


def with_hooks():
    model = nn.Sequential(nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    model[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    return model


def compiled_in_place():
    model = mlp()
    model.compile(backend="eager")
    return model


def mlp(wrap=lambda layer: layer):
    return nn.Sequential(wrap(nn.Linear(64, 30)), nn.BatchNorm1d(30), nn.ReLU(), nn.Dropout(0.3), nn.Linear(30, 10))


MODELS = {
    "plain": mlp,
    "data parallel": lambda: nn.DataParallel(mlp()),
    "data parallel inside": lambda: nn.Sequential(nn.DataParallel(nn.Linear(64, 30)), nn.ReLU(), nn.Linear(30, 10)),
    "keeps activations": KeepsActivations,
    "older weight norm": lambda: mlp(older_weight_norm),
    "older spectral norm": lambda: mlp(older_spectral_norm),
    "weight norm": lambda: mlp(parametrizations.weight_norm),
    "spectral norm": lambda: mlp(parametrizations.spectral_norm),
    "orthogonal": lambda: mlp(parametrizations.orthogonal),
    "compiled": lambda: torch.compile(mlp(), backend="eager"),
    "compiled in place": compiled_in_place,
    "hooks": with_hooks,
    "lazy": lambda: nn.Sequential(nn.LazyLinear(30), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(10)),
    "tied": Tied,
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_the_old_solver_answers_as_the_model_did(name):
    """At the end of a task, after another one has been trained, and after it has been through a state."""
    model = MODELS[name]()
    strategy = build(model, generator=None, replay="exact", chunk=100)
    stream = stream_of(torch.rand(40, 64), torch.rand(40, 64))
    strategy.train(stream[0])
    x = torch.rand(20, 64)
    training = model.training
    with torch.no_grad():
        expected = model.eval()(x)
    model.train(training)
    first = strategy.dgr.scholar.solver
    state = copy.deepcopy(strategy.dgr.state_dict())
    strategy.train(stream[1])
    with torch.no_grad():
        assert not torch.equal(model.eval()(x), expected), "it has moved"
    loaded = build(MODELS[name](), generator=None, replay="exact")
    loaded.dgr.load_state_dict(state)
    for solver in (first, loaded.dgr.scholar.solver):
        solver.classes = None
        ((_, found),) = solver.logits(x)
        assert torch.equal(found, expected)
        assert not found.requires_grad


def test_what_cannot_be_copied_is_said_at_the_first_mini_batch():
    class Locked(nn.Linear):
        def __init__(self):
            super().__init__(64, 10)
            self.handle = iter([1])  # what an open file, a lock or a generator is, too

        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle '_thread.lock' object")

    model = Locked()
    strategy = build(model, generator=None, replay="exact")
    before = model.weight.clone()
    with pytest.raises(ValueError, match="model: DGR keeps a copy of the solver, and it cannot be copied: "):
        strategy.train(stream_of(torch.rand(40, 64))[0])
    assert torch.equal(model.weight, before)


GENERATORS = {
    "vae": vae,
    "gan": gan,
    "older norms": lambda: WGANGP(
        generator=nn.Sequential(older_weight_norm(nn.Linear(8, 64)), nn.Tanh()),
        critic=nn.Sequential(older_spectral_norm(nn.Linear(64, 16)), nn.ReLU(), nn.Linear(16, 1)),
        latent=8,
        samples=8,
        critic_steps=2,
    ),
    "older norms, averaged": lambda: WGANGP(
        generator=nn.Sequential(older_weight_norm(nn.Linear(8, 64)), nn.Tanh()),
        critic=mlp_critic((64,), units=(16,)),
        latent=8,
        samples=8,
        critic_steps=2,
        average=0.5,
    ),
    "parametrized": lambda: VAE(
        encoder=nn.Sequential(parametrizations.weight_norm(nn.Linear(64, 16))),
        decoder=nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 64))),
        latent=8,
        batch_size=32,
    ),
    "lazy": lambda: VAE(
        encoder=nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d()),
        decoder=nn.Sequential(nn.LazyLinear(64)),
        latent=8,
        batch_size=32,
    ),
    "data parallel": lambda: VAE(
        encoder=nn.DataParallel(mlp_encoder((64,), 8, units=(16,))),
        decoder=nn.DataParallel(mlp_decoder(8, (64,), units=(16,))),
        latent=8,
        batch_size=32,
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("name", GENERATORS)
def test_the_old_generator_samples_as_it_did(name):
    strategy = build(generator=GENERATORS[name](), generator_iterations=5)
    stream = stream_of(torch.rand(40, 64), torch.rand(40, 64))
    strategy.train(stream[0])
    random = torch.Generator()
    live = strategy.dgr.generator.sample(20, random.manual_seed(1))
    first = strategy.dgr.scholar
    assert torch.equal(first.source(20, random.manual_seed(1)), live)
    strategy.train(stream[1])
    assert torch.equal(first.source(20, random.manual_seed(1)), live)
    assert not torch.equal(strategy.dgr.generator.sample(20, random.manual_seed(1)), live)


def test_a_copy_shares_what_the_original_shares_and_nothing_with_it():
    model = KeepsActivations()
    model(torch.rand(3, 64))
    twin = detached_copy(model)
    assert twin.history[0]["h"][0] is twin.last
    assert torch.equal(twin.last, model.last)
    assert not twin.last.requires_grad
    assert twin.last.data_ptr() != model.last.data_ptr()
    assert model.last.requires_grad, "the original keeps its graph"
    assert all(not p.requires_grad for p in frozen_copy(model).parameters())
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user"):
        copy.deepcopy(model)
