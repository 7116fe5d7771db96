"""Batches from memory: bit for bit those of Avalanche's loaders, and refused where they could not be."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
from avalanche.benchmarks.utils import AvalancheDataset, as_classification_dataset
from avalanche.benchmarks.utils.data_loader import GroupBalancedDataLoader
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger
from avalanche.training import Cumulative, Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, default_collate

from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.checkpoint.resume import Resumable
from avl_plugins.data.loading import InMemoryLoaderPlugin, TensorLoader
from avl_plugins.data.tensors import batches_in_memory, dataset_parts, dataset_tensors, keeps_tensors
from benchmarks.data.arrays import Images


class Recorder(SupervisedPlugin):
    """Keep a copy of each batch the strategy sees, and the type of the loader it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[torch.Tensor]] = []
        self.loaders: list[type] = []

    def _record(self, strategy, **kwargs):
        self.batches.append([column.clone() for column in strategy.mbatch])
        self.loaders.append(type(strategy.dataloader))

    before_training_iteration = _record
    before_eval_iteration = _record

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Silent(BaseLogger):
    """Avalanche warns where there is no logger at all."""


def _strategy(*plugins, cls=Naive, **kwargs):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.Dropout(), nn.Linear(8, 10))
    model(torch.zeros(1, 64))
    return cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        eval_mb_size=50,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(loggers=[Silent()]),
        **kwargs,
    )


def _run(benchmark, *plugins, cls=Naive, **kwargs):
    """Train and evaluate on the whole stream; return the batches, the final parameters and the random state."""
    recorder = Recorder()
    strategy = _strategy(*plugins, recorder, cls=cls, train_epochs=2)
    for experience in list(benchmark.train_stream)[:2]:
        strategy.train(experience, **kwargs)
        strategy.eval(benchmark.test_stream)
    return recorder, [p.detach().clone() for p in strategy.model.parameters()], torch.get_rng_state()


def _tensor_set(arrays):
    return TensorDataset(torch.from_numpy(arrays.x_train).flatten(1) / 255, torch.from_numpy(arrays.y_train).byte())


def _nc_benchmark(arrays):
    data = _tensor_set(arrays)
    data.targets = data.tensors[1].tolist()
    return nc_benchmark(data, data, 5, task_labels=False, seed=0, class_ids_from_zero_in_each_exp=True)


def _new_api_benchmark(arrays):
    data = _tensor_set(arrays)
    data.targets = data.tensors[1].tolist()
    whole = as_classification_dataset(data)
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


@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"drop_last": True}])
def test_training_is_bit_for_bit_what_avalanches_loader_gives(any_benchmark, options):
    theirs, their_parameters, their_random_state = _run(any_benchmark, **options)
    ours, parameters, random_state = _run(any_benchmark, InMemoryLoaderPlugin(), **options)
    assert set(ours.loaders) == {TensorLoader}
    assert TensorLoader not in theirs.loaders
    assert len(ours.batches) == len(theirs.batches)
    for batch, expected in zip(ours.batches, theirs.batches, strict=True):
        assert len(batch) == len(expected)
        for column, wanted in zip(batch, expected, strict=True):
            assert column.dtype == wanted.dtype
            assert torch.equal(column, wanted)
    assert all(torch.equal(a, b) for a, b in zip(parameters, their_parameters, strict=True))
    assert torch.equal(random_state, their_random_state)


def test_cumulative_training_joins_the_experiences(digits_classes):
    theirs, their_parameters, _ = _run(digits_classes, cls=Cumulative)
    ours, parameters, _ = _run(digits_classes, InMemoryLoaderPlugin(), cls=Cumulative)
    assert set(ours.loaders) == {TensorLoader}
    assert len(ours.batches) == len(theirs.batches)
    assert all(torch.equal(a, b) for a, b in zip(parameters, their_parameters, strict=True))


def test_tensors_held_on_a_device_give_the_same_run(digits_permuted):
    _, expected, _ = _run(digits_permuted, InMemoryLoaderPlugin())
    _, parameters, _ = _run(digits_permuted, InMemoryLoaderPlugin(device="cpu"))
    assert all(torch.equal(a, b) for a, b in zip(parameters, expected, strict=True))


@pytest.mark.parametrize(("cache_bytes", "passes"), [(2**30, 1), (1000, 2)])
def test_images_are_computed_once_an_experience_where_they_fit(monkeypatch, digits_permuted, cache_bytes, passes):
    """In training; an evaluation passes over them once anyway."""
    gathered = []
    gather = Images.gather
    monkeypatch.setattr(Images, "gather", lambda self, rows: gathered.append(len(rows)) or gather(self, rows))
    experience = digits_permuted.train_stream[0]
    strategy = _strategy(InMemoryLoaderPlugin(cache_bytes=cache_bytes), train_epochs=2)
    strategy.train(experience)
    assert sum(gathered) == 1 + passes * len(experience.dataset)  # one sample is read to know how large they are
    gathered.clear()
    strategy.eval(digits_permuted.test_stream[:1])
    assert sum(gathered) == len(digits_permuted.test_stream[0].dataset)
    assert max(gathered) == 50


def test_periodic_evaluation_leaves_the_training_loader_in_place(digits_permuted):
    runs = []
    for plugins in ([], [InMemoryLoaderPlugin()]):
        strategy = _strategy(*plugins, train_epochs=2, eval_every=1)
        strategy.train(digits_permuted.train_stream[0], eval_streams=[digits_permuted.test_stream])
        runs.append([p.detach().clone() for p in strategy.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 17),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_loader_orders_samples_as_torchs_does(n, batch_size, shuffle, drop_last, seed):
    x = torch.arange(n)
    options = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last}
    ours = TensorLoader(lambda rows: (x[rows],), n, **options)
    theirs = DataLoader(TensorDataset(x), **options)
    assert len(ours) == len(theirs)
    for _ in range(2):
        torch.manual_seed(seed)
        batches, state = [b[0].tolist() for b in ours], torch.get_rng_state()
        torch.manual_seed(seed)
        assert batches == [b[0].tolist() for b in theirs]
        assert torch.equal(state, torch.get_rng_state())


def test_a_batch_may_be_written_to(digits_permuted):
    dataset = digits_permuted.train_stream[0].dataset
    before = dataset_tensors(dataset)[0].clone()
    strategy = _strategy(InMemoryLoaderPlugin(), Scribble())
    strategy.train(digits_permuted.train_stream[0], shuffle=False)
    assert torch.equal(dataset_tensors(dataset)[0], before)


class Scribble(SupervisedPlugin):
    def before_training_iteration(self, strategy, **kwargs):
        strategy.mbatch[0].zero_()


class Pictures(Dataset):
    """Arrays served one at a time, counted; optionally with random noise from one of three generators."""

    def __init__(self, n=40, noise=None):
        self.x = torch.arange(float(n * 64)).view(n, 64) / 1000
        self.targets = [i % 10 for i in range(n)]
        self.noise = noise
        self.reads = 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.reads += 1
        x = self.x[index]
        return (x if self.noise is None else x + self.noise()), self.targets[index]


def test_tensors_are_those_of_a_batch_of_all_samples(digits_arrays, digits_permuted, digits_split):
    data = _tensor_set(digits_arrays)
    nc = _nc_benchmark(digits_arrays).train_stream
    first, second = (e.dataset for e in list(digits_permuted.train_stream)[:2])
    pictures = as_classification_dataset(Pictures())
    cases = {
        "tensor data set": (data, True),
        "torch subset": (Subset(data, [5, 3, 3, 300]), True),
        "torch concatenation": (ConcatDataset([Subset(data, [1]), data]), True),
        "experience": (digits_split.train_stream[2].dataset, True),
        "avalanche subset": (first.subset([9, 8, 0, 8]), True),
        "concatenation": (first.concat(second), True),
        "shuffled concatenation": (first.concat(second).subset([799, 0, 500, 399, 400, 1]), True),
        "mapped labels": (nc[1].dataset, True),
        "mapped and joined": (nc[1].dataset.concat(nc[3].dataset).subset([0, 70, 5, 100]), True),
        "arrays one by one": (pictures, False),
        "tensors and arrays": (pictures.concat(pictures.subset([4, 2])), False),
    }
    for name, (dataset, by_index) in cases.items():
        expected = default_collate([dataset[i] for i in range(len(dataset))])
        columns = dataset_tensors(dataset)
        assert keeps_tensors(dataset_parts(dataset)) == by_index, name
        assert len(columns) == len(expected), name
        for column, wanted in zip(columns, expected, strict=True):
            assert column.dtype == wanted.dtype, name
            assert torch.equal(column, wanted), name


def test_a_pass_in_batches_uses_the_eval_transforms(digits_permuted):
    transforms = {"train": (torch.neg, None), "eval": (torch.exp, None)}
    dataset = AvalancheDataset([Pictures()], transform_groups=transforms)
    batches = list(batches_in_memory(dataset, 15))
    assert [len(x) for x, _ in batches] == [15, 15, 10]
    assert torch.equal(torch.cat([x for x, _ in batches]), Pictures().x.exp())

    experience = digits_permuted.train_stream[1]
    x, y, t = (torch.cat(column) for column in zip(*batches_in_memory(experience.dataset, 64), strict=True))
    wanted = default_collate([experience.dataset[i] for i in range(len(experience.dataset))])
    assert all(torch.equal(a, b) for a, b in zip((x, y, t), wanted, strict=True))


def test_a_pass_in_batches_leaves_them_to_the_data_sets_own_collate_fn():
    def collate(samples):
        return {"sum": sum(int(y) for _, y in samples)}

    x, y = torch.zeros(7, 2), torch.arange(7)
    dataset = AvalancheDataset([TensorDataset(x, y)], collate_fn=collate)
    assert (
        list(batches_in_memory(dataset, 4))
        == list(DataLoader(dataset, 4, collate_fn=collate))
        == [{"sum": 6}, {"sum": 15}]
    )


def _picture_benchmark(**kwargs):
    data = Pictures(**kwargs)
    return data, nc_benchmark(data, data, 2, task_labels=True, shuffle=False)


def test_other_data_are_read_once(digits_arrays):
    data, benchmark = _picture_benchmark()
    strategy = _strategy(InMemoryLoaderPlugin(), train_epochs=3)
    for _ in range(3):
        for experience in benchmark.train_stream:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
    # Once for each stream, whose label maps are objects of their own, and 16 of each experience twice under two seeds.
    assert data.reads == 2 * (40 + 2 * 2 * 16)


def test_the_cache_is_bounded():
    data, benchmark = _picture_benchmark()
    half = 20 * (64 * 4 + 8)
    plugin = InMemoryLoaderPlugin(cache_bytes=2 * half - 1)
    strategy = _strategy(plugin)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        held = [column.nbytes for columns, _ in plugin._cache.values() for column in columns]
        assert sum(held) == half
    before = data.reads
    strategy.train(benchmark.train_stream[1])
    assert data.reads == before
    strategy.train(benchmark.train_stream[0])
    assert data.reads == before + 20 + 32


@pytest.mark.parametrize(
    "noise",
    [lambda: torch.rand(()), lambda: np.random.rand(), lambda: random.random()],  # noqa: NPY002
    ids=["torch", "numpy", "python"],
)
def test_random_transforms_are_refused_and_no_random_state_is_touched(noise):
    _, benchmark = _picture_benchmark(noise=noise)
    strategy = _strategy(InMemoryLoaderPlugin())
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with pytest.raises(ValueError, match="transforms are random"):
        strategy.train(benchmark.train_stream[0])
    numpy_state = np.random.get_state()[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(numpy_state, states[1])
    assert random.getstate() == states[2]


def test_random_training_transforms_do_not_forbid_evaluation():
    data = Pictures()
    noise = lambda x: x + torch.rand(())  # noqa: E731
    benchmark = nc_benchmark(data, data, 2, task_labels=True, shuffle=False, train_transform=noise)
    strategy = _strategy(InMemoryLoaderPlugin())
    strategy.eval(benchmark.test_stream)
    with pytest.raises(ValueError, match="transforms are random"):
        strategy.train(benchmark.train_stream[0])


def test_replay_before_ours_is_refused_by_name(digits_permuted):
    strategy = _strategy(ReplayPlugin(mem_size=20), InMemoryLoaderPlugin())
    strategy.train(digits_permuted.train_stream[0])  # the memory is empty: replay keeps the default loader
    with pytest.raises(ValueError, match="ReplayPlugin uses a loader of its own, ReplayDataLoader"):
        strategy.train(digits_permuted.train_stream[1])


def test_replay_after_ours_is_warned_about_and_works(digits_permuted):
    recorder = Recorder()
    strategy = _strategy(InMemoryLoaderPlugin(), ReplayPlugin(mem_size=20), recorder, train_epochs=2)
    strategy.train(digits_permuted.train_stream[0])
    assert set(recorder.loaders) == {TensorLoader}
    with pytest.warns(UserWarning, match="ReplayPlugin uses a loader of its own") as caught:
        strategy.train(digits_permuted.train_stream[1])
    assert sum(issubclass(warning.category, UserWarning) for warning in caught) == 1
    assert recorder.loaders[-1].__name__ == "ReplayDataLoader"


def test_a_strategys_own_loader_is_refused(digits_permuted):
    class ClassBalanced(Naive):
        def make_train_dataloader(self, **kwargs):
            by_class = self.adapted_dataset.targets.val_to_idx.values()
            self.dataloader = GroupBalancedDataLoader(
                [self.adapted_dataset.subset(rows) for rows in by_class], batch_size=32
            )

    strategy = _strategy(InMemoryLoaderPlugin(), cls=ClassBalanced)
    with pytest.raises(ValueError, match="ClassBalanced or a plugin of its uses a loader of its own"):
        strategy.train(digits_permuted.train_stream[0])


def test_an_eval_loader_replaced_later_is_warned_about(digits_permuted):
    class Replace(SupervisedPlugin):
        def before_eval_exp(self, strategy, **kwargs):
            strategy.dataloader = DataLoader(strategy.adapted_dataset, batch_size=100)

    strategy = _strategy(InMemoryLoaderPlugin(), Replace())
    with pytest.warns(UserWarning, match="Replace uses a loader of its own, DataLoader"):
        strategy.eval(digits_permuted.test_stream[0])


def test_several_task_labels_keep_the_balanced_loader(digits_split, caplog):
    recorder = Recorder()
    strategy = _strategy(InMemoryLoaderPlugin(), recorder, cls=Cumulative)
    strategy.train(digits_split.train_stream[0])
    with caplog.at_level(logging.INFO, "avl_plugins.data.loading"):
        strategy.train(digits_split.train_stream[1])
    assert recorder.loaders[-1].__name__ == "TaskBalancedDataLoader"
    assert "several task labels" in caplog.text


def test_a_collate_function_of_its_own_is_refused(digits_permuted):
    dataset = digits_permuted.train_stream[0].dataset
    own = AvalancheDataset([dataset], collate_fn=lambda samples: default_collate(samples))
    strategy = _strategy(InMemoryLoaderPlugin())
    with pytest.raises(ValueError, match="collate_fn"):
        strategy.eval(benchmark_from_datasets(test=[own]).test_stream)


def test_what_cannot_be_batched_is_named():
    ragged = [(torch.zeros(n), 0) for n in (1, 2)]
    with pytest.raises(ValueError, match="do not form a batch"):
        dataset_tensors(ragged)
    with pytest.raises(ValueError, match="differ in shape"):
        dataset_tensors(ConcatDataset([TensorDataset(torch.zeros(2, n), torch.zeros(2)) for n in (1, 2)]))
    with pytest.raises(ValueError, match="must be"):
        dataset_tensors([("a", 0), ("b", 1)])
    with pytest.raises(ValueError, match="is empty"):
        dataset_tensors([])
    with pytest.raises(ValueError, match="is empty"):
        next(batches_in_memory([], 2))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        next(batches_in_memory([(1, 2)], 0))
    with pytest.raises(ValueError, match="cache_bytes"):
        InMemoryLoaderPlugin(cache_bytes=-1)


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


@pytest.mark.parametrize("iteration", [0, 1, 7])
def test_a_run_resumed_inside_an_epoch_sees_the_batches_it_would_have_seen(digits_permuted, tmp_path, iteration):
    runs = []
    for path in (tmp_path / "inside.pt", None):
        recorder = Recorder()
        plugins = [InMemoryLoaderPlugin(), recorder, SaveAt(path, iteration)]
        strategy = _strategy(*plugins, cls=ResumableNaive, train_epochs=2)
        if path is None:
            load_checkpoint(strategy, tmp_path / "inside.pt")
        strategy.train(digits_permuted.train_stream[0])
        runs.append((recorder.batches, [p.detach().clone() for p in strategy.model.parameters()]))
    (batches, parameters), (rest, resumed) = runs
    assert len(batches) == 26
    assert len(rest) == 13 - iteration
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches[-len(rest) :], rest, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(parameters, resumed, strict=True))


def test_there_is_no_state_to_save():
    plugin = InMemoryLoaderPlugin()
    plugin.load_state_dict(plugin.state_dict())
    with pytest.raises(ValueError, match=r"no state, got \['order'\]"):
        plugin.load_state_dict({"order": 1})
