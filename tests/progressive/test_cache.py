"""Features of frozen columns computed once an experience: the same training, and an error where it would not be."""

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

from avl_plugins import InMemoryLoaderPlugin, ProgressiveNetwork, ProgressivePlugin


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
        strategy = build(net, plugins=[InMemoryLoaderPlugin()] if loader or not cache else [], cache_frozen=cache)
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
    strategy = build(ProgressiveNetwork(conv_column()), cache_frozen=True)
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(ValueError, match="cache_frozen: the data set's transforms are random"):
        strategy.train(benchmark.train_stream[1])

    benchmark = images()
    strategy = build(ProgressiveNetwork(conv_column()), cache_frozen=True, cache_bytes=1000)
    strategy.train(benchmark.train_stream[0])
    need = 40 * (81 + 12) * 4
    with pytest.raises(ValueError, match=f"cache_bytes: .*40 samples take {need} bytes, more than 1000"):
        strategy.train(benchmark.train_stream[1])

    replay = build(ProgressiveNetwork(conv_column()), plugins=[ReplayPlugin(20)], cache_frozen=True)
    replay.train(benchmark.train_stream[0])
    with pytest.raises(ValueError, match="cache_frozen: ReplayPlugin uses a loader of its own"):
        replay.train(benchmark.train_stream[1])

    with pytest.raises(ValueError, match="cache_bytes must be an integer >= 0"):
        ProgressivePlugin(cache_bytes=-1)


def test_a_plugin_that_changes_the_batch_is_told(digits_split):
    class Halve(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            strategy.mbatch[0] = strategy.mbatch[0][::2]
            strategy.mbatch[1] = strategy.mbatch[1][::2]
            strategy.mbatch[-1] = strategy.mbatch[-1][::2]

    strategy = build(plugins=[Halve()], cache_frozen=True)
    strategy.train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match="cache_frozen: features of 32 samples, and the batch of 16 is not the one"):
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
    strategy = build(plugins=[Change(change)], cache_frozen=True)
    strategy.train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match=r"cache_frozen: .* is not the one they were computed from"):
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
    strategy = build(plugins=[interrupt], cache_frozen=True)
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
    strategy = build(net, cache_frozen=True)
    strategy.train(digits_split.train_stream[0])
    net.columns[0].stages[0].layer.register_forward_hook(lambda *args: runs.append(1))
    strategy.train(digits_split.train_stream[1])
    assert runs == []


def test_the_loaders_place_among_the_plugins(digits_split):
    """It comes first; after the plugin, and a loader of another plugin's, are told from each other."""
    late = build(strategy=Naive, plugins=[ProgressivePlugin(cache_frozen=True), InMemoryLoaderPlugin()])
    with pytest.raises(ValueError, match="cache_frozen: put InMemoryLoaderPlugin before ProgressivePlugin"):
        late.train(digits_split.train_stream[0])
    assert late.model.labels == []


@pytest.mark.filterwarnings("ignore:Call to deprecated function update")
def test_a_loader_put_in_place_later_is_told(digits_split):
    strategy = build(strategy=Naive, plugins=[ProgressivePlugin(cache_frozen=True), ReplayPlugin(20)])
    strategy.train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match="a plugin after ProgressivePlugin uses a loader of its own, ReplayDataLoader"):
        strategy.train(digits_split.train_stream[1])


def test_data_of_several_tasks_are_told(digits_split):
    strategy = build(
        strategy=Cumulative, plugins=[ProgressivePlugin(cache_frozen=True)], criterion=nn.CrossEntropyLoss()
    )
    strategy.train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match=r"cache_frozen: .*several task labels in one data set"):
        strategy.train(digits_split.train_stream[1])
