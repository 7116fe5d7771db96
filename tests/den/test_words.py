"""Words of DEN: old ones for one release, repr, signatures, and what a seed draws."""

import inspect

import pytest
import torch
from avalanche.training.templates import SupervisedTemplate
from den_cases import WIDTHS, build, mlp

from avl_plugins import DEN, DENPlugin


@pytest.mark.parametrize("make", [DENPlugin, lambda **options: build(**options).den])
def test_the_old_word_for_the_penaltys_step(make):
    with pytest.warns(DeprecationWarning, match="drift_step is called penalty_step now"):
        plugin = make(drift_step="proximal")
    assert plugin.penalty_step == "proximal"
    with pytest.raises(TypeError, match="drift_step is called penalty_step now: give penalty_step alone"):
        make(drift_step="proximal", penalty_step="gradient")


def test_repr():
    assert repr(DENPlugin()) == "DENPlugin()"
    plugin = build(l1=0.5, expand=None, max_splits=(1, 2), seed=3).den
    assert repr(plugin) == "DENPlugin(l1=0.5, loss_threshold=0.0, expand_by=4, max_splits=(1, 2), expand=None, seed=3)"


def test_signatures_show_the_real_arguments():
    shown = inspect.signature(DEN).parameters
    for kind in (DENPlugin, SupervisedTemplate):
        assert inspect.signature(kind).parameters.keys() <= shown.keys()
    assert "drift_step" not in shown
    assert (
        shown["penalty_step"].default == inspect.signature(DENPlugin).parameters["penalty_step"].default == "gradient"
    )


def second_task(benchmark, *, seed, state):
    """Weights of the units that the second task adds, which a learning rate of 0 leaves as drawn; the next number."""
    strategy = build(seed=seed, epochs=1, split=False, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    strategy.train(benchmark.train_stream[0])
    torch.manual_seed(state)
    strategy.train(benchmark.train_stream[1])
    new = [layer.layer.weight[width:].clone() for layer, width in zip(strategy.model.hidden, WIDTHS, strict=True)]
    assert [len(weight) for weight in new] == [4, 4]
    return new, torch.rand(3)


def test_a_seed_determines_new_units_and_nothing_else(digits_split):
    one, after = second_task(digits_split, seed=1, state=5)
    same, _ = second_task(digits_split, seed=1, state=6)
    other, after_other = second_task(digits_split, seed=2, state=5)
    unseeded, _ = second_task(digits_split, seed=None, state=5)
    unseeded_again, _ = second_task(digits_split, seed=None, state=6)
    for a, b, c, d, e in zip(one, same, other, unseeded, unseeded_again, strict=True):
        assert torch.equal(a, b), "whatever has been drawn before"
        assert not torch.equal(a, c)
        assert not torch.equal(d, e), "None draws from the global generator"
    assert torch.equal(after, after_other)


def test_a_seed_determines_heads():
    heads = []
    for seed, state in ((1, 5), (1, 6), (2, 5), (None, 5)):
        net = mlp(seed=seed)
        torch.manual_seed(state)
        heads.append([net.add_task(label, 3).weight.clone() for label in (0, 1)])
        moved = not torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(state)))
        assert moved == (seed is None), "the global state is as before"
    one, same, other, _ = heads
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], other[0])
