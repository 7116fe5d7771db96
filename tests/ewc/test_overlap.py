"""`fisher_overlap` against the Frechet distance it is defined by."""

import pytest
import torch

from avl_plugins import fisher_overlap


def fishers():
    torch.manual_seed(0)
    names = {"0.weight": (3, 2), "0.bias": (3,), "scale": (4,)}
    return [{n: torch.rand(s, dtype=torch.float64) for n, s in names.items()} for _ in range(2)]


def test_equals_one_minus_the_squared_frechet_distance():
    f1, f2 = fishers()
    overlap = fisher_overlap(f1, f2)
    assert list(overlap) == ["0", ""]
    for layer, names in {"0": ["0.weight", "0.bias"], "": ["scale"]}.items():
        a, b = (torch.cat([f[n].flatten() for n in names]) for f in (f1, f2))
        a, b = a / a.sum(), b / b.sum()
        half_trace = 0.5 * torch.trace(torch.diag(a) + torch.diag(b) - 2 * torch.diag(a * b).sqrt())
        assert overlap[layer] == pytest.approx(float(1 - half_trace), abs=1e-12)
        assert overlap[layer] == pytest.approx(float(1 - 0.5 * (a.sqrt() - b.sqrt()).square().sum()), abs=1e-12)


def test_is_one_for_proportional_zero_for_disjoint_and_left_out_for_unused():
    f1, _ = fishers()
    assert fisher_overlap(f1, {n: 7 * f for n, f in f1.items()}) == pytest.approx({"0": 1.0, "": 1.0})
    one, two = {"l.weight": torch.tensor([1.0, 0, 2])}, {"l.weight": torch.tensor([0, 5.0, 0])}
    assert fisher_overlap(one, two) == {"l": 0.0}
    assert fisher_overlap(one, {"l.weight": torch.zeros(3)}) == {}


def test_bad_input_is_named():
    f1, f2 = fishers()
    with pytest.raises(ValueError, match=r"only one has \['scale'\]"):
        fisher_overlap(f1, {n: f for n, f in f2.items() if n != "scale"})
    with pytest.raises(ValueError, match=r"'0\.bias' has shape \(3,\) in f1 and \(1,\) in f2"):
        fisher_overlap(f1, f2 | {"0.bias": torch.ones(1)})
    with pytest.raises(ValueError, match=r"'0\.bias' has negative values"):
        fisher_overlap(f1, f2 | {"0.bias": -torch.ones(3)})
