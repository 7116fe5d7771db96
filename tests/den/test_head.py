"""What the new head reads, computed once: the same training, and computed as ever where it would not be the same."""

import logging

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as tensor_dataset
from avalanche.core import SupervisedPlugin
from den_cases import build, conv
from torch import nn

from avl_plugins import InMemoryLoaderPlugin
from avl_plugins.data.serving import TensorLoader
from avl_plugins.den.head_inputs import head_inputs
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.den.phases import HEAD
from avl_plugins.den.steps import add_squares


def images(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(120, 3, 8, 8, generator=generator).to(dtype), torch.arange(120) % 6
    return nc_benchmark(
        *[tensor_dataset(x, y)] * 2, 3, task_labels=True, class_ids_from_zero_in_each_exp=True, shuffle=False
    )


def trained(plugins=(), net=None, after=(), **options):
    """A network of two tasks, selective retraining only, and how often its body was run in the head's training."""
    runs = []

    class Count(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            counting[0] = strategy.den.phase is HEAD

        def after_forward(self, strategy, **kwargs):
            counting[0] = False

    counting = [False]
    torch.manual_seed(0)
    net = net or conv().double()
    net.hidden[0].register_forward_hook(lambda *args: runs.append(1) if counting[0] else None)
    options = {"epochs": 4, "expand": None, "split": False, "l1": 0.1, "head_tolerance": 0.0, **options}
    strategy = build(net, plugins=[*plugins, Count()], **options)
    strategy.plugins += after
    stream = images(next(net.parameters()).dtype).train_stream
    strategy.train(stream[0])
    torch.manual_seed(1)
    strategy.train(stream[1])
    return strategy, len(runs), torch.get_rng_state()


def parameters(strategy):
    return {name: parameter.detach().clone() for name, parameter in strategy.model.named_parameters()}


def test_the_head_is_trained_as_without():
    """Weights agree to rounding, random numbers exactly; no step runs the body (40 images: 3 a batch of 16)."""
    (plain, steps, random), (once, none, random_once) = (
        trained([InMemoryLoaderPlugin()], cache_bytes=size) for size in (0, 2**20)
    )
    assert steps == 3 * len(plain.den._losses) > 3
    assert none == 0
    assert torch.equal(random, random_once)
    assert plain.den.history[1]["selected"] == once.den.history[1]["selected"]
    for name, parameter in parameters(plain).items():
        torch.testing.assert_close(parameters(once)[name], parameter, rtol=1e-9, atol=1e-12)


class Change(SupervisedPlugin):
    """Does something to the batch."""

    def __init__(self, change, hook):
        super().__init__()
        setattr(self, hook, lambda strategy, **kwargs: change(strategy.mbatch))


@pytest.mark.parametrize("place", ["plugins", "after"])
@pytest.mark.parametrize("hook", ["before_training_iteration", "before_forward"])
@pytest.mark.parametrize("change", [lambda batch: batch.__setitem__(0, batch[0] + 1), lambda batch: batch[0].add_(1)])
def test_changed_images_are_computed(hook, change, place):
    """By a plugin before this one or after it, in place or not."""
    ends = []
    for size in (0, 2**20):
        others = {"plugins": [], "after": []}
        others[place] = [Change(change, hook)]
        others["plugins"].insert(0, InMemoryLoaderPlugin())
        strategy, steps, _ = trained(**others, cache_bytes=size)
        assert steps == 3 * len(strategy.den._losses)
        ends.append(parameters(strategy))
    assert all(torch.equal(parameter, ends[1][name]) for name, parameter in ends[0].items())


def test_random_layers_and_other_loaders_are_computed(caplog):
    caplog.set_level(logging.INFO)
    body = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.Dropout(0.5), nn.ReLU())
    ends = []
    for size in (0, 2**20):
        torch.manual_seed(0)
        net = DynamicallyExpandableNetwork(body).double()
        strategy, steps, random = trained([InMemoryLoaderPlugin()], net, cache_bytes=size)
        assert steps == 3 * len(strategy.den._losses)
        ends.append((parameters(strategy), random))
    assert torch.equal(ends[0][1], ends[1][1])
    assert all(torch.equal(parameter, ends[1][0][name]) for name, parameter in ends[0][0].items())
    assert "computed in each step: the layers are random" in caplog.text
    strategy, steps, _ = trained(cache_bytes=2**20)
    assert steps == 3 * len(strategy.den._losses)
    assert "the batches do not come from InMemoryLoaderPlugin" in caplog.text
    strategy, steps, _ = trained([InMemoryLoaderPlugin()], cache_bytes=1000)
    assert steps == 3 * len(strategy.den._losses)
    assert f"cache_bytes: the features of 40 samples take {40 * 9 * 8} bytes, more than 1000" in caplog.text


def test_features_belong_to_the_latest_batch():
    net = conv()
    net.add_task(0, 2), net.add_task(1, 2)
    x = torch.randn(2500, 3, 8, 8)
    loader = TensorLoader(lambda rows: (x[rows],), 2500, batch_size=100, shuffle=True)
    found = head_inputs(net, loader, device="cpu", limit=2**20)
    assert found.latest() is None
    for (batch,) in loader:
        given = found.latest()
        assert torch.allclose(given.of(batch)[0], net.features(batch, 1), atol=1e-6)
        assert given.of(batch.clone()) is None
        old = net(batch, 0)
        with net.given_features(given):
            assert torch.equal(net(batch, 1), net.head_of(1)(given.features[0]))
            assert torch.equal(net(batch, 0), old), "they are the newest task's"
        assert torch.allclose(net.features(batch, 1), given.features[0], atol=1e-6)
        batch.mul_(2)
        assert given.of(batch) is None
    assert found.latest() is None


def test_squares_are_those_of_autograd():
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (4, 5, 3, 3)]
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    expected = [weight.detach().clone().requires_grad_() for weight in weights]
    penalty = 0.3 / 2 * sum(weight.square().sum() for weight in expected)
    (sum(weight.sin().sum() for weight in expected) + penalty).backward()
    assert float(add_squares(weights, 0.3)) == pytest.approx(float(penalty.detach()), rel=1e-12)
    sum(weight.sin().sum() for weight in weights).backward()
    for weight, other in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=1e-12, atol=1e-14)
    add_squares(weights, 0.3)
    for weight, other in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, other.grad + 0.3 * weight, rtol=1e-12, atol=1e-14)
