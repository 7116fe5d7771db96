"""`batches_in_memory`: how large a batch is, and choosing among the samples to come."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from avl_plugins.data.loading import batches_in_memory


class Large(Dataset):
    """Samples of `numbers` numbers each, none of them held."""

    def __init__(self, samples: int, numbers: int) -> None:
        self.samples, self.numbers = samples, numbers

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(()).expand(self.numbers), index


def sizes(dataset: Any, batch_size: int | None) -> list[int]:
    return [len(batch[0]) for batch in batches_in_memory(dataset, batch_size)]


def test_the_batch_size_left_open_depends_on_the_samples() -> None:
    assert sizes(TensorDataset(torch.zeros(2100, 3), torch.zeros(2100)), None) == [1000, 1000, 100]
    assert sizes(Large(5, 2**24), None) == [2, 2, 1]
    assert sizes(Large(2, 2**25 + 1), None) == [1, 1]

    class Padded(TensorDataset):
        @staticmethod
        def collate_fn(samples: list[Any]) -> list[Tensor]:
            return [torch.stack([x for x, _ in samples])]

    assert sizes(Padded(torch.zeros(600, 3), torch.zeros(600)), None) == [256, 256, 88]
    assert sizes(Padded(torch.zeros(600, 3), torch.zeros(600)), 500) == [500, 100]


@pytest.mark.parametrize("batch_size", [3, None])
def test_samples_are_chosen_among_those_to_come(batch_size: int | None) -> None:
    x = torch.arange(10)
    batches = batches_in_memory(TensorDataset(x, -x), batch_size)
    chosen = torch.tensor([1, 2, 5, 6])
    (first, minus), *more = batches.only(chosen)
    assert batches.n_samples == 10  # choosing reads nothing of it
    assert torch.equal(torch.cat([first, *(x for x, _ in more)]), chosen)
    assert torch.equal(minus, -first)
    assert len(first) == (batch_size or 4)
    if batch_size:
        next(batches)
        assert batches.n_samples == 7
        assert [x.tolist() for x, _ in batches.only(torch.tensor([0, 6]))] == [[3, 9]]
        assert [x.tolist() for x, _ in batches] == [[3, 4, 5], [6, 7, 8], [9]]
        assert batches.n_samples == 0


def test_wrong_use_is_named_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match=r"batch_size must be an integer >= 1, or None for .*, got 0"):
        batches_in_memory([(1, 2)], 0)
    with pytest.raises(ValueError, match="is empty"):
        batches_in_memory([], None)
