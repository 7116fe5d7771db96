"""Which samples, heads and parameters EWCPlugin measures."""

import copy
from typing import Any

import avalanche.training.plugins as stock
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark, with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.core import SupervisedPlugin
from ewc_cases import (
    MultiHead,
    Record,
    assert_same,
    data_of,
    mlp,
    naive,
    snapshot,
)
from reference import fisher_reference
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import TensorDataset

from avl_plugins.ewc.plugin import EWCPlugin


def test_batch_labels_are_avalanches_importances(digits_split: Any) -> None:
    # Multi-head too, and with a last batch that is smaller; Avalanche's data loader is not shuffled.
    theirs, ours = stock.EWCPlugin(1.0), EWCPlugin(ewc_lambda=2.0, fisher_labels="batch")
    strategy = naive(MultiHead(), ours, theirs, train_mb_size=32)
    strategy.train(digits_split.train_stream[:2], eval_streams=[])
    expected = {n: d.data for n, d in theirs.importances[1].items()}
    assert_same(ours.importances, expected, rtol=1e-6, atol=1e-12)


def test_fisher_does_not_depend_on_the_training_batch_size(digits_split: Any) -> None:
    model = MultiHead()
    found = []
    for size in (7, 64):
        plugin = EWCPlugin(ewc_lambda=1.0, fisher_batch_size=size)
        naive(copy.deepcopy(model), plugin, train_epochs=0, train_mb_size=size).train(
            digits_split.train_stream[0], eval_streams=[]
        )
        found.append(plugin.importances)
    assert_same(*found, rtol=1e-4, atol=1e-9)


def test_only_the_current_tasks_head_counts_and_others_are_left_alone(digits_split: Any) -> None:
    # After an evaluation on future tasks the other heads exist; Adam's momentum must not move them either.
    plugin, record = EWCPlugin(ewc_lambda=100.0), Record()
    model = MultiHead()
    strategy = naive(model, plugin, record, optimizer=Adam(model.parameters(), lr=0.01), train_epochs=3)
    strategy.eval(digits_split.test_stream)
    strategy.train(digits_split.train_stream[:3], eval_streams=[])
    protected = {n for n in plugin.penalty.precision if "classifiers" in n}
    assert protected == {f"head.classifiers.{t}.classifier.{w}" for t in range(3) for w in ("weight", "bias")}
    assert {n for n, f in plugin.importances.items() if "classifiers" in n and f.any()} == {
        f"head.classifiers.2.classifier.{w}" for w in ("weight", "bias")
    }
    for name in ("head.classifiers.0.classifier.weight", "head.classifiers.0.classifier.bias"):
        assert torch.equal(record.ends[0][name], record.ends[2][name])
        assert dict(model.named_parameters())[name].grad is None


def test_an_error_inside_a_task_leaves_nothing_to_the_next(digits_split: Any) -> None:
    class Stop(SupervisedPlugin):
        on = False

        def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            if self.on:
                raise KeyboardInterrupt

    model, stop = MultiHead(), Stop()
    strategy = naive(model, EWCPlugin(ewc_lambda=10.0), stop, train_mb_size=10)
    strategy.train(digits_split.train_stream[:2], eval_streams=[])
    stop.on = True
    with pytest.raises(KeyboardInterrupt):
        strategy.train(digits_split.train_stream[0], eval_streams=[])
    stop.on = False
    before = snapshot(model.head.classifiers["0"])
    strategy.train(digits_split.train_stream[2], eval_streams=[])
    assert_same(snapshot(model.head.classifiers["0"]), before, rtol=0, atol=0)


def test_uniform_is_one_for_what_was_trained(digits_split: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=3.0, importance="uniform")
    strategy = naive(MultiHead(), plugin)
    strategy.eval(digits_split.test_stream)
    strategy.train(digits_split.train_stream[0], eval_streams=[])
    assert set(plugin.importances) == {
        "hidden.weight", "hidden.bias", "head.classifiers.0.classifier.weight", "head.classifiers.0.classifier.bias",
    }  # fmt: skip
    assert all(torch.equal(f, torch.ones_like(f)) for f in plugin.importances.values())


class Flip:
    """An augmentation that would show."""

    def __call__(self, x: Tensor) -> Tensor:
        return x + 100 * torch.rand(())


def test_fisher_sees_no_augmentation() -> None:
    y = [0, 1] * 10
    data = TensorDataset(torch.randn(20, 64), torch.tensor(y))
    data.targets = y  # type: ignore[attr-defined]
    benchmark = nc_benchmark(
        data, data, 1, task_labels=False, train_transform=Flip(), eval_transform=lambda x: x, seed=0
    )
    model, plugin = mlp(), EWCPlugin(ewc_lambda=1.0)
    naive(model, plugin, train_epochs=0).train(benchmark.train_stream, eval_streams=[])
    x, _ = data_of(benchmark.train_stream[0])
    assert x.max() < 10
    expected = fisher_reference(model, x, labels="exact")
    assert_same(plugin.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-4, atol=1e-9)


def test_samples_of_different_lengths_go_through_their_collate_fn() -> None:
    class SumOverTime(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1)

    def pad(samples: list[Any]) -> list[Tensor]:
        x, y, t = zip(*samples, strict=True)
        return [nn.utils.rnn.pad_sequence(list(x), batch_first=True), torch.tensor(y), torch.tensor(t)]

    samples = [(torch.randn(1 + n % 5, 4), n % 3) for n in range(30)]
    dataset = AvalancheDataset(
        [samples],  # type: ignore[list-item]
        data_attributes=[
            DataAttribute([y for _, y in samples], "targets"),
            DataAttribute([0] * len(samples), "targets_task_labels", use_in_getitem=True),
        ],
        collate_fn=pad,
    )
    model = nn.Sequential(SumOverTime(), nn.Linear(4, 3))
    plugin = EWCPlugin(ewc_lambda=1.0, fisher_batch_size=4)
    benchmark = with_task_labels(benchmark_from_datasets(train=[dataset]))  # without, Avalanche forgets collate_fn
    naive(model, plugin, train_mb_size=7).train(benchmark.train_stream, eval_streams=[])
    x, _, _ = pad([(x, y, 0) for x, y in samples])
    expected = fisher_reference(model, x, labels="exact")
    assert_same(plugin.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-4, atol=1e-9)


def test_fisher_data_and_max_samples(digits_permuted: Any) -> None:
    x, y = data_of(digits_permuted.train_stream[1])
    seen: list[Any] = []

    def other_data(strategy: Any) -> list[tuple[Tensor, Tensor]]:
        seen.append(strategy)
        return [(x[:30], y[:30])]

    model, plugin = mlp(), EWCPlugin(ewc_lambda=1.0, fisher_data=other_data)
    few = EWCPlugin(ewc_lambda=1.0, max_samples=5, seed=3)
    again = EWCPlugin(ewc_lambda=1.0, max_samples=5, seed=3, fisher_batch_size=11)
    strategy = naive(model, plugin, few, again, train_epochs=0)
    strategy.train(digits_permuted.train_stream[0], eval_streams=[])
    assert seen == [strategy]
    expected = fisher_reference(model, x[:30], labels="exact")
    assert_same(plugin.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-4, atol=1e-9)
    assert_same(few.importances, again.importances, rtol=1e-5, atol=1e-10)
    assert not torch.equal(few.importances["0.bias"], plugin.importances["0.bias"])


def test_include_and_exclude(digits_permuted: Any) -> None:
    by_glob = EWCPlugin(ewc_lambda=1.0, include=["0.*", "2.bias"], exclude="*.weight")
    by_call = EWCPlugin(ewc_lambda=1.0, include=lambda name, p: p.dim() == 2)
    naive(mlp(), by_glob, by_call).train(digits_permuted.train_stream[0], eval_streams=[])
    assert set(by_glob.importances) == set(by_glob.penalty.precision) == {"0.bias", "2.bias"}
    assert set(by_call.importances) == {"0.weight", "2.weight"}
