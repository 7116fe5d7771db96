"""Batches from memory: bit for bit those of Avalanche's loaders."""

from __future__ import annotations

import pytest
import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    benchmark_with_validation_stream,
    nc_benchmark,
    task_incremental_benchmark,
)
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, as_classification_dataset
from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as tensor_dataset
from avalanche.benchmarks.utils.classification_dataset import TaskAwareClassificationDataset
from avalanche.core import SupervisedPlugin
from avalanche.training import Cumulative, Naive
from loading_cases import Pictures, Recorder, assert_same, build, parameters, run
from torch.utils.data import TensorDataset

from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.checkpoint.resume import Resumable
from avl_plugins.data.loading import InMemoryLoaderPlugin
from avl_plugins.data.serving import TensorLoader
from avl_plugins.data.tensors import dataset_tensors
from benchmarks.data.arrays import Images


def _tensor_set(arrays):
    return TensorDataset(torch.from_numpy(arrays.x_train).flatten(1) / 255, torch.from_numpy(arrays.y_train).byte())


def _with_targets(x, y):
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    return data


def _nc_benchmark(arrays):
    data = _with_targets(*_tensor_set(arrays).tensors)
    return nc_benchmark(data, data, 5, task_labels=False, seed=0, class_ids_from_zero_in_each_exp=True)


def _new_api_benchmark(arrays):
    whole = as_classification_dataset(_with_targets(*_tensor_set(arrays).tensors))
    parts = [whole.subset(list(range(start, start + 200))) for start in (0, 200)]
    return benchmark_from_datasets(train=parts, test=parts)


@pytest.fixture(params=["permuted", "split", "nc_benchmark", "without task labels"])
def any_benchmark(request, digits_arrays, digits_permuted, digits_split):
    made = {"permuted": lambda: digits_permuted, "split": lambda: digits_split}
    made |= {
        "nc_benchmark": lambda: _nc_benchmark(digits_arrays),
        "without task labels": lambda: _new_api_benchmark(digits_arrays),
    }
    return made[request.param]()


PERSISTENT = {"num_workers": 1, "persistent_workers": True}
OPTIONS = [{}, {"shuffle": False}, {"drop_last": True}, {"pin_memory": True}, {"num_workers": 1}, PERSISTENT]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_training_is_bit_for_bit_what_avalanches_loader_gives(any_benchmark, options):
    theirs = run(any_benchmark, epochs=3, **options)
    ours = run(any_benchmark, InMemoryLoaderPlugin(strict=True), epochs=3, **options)
    assert set(ours[0].loaders) == {TensorLoader}
    assert TensorLoader not in theirs[0].loaders
    assert_same(ours, theirs)


def test_cumulative_training_joins_the_experiences(digits_classes):
    ours = run(digits_classes, InMemoryLoaderPlugin(), cls=Cumulative)
    assert set(ours[0].loaders) == {TensorLoader}
    assert_same(ours, run(digits_classes, cls=Cumulative))


SETS = {
    "samples": lambda x, y: AvalancheDataset([TensorDataset(x, y)]),
    "samples, one by one": lambda x, y: AvalancheDataset([[(a, int(b)) for a, b in zip(x, y, strict=True)]]),
    "classification": lambda x, y: as_classification_dataset(_with_targets(x, y)),
    "task-aware, without task labels": lambda x, y: TaskAwareClassificationDataset([TensorDataset(x, y)]),
    "task-aware": lambda x, y: tensor_dataset(x, y, task_labels=3),
    "targets": lambda x, y: AvalancheDataset(
        [TensorDataset(x, y)], data_attributes=[DataAttribute(y.tolist(), "targets")]
    ),
    "an attribute served": lambda x, y: AvalancheDataset(
        [TensorDataset(x, y)], data_attributes=[DataAttribute(list(range(len(x))), "number", use_in_getitem=True)]
    ),
}
BENCHMARKS = {
    "parts": lambda d: benchmark_from_datasets(train=[d.subset(range(25)), d.subset(range(25, 50))], test=[d]),
    "frozen and joined": lambda d: benchmark_from_datasets(train=[d.freeze_transforms(), d.concat(d)], test=[d]),
    "task labels added": lambda d: task_incremental_benchmark(
        benchmark_from_datasets(train=[d, d], test=[d]), reset_task_labels=True
    ),
    "validation split off": lambda d: benchmark_with_validation_stream(
        benchmark_from_datasets(train=[d, d], test=[d]), validation_size=0.3
    ),
}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("data", SETS)
def test_every_kind_of_data_set(data, benchmark):
    """With and without targets and task labels."""
    torch.manual_seed(0)
    x, y = torch.randn(50, 64), torch.arange(50) % 10
    made = BENCHMARKS[benchmark](SETS[data](x, y))
    ours = run(made, InMemoryLoaderPlugin(strict=True))
    assert set(ours[0].loaders) == {TensorLoader}
    assert_same(ours, run(made))


def test_tensors_held_on_a_device_give_the_same_run(digits_permuted):
    held = run(digits_permuted, InMemoryLoaderPlugin(device="cpu"))
    assert_same(held, run(digits_permuted, InMemoryLoaderPlugin()))


@pytest.mark.parametrize(("cache_bytes", "passes"), [(2**30, 1), (1000, 2)])
def test_images_are_computed_once_an_experience_where_they_fit(monkeypatch, digits_permuted, cache_bytes, passes):
    """In training; an evaluation passes over them once anyway."""
    gathered = []
    gather = Images.gather
    monkeypatch.setattr(Images, "gather", lambda self, rows: gathered.append(len(rows)) or gather(self, rows))
    experience = digits_permuted.train_stream[0]
    strategy = build(InMemoryLoaderPlugin(cache_bytes=cache_bytes), train_epochs=2)
    strategy.train(experience)
    assert sum(gathered) == 1 + passes * len(experience.dataset)  # one sample is read to know how large they are
    gathered.clear()
    strategy.eval(digits_permuted.test_stream[:1])
    assert sum(gathered) == len(digits_permuted.test_stream[0].dataset)
    assert max(gathered) == 50


def test_periodic_evaluation_leaves_the_training_loader_in_place(digits_permuted):
    runs = []
    for plugins in ([], [InMemoryLoaderPlugin()]):
        strategy = build(*plugins, train_epochs=2, eval_every=1)
        strategy.train(digits_permuted.train_stream[0], eval_streams=[digits_permuted.test_stream])
        runs.append(parameters(strategy))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_batch_may_be_written_to(digits_permuted):
    dataset = digits_permuted.train_stream[0].dataset
    before = dataset_tensors(dataset)[0].clone()
    strategy = build(InMemoryLoaderPlugin(), Scribble())
    strategy.train(digits_permuted.train_stream[0], shuffle=False)
    assert torch.equal(dataset_tensors(dataset)[0], before)


class Scribble(SupervisedPlugin):
    def before_training_iteration(self, strategy, **kwargs):
        strategy.mbatch[0].zero_()


def _picture_benchmark(**kwargs):
    data = Pictures(**kwargs)
    return data, nc_benchmark(data, data, 2, task_labels=True, shuffle=False)


def test_other_data_are_read_once(digits_arrays):
    data, benchmark = _picture_benchmark()
    strategy = build(InMemoryLoaderPlugin(), train_epochs=3)
    for _ in range(3):
        for experience in benchmark.train_stream:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
    # For each stream, whose label maps are objects of their own: each experience, and 288 samples of it to compare.
    assert data.reads == 2 * (40 + 2 * 288)


def test_the_cache_is_bounded():
    data, benchmark = _picture_benchmark()
    half = 20 * (64 * 4 + 8)
    plugin = InMemoryLoaderPlugin(cache_bytes=2 * half - 1)
    strategy = build(plugin)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        held = [column.nbytes for columns, _ in plugin._cache.values() for column in columns]
        assert sum(held) == half
    before = data.reads
    strategy.train(benchmark.train_stream[1])
    assert data.reads == before
    strategy.train(benchmark.train_stream[0])
    assert data.reads == before + 20 + 288


@pytest.mark.parametrize("short", [0, 1])
def test_data_that_do_not_fit_are_left_to_avalanches_loader(short, caplog):
    _, benchmark = _picture_benchmark()
    plugin = InMemoryLoaderPlugin(cache_bytes=20 * (64 * 4 + 8) - short)
    ours = run(benchmark, plugin)
    assert_same(ours, run(benchmark))
    assert (TensorLoader in ours[0].loaders) == (not short)
    assert caplog.text.count("take more than the cache_bytes") == short
    assert sum(column.nbytes for columns, _ in plugin._cache.values() for column in columns) <= plugin.cache_bytes


class ResumableNaive(Resumable, Naive):
    pass


class SaveAt(SupervisedPlugin):
    """Save once, at one iteration of the second epoch."""

    __constants__ = ("path", "iteration")

    def __init__(self, path=None, iteration=0):
        super().__init__()
        self.path, self.iteration = path, iteration

    def safe_point(self, strategy):
        if (strategy.progress.epoch, strategy.progress.iteration) == (1, self.iteration) and self.path:
            save_checkpoint(strategy, self.path)


@pytest.mark.parametrize("options", [{}, PERSISTENT], ids=str)
@pytest.mark.parametrize("iteration", [0, 1, 7])
def test_a_run_resumed_inside_an_epoch_sees_the_batches_it_would_have_seen(
    digits_permuted, tmp_path, iteration, options
):
    runs = []
    for path in (tmp_path / "inside.pt", None):
        recorder = Recorder()
        plugins = [InMemoryLoaderPlugin(), recorder, SaveAt(path, iteration)]
        strategy = build(*plugins, cls=ResumableNaive, train_epochs=2)
        if path is None:
            load_checkpoint(strategy, tmp_path / "inside.pt")
        strategy.train(digits_permuted.train_stream[0], **options)
        runs.append((recorder.batches, parameters(strategy)))
    (batches, whole), (rest, resumed) = runs
    assert len(batches) == 26
    assert len(rest) == 13 - iteration
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches[-len(rest) :], rest, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_there_is_no_state_to_save():
    plugin = InMemoryLoaderPlugin()
    plugin.load_state_dict(plugin.state_dict())
    with pytest.raises(ValueError, match=r"no state, got \['order'\]"):
        plugin.load_state_dict({"order": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache_bytes": -1}, "cache_bytes must be an integer >= 0, got -1"),
        ({"cache_bytes": 1.5}, "cache_bytes must be an integer >= 0, got 1.5"),
        ({"cache_bytes": float("inf")}, "cache_bytes must be an integer >= 0, got inf"),
        ({"cache_bytes": True}, "cache_bytes must be an integer >= 0, got True"),
        ({"strict": 1}, "strict must be True or False, got 1"),
        ({"device": "gpu"}, "gpu"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        InMemoryLoaderPlugin(**arguments)
