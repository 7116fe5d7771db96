"""Things that two strategies train are noticed; copies of them are not the same things."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from avl_plugins.tasks.owners import note_owner, refuse_shared


class Strategy:
    pass


def claim(strategy, **things):
    """As a plugin does: refuse, and then note."""
    refuse_shared(strategy, "DGR", **things)
    note_owner(strategy, *things.values())


class Slots:
    __slots__ = ("value",)


class Equal:
    """Equal to all others, and not hashable: told apart by identity."""

    def __eq__(self, other):
        return True

    __hash__ = None


def test_one_strategy_may_claim_again_another_may_not():
    one, other, thing = Strategy(), Strategy(), Equal()
    claim(one, thing=thing, nothing=None)
    claim(one, thing=thing)
    with pytest.raises(ValueError, match=r"thing: another strategy has trained it.* make a thing for each"):
        claim(other, thing=thing)
    claim(other, thing=Equal())


def test_also_after_the_first_strategy_is_gone():
    """A plugin made outside a loop over seeds: it has learnt from the first when the second begins."""
    thing, one = nn.Linear(2, 2), Strategy()
    claim(one, thing=thing)
    del one
    gc.collect()
    with pytest.raises(ValueError, match="another strategy has trained it"):
        claim(Strategy(), thing=thing)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_a_copy_belongs_to_nobody(how):
    one, other, thing = Strategy(), Strategy(), nn.Linear(2, 2)
    claim(one, thing=thing)
    claim(other, thing=how(thing))


def test_parts_of_a_module_count_if_they_are_trained():
    one, other = Strategy(), Strategy()
    shared, free = nn.Linear(2, 2), nn.ReLU()
    frozen = nn.Linear(2, 2).requires_grad_(False)
    claim(one, generator=nn.Sequential(shared, free, frozen))
    claim(other, generator=nn.Sequential(nn.Linear(2, 2), free, frozen))
    with pytest.raises(ValueError, match="generator: another strategy"):
        claim(other, generator=nn.Sequential(nn.Linear(2, 2), shared))


def test_a_refusal_claims_nothing():
    one, other = Strategy(), Strategy()
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    claim(one, plugin=second)
    with pytest.raises(ValueError, match="plugin: another strategy"):
        claim(other, generator=first, plugin=second)
    claim(one, generator=first)


def test_things_without_weak_references_are_let_through_and_modules_can_still_be_moved():
    claim(Strategy(), generator=Slots())
    one, thing = Strategy(), nn.Linear(2, 2)
    claim(one, generator=thing)
    torch.__future__.set_swap_module_params_on_conversion(True)  # it refuses parameters with weak references
    try:
        thing.to("meta")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_a_network_may_be_trained_on_when_its_strategy_is_gone():
    one, other, net = Strategy(), Strategy(), nn.Linear(2, 2)
    claim(one, model=net)
    with pytest.raises(ValueError, match="model: another strategy"):
        refuse_shared(other, "DEN", model=net, gone=False)
    one.itself = one  # a cycle
    del one
    refuse_shared(other, "DEN", model=net, gone=False)
    claim_by = Strategy()
    note_owner(claim_by, net)
    with pytest.raises(ValueError, match="model: another strategy"):
        refuse_shared(other, "DEN", model=net, gone=False)
