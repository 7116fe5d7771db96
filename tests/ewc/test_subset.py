"""`max_samples`: which samples the Fisher is measured on, and that no others are read."""

from typing import Any

import pytest
import torch
from fisher_cases import assert_same, batches
from reference import fisher_reference
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import TensorDataset

from avl_plugins import diagonal_fisher
from avl_plugins.data.loading import batches_in_memory
from avl_plugins.ewc.subset import random_subset


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def vectors(samples: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(samples, 5, dtype=torch.float64), torch.randint(0, 3, (samples,))


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smallest_keys(samples: int, size: int) -> list[int]:
    """The definition: a uniform key a sample, and the samples with the smallest keys, in order."""
    keys = torch.rand(samples, generator=seeded(), dtype=torch.float64).tolist()
    return sorted(sorted(range(samples), key=keys.__getitem__)[:size])


def test_it_is_uniform_on_a_sorted_stream() -> None:
    """Inputs are one-hot in their own index, so the first layer's Fisher tells which samples were drawn."""
    n, k = 40, 10
    model = nn.Linear(n, 2).double()
    x, y = torch.eye(n, dtype=torch.float64), torch.arange(n) // (n // 2)
    counts = torch.zeros(n)
    for seed in range(400):
        drawn = []
        for size in (n, 7):
            given = batches(x, y, size)
            fisher = diagonal_fisher(model, given, labels="empirical", max_samples=k, generator=seeded(seed))
            drawn.append(fisher["weight"].sum(0) > 0)
        assert torch.equal(drawn[0], drawn[1])
        assert drawn[0].sum() == k
        counts += drawn[0]
    expected, std = 400 * k / n, (400 * k / n * (1 - k / n)) ** 0.5
    assert ((counts - expected).abs() < 4.5 * std).all()


def test_beyond_the_data_it_is_all_of_it() -> None:
    x, y = vectors(5)
    assert_same(diagonal_fisher(mlp(), batches(x, y, 2), max_samples=99), diagonal_fisher(mlp(), [(x, y)]))


@pytest.mark.parametrize("labels", ["exact", "sampled", "empirical"])
@pytest.mark.parametrize("size", [1, 20, 300, 999])
def test_batches_from_memory_give_the_same_bits_as_any_others(labels: Any, size: int) -> None:
    x, y = vectors(300)
    for batch_size in (7, 64, 1000):
        found = [
            diagonal_fisher(mlp(), given, labels=labels, max_samples=size, generator=seeded())
            for given in (batches_in_memory(TensorDataset(x, y), batch_size), batches(x, y, batch_size))
        ]
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    rows = smallest_keys(300, size)
    if labels != "sampled":
        assert_same(found[0], fisher_reference(mlp(), x[rows], y[rows], labels=labels))


def test_batches_from_memory_are_read_at_the_chosen_samples_only() -> None:
    class Counted(TensorDataset):
        read: list[int]

        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            self.read.append(index)
            return super().__getitem__(index)

    data = Counted(*vectors(200))
    data.read = []
    diagonal_fisher(mlp(), batches_in_memory(data, 6), max_samples=10, generator=seeded())
    assert data.read == smallest_keys(200, 10)


@pytest.mark.parametrize("size", [1, 6, 14, 99])
def test_batches_padded_to_different_widths_equal_the_loop_over_samples(size: int) -> None:
    class Total(nn.Module):
        """Padding counts, through the bias: a sample belongs to the width of its own batch."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.inner(x).tanh().sum(1))

    torch.manual_seed(0)
    model = Total().double()
    sequences = [torch.randn(1 + (n * n) % 7, 4, dtype=torch.float64) for n in range(40)]
    y = torch.randint(0, 3, (40,))
    padded = [
        (pad_sequence(sequences[i : i + 3], batch_first=True), y[i : i + 3], torch.tensor(i)) for i in range(0, 40, 3)
    ]
    assert len({x.shape[1] for x, _, _ in padded}) > 2
    rows = [(x[i : i + 1], y[i : i + 1]) for x, y, _ in padded for i in range(len(x))]
    chosen = [rows[n] for n in smallest_keys(40, size)]
    each = [fisher_reference(model, x, y, labels="empirical") for x, y in chosen]
    expected = {n: sum(f[n] for f in each) / len(each) for n in each[0]}
    given = [(x, y) for x, y, _ in padded]
    assert_same(diagonal_fisher(model, given, labels="empirical", max_samples=size, generator=seeded()), expected)
    # Order and number of the samples stay, and a scalar task label goes with each of its batch's.
    drawn = list(random_subset(padded, size, seeded()))  # type: ignore[arg-type]
    assert max(len(x) for x, _, _ in drawn) <= 3
    assert torch.equal(torch.cat([y for _, y, _ in drawn]), torch.cat([y for _, y in chosen]))
    assert torch.equal(torch.cat([t for _, _, t in drawn]), torch.tensor(smallest_keys(40, size)) // 3 * 3)  # type: ignore[arg-type]
