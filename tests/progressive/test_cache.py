"""Features of frozen columns computed once an experience: the same training, and an error where it would not be."""

import inspect
import logging
import re

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as tensor_dataset
from avalanche.core import SupervisedPlugin
from avalanche.training import Cumulative, Naive
from avalanche.training.plugins import ReplayPlugin
from progressive_runs import UNSEEN, build, column
from torch import nn
from torchvision import transforms

from avl_plugins import InMemoryLoaderPlugin, Progressive, ProgressiveNetwork, ProgressivePlugin


def images(random_transform=False, dtype=torch.float32):
    x, y = torch.rand(120, 1, 8, 8).to(dtype), torch.arange(120) % 6
    transform = transforms.RandomHorizontalFlip() if random_transform else None
    data = tensor_dataset(x, y, transform=transform)
    return nc_benchmark(data, data, 3, task_labels=True, class_ids_from_zero_in_each_exp=True, shuffle=False)


def conv_column():
    return nn.Sequential(
        nn.Conv2d(1, 9, 3), nn.BatchNorm2d(9), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(81, 12), nn.ReLU()
    )


@pytest.mark.parametrize("adapter", ["mlp", "linear"])
@pytest.mark.parametrize("loader", [True, False])
def test_cached_features_train_as_computed_ones(adapter, loader):
    """Weights agree to rounding; frozen columns are not run in a step; the optimizer sees the same batches."""
    ends = []
    benchmark = images(dtype=torch.float64)  # so that only rounding of 1e-16 is between the two
    for cache in (False, True):
        torch.manual_seed(0)
        net = ProgressiveNetwork(conv_column(), adapter=adapter).double()
        strategy = build(
            net, plugins=[InMemoryLoaderPlugin()] if loader or not cache else [], cache_bytes=2**32 * cache
        )
        runs = []
        for k, experience in enumerate(benchmark.train_stream):
            if k == 2:
                net.columns[0].stages[0].layer.register_forward_hook(lambda *args: runs.append(1))  # noqa: B023
            torch.manual_seed(k)
            strategy.train(experience)
        ends.append(([p.clone() for p in net.parameters()], len(runs)))
    (plain, steps), (cached, once) = ends
    assert steps == 2 * 2  # 40 samples in two batches, two epochs
    assert once == 1  # 40 samples in one part
    for a, b in zip(plain, cached, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Call to deprecated function update")
def test_cached_features_are_refused_where_they_would_be_wrong():
    benchmark = images(random_transform=True)
    strategy = build(ProgressiveNetwork(conv_column()), cache_bytes=2**32)
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(ValueError, match="cache_bytes: the data set's transforms are random"):
        strategy.train(benchmark.train_stream[1])

    benchmark = images()
    replay = build(ProgressiveNetwork(conv_column()), plugins=[ReplayPlugin(20)], cache_bytes=2**32)
    replay.train(benchmark.train_stream[0])
    with pytest.raises(ValueError, match="cache_bytes: ReplayPlugin uses a loader of its own"):
        replay.train(benchmark.train_stream[1])

    with pytest.raises(ValueError, match="cache_bytes must be an integer >= 0"):
        ProgressivePlugin(cache_bytes=-1)


class Noisy(nn.Module):
    """Random in evaluation mode, too."""

    def forward(self, x):
        return x + 0.1 * torch.rand_like(x)


@pytest.mark.parametrize("loader", [True, False])
@pytest.mark.parametrize("noisy", [True, False])
def test_features_that_cannot_be_kept_are_computed_in_each_step(caplog, noisy, loader):
    """Bit for bit what `cache_bytes=0` gives, with the loader that was there, and the log says why."""
    need, ends = 40 * (81 + 12) * 4, []
    caplog.set_level(logging.INFO, logger="avl_plugins.progressive")
    for size in (0, 2**30 if noisy else need - 1):
        torch.manual_seed(0)
        net = ProgressiveNetwork(nn.Sequential(*conv_column(), *[Noisy()] * noisy))
        strategy = build(net, plugins=[InMemoryLoaderPlugin()] * loader, cache_bytes=size)
        loaders = []
        for experience in images().train_stream[:2]:
            strategy.train(experience)
            loaders.append(type(strategy.dataloader))
        ends.append((loaders, [p.clone() for p in net.parameters()]))
        assert bool(caplog.messages) == bool(size)
    why = "the layers are random" if noisy else f"cache_bytes: the features of 40 samples take {need} bytes, more than"
    assert f"features of frozen columns are computed in each step: {why}" in caplog.text
    (plain_loaders, plain), (loaders, found) = ends
    assert loaders == plain_loaders
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


@pytest.mark.parametrize(
    ("old", "size"),
    [
        ({"cache_frozen": True}, 2**32),
        ({"cache_frozen": True, "cache_bytes": 1000}, 1000),
        ({"cache_frozen": False}, 0),
        ({"cache_frozen": False, "cache_bytes": 1000}, 0),
    ],
)
def test_the_old_keyword_means_what_it_meant(old, size):
    now = "2**32" if old["cache_frozen"] else "0"
    text = re.escape(f"ProgressivePlugin: cache_frozen={old['cache_frozen']} is cache_bytes={now} now")
    with pytest.warns(DeprecationWarning, match=text) as found:
        assert ProgressivePlugin(**old).cache_bytes == size
    assert found[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="^Progressive: cache_frozen"):
        strategy = build(**old)
    assert strategy.progressive.cache_bytes == size
    for kind in (Progressive, ProgressivePlugin):
        assert "cache_frozen" not in inspect.signature(kind).parameters
        assert inspect.signature(kind).parameters["cache_bytes"].default == 0


def test_a_plugin_that_changes_the_batch_is_told(digits_split):
    class Halve(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            strategy.mbatch[0] = strategy.mbatch[0][::2]
            strategy.mbatch[1] = strategy.mbatch[1][::2]
            strategy.mbatch[-1] = strategy.mbatch[-1][::2]

    strategy = build(plugins=[Halve()], cache_bytes=2**32)
    strategy.train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match="cache_bytes: features of 32 samples, and the batch of 16 is not the one"):
        strategy.train(digits_split.train_stream[1])


class Change(SupervisedPlugin):
    """Does something to the batch before the forward pass."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def before_forward(self, strategy, **kwargs):
        self.change(strategy.mbatch)


@pytest.mark.parametrize("change", [lambda batch: batch.__setitem__(0, batch[0] + 1), lambda batch: batch[0].add_(1)])
def test_a_plugin_that_changes_the_images_is_told(digits_split, change):
    """As many images as before, but the frozen columns' features are not theirs."""
    strategy = build(plugins=[Change(change)], cache_bytes=2**32)
    strategy.train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match=r"cache_bytes: .* is not the one they were computed from"):
        strategy.train(digits_split.train_stream[1])


@pytest.mark.filterwarnings(UNSEEN)
def test_an_interrupted_step_leaves_no_features_behind(digits_split):
    """After Ctrl-C inside a forward pass other batches are computed as ever, and training goes on."""

    class Interrupt(SupervisedPlugin):
        armed = False

        def after_forward(self, strategy, **kwargs):
            if self.armed:
                raise KeyboardInterrupt

    interrupt = Interrupt()
    strategy = build(plugins=[interrupt], cache_bytes=2**32)
    strategy.train(digits_split.train_stream[0])
    interrupt.armed = True
    with pytest.raises(KeyboardInterrupt):
        strategy.train(digits_split.train_stream[1])
    x = torch.randn(32, 64)
    model = strategy.model.eval()
    assert torch.equal(model(x, 1), model.to_single_task(1)(x))
    strategy.eval(digits_split.test_stream)
    interrupt.armed = False
    strategy.train(digits_split.train_stream[1])
    assert strategy.model.labels == [0, 1]


def test_nothing_is_computed_for_columns_that_are_not_connected(digits_split):
    net = ProgressiveNetwork(column(), adapter=None)
    runs = []
    strategy = build(net, cache_bytes=2**32)
    strategy.train(digits_split.train_stream[0])
    net.columns[0].stages[0].layer.register_forward_hook(lambda *args: runs.append(1))
    strategy.train(digits_split.train_stream[1])
    assert runs == []


def test_the_loaders_place_among_the_plugins(digits_split):
    """It comes first; after the plugin, and a loader of another plugin's, are told from each other."""
    late = build(strategy=Naive, plugins=[ProgressivePlugin(cache_bytes=2**32), InMemoryLoaderPlugin()])
    with pytest.raises(ValueError, match="cache_bytes: put InMemoryLoaderPlugin before ProgressivePlugin"):
        late.train(digits_split.train_stream[0])
    assert late.model.labels == []


@pytest.mark.filterwarnings("ignore:Call to deprecated function update")
def test_a_loader_put_in_place_later_is_told(digits_split):
    strategy = build(strategy=Naive, plugins=[ProgressivePlugin(cache_bytes=2**32), ReplayPlugin(20)])
    strategy.train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match="a plugin after ProgressivePlugin uses a loader of its own, ReplayDataLoader"):
        strategy.train(digits_split.train_stream[1])


def test_data_of_several_tasks_are_told(digits_split):
    strategy = build(
        strategy=Cumulative, plugins=[ProgressivePlugin(cache_bytes=2**32)], criterion=nn.CrossEntropyLoss()
    )
    strategy.train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match=r"cache_bytes: .*several task labels in one data set"):
        strategy.train(digits_split.train_stream[1])
