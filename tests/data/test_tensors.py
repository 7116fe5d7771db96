"""Data sets as tensors: what one batch of all samples would hold, by index where the data are tensors."""

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, as_classification_dataset
from loading_cases import Pictures
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, default_collate

from avl_plugins.data.tensors import batches_in_memory, dataset_parts, dataset_tensors, keeps_tensors


def test_tensors_are_those_of_a_batch_of_all_samples(digits_arrays, digits_permuted, digits_split):
    data = TensorDataset(
        torch.from_numpy(digits_arrays.x_train).flatten(1) / 255, torch.from_numpy(digits_arrays.y_train).byte()
    )
    data.targets = data.tensors[1].tolist()
    nc = nc_benchmark(data, data, 5, task_labels=False, seed=0, class_ids_from_zero_in_each_exp=True).train_stream
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
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1"):
        next(batches_in_memory([(1, 2)], 0))
    served = DataAttribute(["a", "b"], "name", use_in_getitem=True)
    with pytest.raises(ValueError, match="must be"):
        dataset_tensors(AvalancheDataset([TensorDataset(torch.zeros(2, 1))], data_attributes=[served]))
