"""What strategies no method serves, and criteria that are no means."""

from functools import partial
from types import SimpleNamespace

import pytest
from avalanche.training.templates import SupervisedMetaLearningTemplate, SupervisedTemplate
from torch import distributed, nn
from torch.nn import functional as F

from avl_plugins.tasks.checks import check_criterion, refuse_distributed, refuse_meta_learning
from avl_plugins.tasks.keywords import refuse_positional


@pytest.mark.parametrize(
    ("criterion", "fine"),
    [
        (nn.CrossEntropyLoss(), True),
        (F.cross_entropy, True),
        (partial(F.cross_entropy, label_smoothing=0.1), True),
        (partial(F.cross_entropy, reduction="mean"), True),
        (nn.CrossEntropyLoss(reduction="sum"), False),
        (nn.BCEWithLogitsLoss(reduction="none"), False),
        (partial(F.cross_entropy, reduction="sum"), False),
        (partial(nn.CrossEntropyLoss(reduction="sum")), False),
        (lambda z, y: z.sum(), True),
    ],
)
def test_a_criterion_that_says_it_is_no_mean(criterion, fine):
    strategy = SimpleNamespace(_criterion=criterion)
    if fine:
        check_criterion(strategy, "DGR")
        return
    with pytest.raises(ValueError, match=r"criterion must be a mean over the mini-batch, as DGR .*reduction='\w+'"):
        check_criterion(strategy, "DGR")


def test_one_of_several_processes(monkeypatch):
    refuse_distributed("DGR")
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    for processes in (1, 2):
        monkeypatch.setattr(distributed, "get_world_size", lambda n=processes: n)
        if processes == 1:
            refuse_distributed("DGR")
            continue
        with pytest.raises(ValueError, match="DGR does not serve distributed training, in which 2 processes"):
            refuse_distributed("DGR")


def test_meta_learning():
    refuse_meta_learning(SupervisedTemplate.__new__(SupervisedTemplate), "DGR")
    with pytest.raises(ValueError, match="SupervisedMetaLearningTemplate is a meta-learning strategy, whose updates"):
        refuse_meta_learning(SupervisedMetaLearningTemplate.__new__(SupervisedMetaLearningTemplate), "DGR")


def test_positional_arguments():
    refuse_positional("DEN", ())
    with pytest.raises(TypeError) as error:
        refuse_positional("DEN", (1, 2, 3))
    expected = "DEN takes keyword arguments only: DEN(model=..., optimizer=..., criterion=...)"
    assert str(error.value) == expected
