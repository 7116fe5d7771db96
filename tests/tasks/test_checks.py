"""What all methods refuse in training, with the text that names the experience, the step and what to do."""

import functools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from avl_plugins.tasks.checks import (
    check_criterion,
    check_loss,
    experience_name,
    refuse_distributed,
    refuse_empty,
)


def strategy(*, x=1.0, y=0, criterion=None, data=range(3)):
    return SimpleNamespace(
        experience=SimpleNamespace(current_experience=4, dataset=data),
        clock=SimpleNamespace(train_exp_iterations=17),
        mbatch=[torch.full((2, 3), x), torch.full((2,), y)],
        _criterion=criterion,
    )


def test_an_empty_experience():
    with pytest.raises(ValueError, match="experience 4 is empty: DGR has nothing to learn from; leave it out"):
        refuse_empty(strategy(data=[]), "DGR")
    refuse_empty(strategy(), "DGR")
    refuse_empty(SimpleNamespace(experience=SimpleNamespace()), "DGR")  # of reinforcement learning
    assert experience_name(SimpleNamespace(experience=SimpleNamespace())) == "experience None"


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum", "none"])
def test_criteria_say_themselves_what_they_are(reduction):
    given = [nn.CrossEntropyLoss() if reduction == "batchmean" else nn.CrossEntropyLoss(reduction=reduction)]
    given += [functools.partial(nn.functional.cross_entropy, reduction=reduction)]
    given[0].reduction = reduction
    for criterion in given:
        if reduction in ("mean", "batchmean"):
            check_criterion(strategy(criterion=criterion), "DEN")
            continue
        with pytest.raises(ValueError, match=f"as DEN compares .*{reduction!r}.*: use reduction='mean'"):
            check_criterion(strategy(criterion=criterion), "DEN")


def test_other_criteria_are_taken_for_means():
    for criterion in (None, nn.functional.cross_entropy, lambda z, y: z.sum(), functools.partial(max)):
        check_criterion(strategy(criterion=criterion), "DEN")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(value):
    with pytest.raises(ValueError, match=f"the loss is {value:g} in experience 4, step 17. Lower the learning rate"):
        check_loss(strategy(), torch.tensor([value]))
    with pytest.raises(ValueError, match=f"the loss is {value:g} in experience 4, step 17. Use another lambda"):
        check_loss(strategy(), torch.tensor(value), hint="Use another lambda")
    with pytest.raises(ValueError, match="inputs of experience 4, step 17 have NaN or infinite values: clean the data"):
        check_loss(strategy(x=value), torch.tensor(math.nan))
    with pytest.raises(ValueError, match="targets of experience 4, step 17 have NaN or infinite values"):
        check_loss(strategy(y=value), torch.tensor(math.nan))
    without = strategy()
    without.mbatch = None
    with pytest.raises(ValueError, match="the loss is"):
        check_loss(without, torch.tensor(value))


def test_a_finite_loss_passes():
    for loss in (torch.tensor(3.0, requires_grad=True), torch.zeros(1), torch.tensor([1.0, 2.0], dtype=torch.bfloat16)):
        check_loss(strategy(x=math.nan), loss)


def test_distributed_training(monkeypatch):
    refuse_distributed("DEN")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        refuse_distributed("DEN")  # a single process is as good as none
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        with pytest.raises(ValueError, match="DEN does not serve distributed training, in which 2 processes"):
            refuse_distributed("DEN")
    finally:
        torch.distributed.destroy_process_group()
    refuse_distributed("DEN")
