"""TensorLoader's order, and features of its samples that are computed once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from avl_plugins.data.serving import NotOnce, ServedFeatures, TensorLoader


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


def loader_of(x, **options):
    return TensorLoader(lambda rows: (x[rows], rows), len(x), **{"batch_size": 100, "shuffle": True, **options})


@pytest.mark.parametrize("n", [100, 2500])
def test_features_belong_to_the_latest_batch(n):
    torch.manual_seed(0)
    x = torch.randn(n, 3, dtype=torch.float64)
    loader = loader_of(x)
    calls = []
    features = ServedFeatures(
        loader, lambda x: calls.append(len(x)) or [x.square(), x.sum(1)], device="cpu", limit=n * 4 * 8
    )
    assert sum(calls) == n
    assert max(calls) <= 1024
    assert features.latest() is None
    for batch, rows in loader:
        given = features.latest()
        assert torch.equal(given.batch.rows, rows)
        squares, sums = given.of(batch)
        assert torch.equal(squares, x[rows].square())
        assert torch.equal(sums, x[rows].sum(1))
        assert given.of(batch.clone()) is None
        assert given.of(batch[:50]) is None
        batch.add_(1)
        assert given.of(batch) is None, "written to"
    assert features.latest() is None


def test_what_cannot_be_computed_once():
    x = torch.randn(40, 3)
    before = torch.get_rng_state()
    with pytest.raises(NotOnce, match="cache_bytes: the features of 40 samples take 480 bytes, more than 479"):
        ServedFeatures(loader_of(x), lambda x: [x], device="cpu", limit=479)
    with pytest.raises(NotOnce, match="the layers are random"):
        ServedFeatures(loader_of(x), lambda x: [nn.functional.dropout(x, 1e-9)], device="cpu", limit=2**20)
    assert torch.equal(torch.get_rng_state(), before)


def test_features_are_computed_without_gradients():
    weight = torch.ones(3, requires_grad=True)
    loader = loader_of(torch.randn(10, 3), batch_size=10)
    features = ServedFeatures(loader, lambda x: [x * weight], device="cpu", limit=2**20)
    for _ in loader:
        assert not features.latest().features[0].requires_grad


def test_batches_go_where_they_are_wanted():
    x = torch.randn(4, 3)
    loader = loader_of(x, to="meta", batch_size=2)
    features = ServedFeatures(loader, lambda x: [x], device="cpu", limit=2**20)
    for batch, _ in loader:
        assert batch.device.type == "meta"
        assert features.latest().of(batch)[0].device.type == "meta"
