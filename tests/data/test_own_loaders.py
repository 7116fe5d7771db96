"""Loaders that are not Avalanche's default ones: bit for bit what they give, served from memory or left in place."""

import logging
from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_loader import (
    GroupBalancedDataLoader,
    SingleDatasetDataLoader,
    TaskBalancedDataLoader,
)
from avalanche.core import SupervisedPlugin
from avalanche.distributed.distributed_helper import DistributedHelper
from avalanche.training import Cumulative, Naive
from avalanche.training.plugins import ReplayPlugin
from loading_cases import assert_same, build, run
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from avl_plugins.data.loading import InMemoryLoaderPlugin
from avl_plugins.data.sampling import NotServed, sampling_of
from avl_plugins.data.serving import TensorLoader


class Mine(DataLoader):
    pass


def seeded():
    return torch.Generator().manual_seed(8)


def by_class(data):
    return [data.subset(rows) for rows in data.targets.val_to_idx.values()]


SERVED = {
    "shuffled": lambda d: DataLoader(d, 32, shuffle=True),
    "in order, drop_last": lambda d: DataLoader(d, 32, drop_last=True),
    "batch sampler": lambda d: DataLoader(d, batch_sampler=BatchSampler(RandomSampler(d), 30, drop_last=True)),
    "sampler": lambda d: DataLoader(d, 32, sampler=SequentialSampler(d)),
    "Avalanche's for evaluation": lambda d: SingleDatasetDataLoader(d, 32, shuffle=True),
    "Avalanche's with workers that do not persist": lambda d: TaskBalancedDataLoader(d, 32, persistent_workers=False),
}
LEFT = {
    "generator": (lambda d: DataLoader(d, 32, shuffle=True, generator=seeded()), "sampler or a generator"),
    "sampler's generator": (lambda d: DataLoader(d, 32, sampler=RandomSampler(d, generator=seeded())), "sampler or"),
    "replacement": (lambda d: DataLoader(d, 32, sampler=RandomSampler(d, replacement=True)), "sampler or"),
    "more samples": (lambda d: DataLoader(d, 32, sampler=RandomSampler(d, num_samples=500)), "sampler or"),
    "fewer samples": (lambda d: DataLoader(d, 32, sampler=SequentialSampler(range(90))), "sampler or"),
    "subset": (lambda d: DataLoader(d, 32, sampler=SubsetRandomSampler(range(0, 300, 3))), "sampler or"),
    "weights": (lambda d: DataLoader(d, 32, sampler=WeightedRandomSampler([1.0] * len(d), 99)), "sampler or"),
    "list of batches": (lambda d: DataLoader(d, batch_sampler=[[0, 1], [2, 3]]), "sampler or"),
    "subclass": (lambda d: Mine(d, 32), "loader of its own, Mine"),
    "list": (lambda d: list(DataLoader(d, 32)), "loader of its own, list"),
    "balanced": (lambda d: GroupBalancedDataLoader(by_class(d), batch_size=32), "own, GroupBalancedDataLoader"),
    "Avalanche's with a generator": (lambda d: TaskBalancedDataLoader(d, 32, generator=seeded()), "option generator"),
    "Avalanche's with a sampler": (lambda d: TaskBalancedDataLoader(d, 32, sampler=RandomSampler(d)), "option sampler"),
    "collate_fn": (lambda d: DataLoader(d, 32, collate_fn=lambda samples: default_collate(samples)), "collate_fn"),
}


def strategy_with(make):
    class Own(Naive):
        def make_train_dataloader(self, **kwargs):
            self.dataloader = make(self.adapted_dataset)

    return Own


@pytest.mark.parametrize("name", [*SERVED, *LEFT])
def test_a_strategys_own_loader(name, digits_permuted, caplog):
    make, why = (SERVED[name], None) if name in SERVED else LEFT[name]
    cls = strategy_with(make)
    theirs = run(digits_permuted, cls=cls)
    ours = run(digits_permuted, InMemoryLoaderPlugin(), cls=cls)
    assert_same(ours, theirs)
    training = ours[0].loaders[0]
    assert (training is TensorLoader) == (why is None)
    assert ours[0].loaders[-1] is TensorLoader, "in evaluation"
    if why is None:
        assert caplog.text == ""
        return
    (record,) = caplog.records  # of two experiences
    assert record.levelno == logging.WARNING
    assert why in record.getMessage()
    strict = build(InMemoryLoaderPlugin(strict=True), cls=cls)
    with pytest.raises(ValueError, match=f"InMemoryLoaderPlugin cannot serve the batches: .*{why}"):
        strict.train(digits_permuted.train_stream[0])


def test_what_has_no_order_or_no_batch(digits_permuted, monkeypatch):
    data = digits_permuted.train_stream[0].dataset
    for loader, why in (
        (DataLoader(data, batch_size=None), "sampler or a generator"),
        (SingleDatasetDataLoader(data, 32, never_ending=True), "never ends"),
        (TaskBalancedDataLoader(data, 1000, drop_last=True), "no batch"),
    ):
        with pytest.raises(NotServed, match=why):
            sampling_of(SimpleNamespace(dataloader=loader))
    monkeypatch.setattr(DistributedHelper, "_is_distributed", True, raising=False)
    monkeypatch.setattr(type(DistributedHelper), "is_distributed", True)
    with pytest.raises(NotServed, match="distributed run"):
        sampling_of(SimpleNamespace(dataloader=DataLoader(data)))


@pytest.mark.filterwarnings("ignore:Call to deprecated function update")
def test_a_loader_put_in_place_later_is_refused_if_asked_for(digits_permuted):
    strategy = build(InMemoryLoaderPlugin(strict=True), ReplayPlugin(mem_size=20))
    strategy.train(digits_permuted.train_stream[0])
    with pytest.raises(ValueError, match="ReplayPlugin uses a loader of its own, ReplayDataLoader"):
        strategy.train(digits_permuted.train_stream[1])


def test_an_eval_loader_replaced_later(digits_permuted, caplog):
    class Replace(SupervisedPlugin):
        def before_eval_exp(self, strategy, **kwargs):
            strategy.dataloader = DataLoader(strategy.adapted_dataset, batch_size=100)

    build(InMemoryLoaderPlugin(), Replace()).eval(digits_permuted.test_stream)
    (record,) = caplog.records
    assert "the strategy or another plugin uses a loader of its own, DataLoader" in record.getMessage()
    with pytest.raises(ValueError, match="another plugin"):
        build(InMemoryLoaderPlugin(strict=True), Replace()).eval(digits_permuted.test_stream)


def test_several_task_labels_keep_the_balanced_loader(digits_split, caplog):
    ours = run(digits_split, InMemoryLoaderPlugin(), cls=Cumulative)
    assert_same(ours, run(digits_split, cls=Cumulative))
    assert ours[0].loaders[0] is TensorLoader
    assert TaskBalancedDataLoader in ours[0].loaders
    assert "several task labels in one data set" in caplog.text


def test_samples_that_form_no_batch_are_left(digits_permuted, caplog):
    """In evaluation: where each is a batch of its own, it may work."""
    ragged = AvalancheDataset([[(torch.zeros(64 * n), 0) for n in (1, 2)]])
    strategy = build(InMemoryLoaderPlugin())
    strategy.model[0] = torch.nn.AdaptiveAvgPool1d(64)
    strategy.eval_mb_size = 1
    strategy.eval(benchmark_from_datasets(test=[ragged]).test_stream)
    assert "do not form a batch" in caplog.text
