"""Old keywords work for one release; a repr says what was set."""

import inspect
import warnings

import pytest
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from silent import Silent
from torch import nn, optim

from avl_plugins.tasks.words import renamed, repr_of_arguments


@renamed(labels="answers", step="penalty_step")
class Plain:
    """Something with arguments."""

    def __init__(self, *, answers="hard", penalty_step=1, size=3, net=None):
        self.answers, self.penalty_step, self.size, self.net = answers, penalty_step, size, net

    __repr__ = repr_of_arguments


@renamed(labels="answers")
def plain(x, *, answers="hard"):
    """Something that is called."""
    return x, answers


@renamed(labels="answers")
class Strategy(SupervisedTemplate):
    """Avalanche refuses keywords that no signature shows."""

    def __init__(self, *, model, optimizer, answers="hard", **kwargs):
        self.answers = answers
        super().__init__(model=model, optimizer=optimizer, evaluator=EvaluationPlugin(loggers=[Silent()]), **kwargs)


def test_old_words_are_new_ones_with_a_warning():
    with pytest.warns(DeprecationWarning, match="^Plain: labels is called answers now$") as found:
        old = Plain(labels="soft", size=5)
    assert found[0].filename == __file__
    assert (old.answers, old.penalty_step, old.size) == ("soft", 1, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Plain(answers="soft").answers == "soft"
    with pytest.raises(TypeError, match="labels is called answers now: give answers alone"):
        Plain(labels="soft", answers="hard")
    assert list(inspect.signature(Plain).parameters) == ["answers", "penalty_step", "size", "net"]


def test_old_words_of_a_function():
    with pytest.warns(DeprecationWarning, match="^plain: labels is called answers now$") as found:
        assert plain(3, labels="soft") == (3, "soft")
    assert found[0].filename == __file__
    assert plain(3, answers="soft") == (3, "soft")
    with pytest.raises(TypeError, match="labels is called answers now: give answers alone"):
        plain(3, labels="soft", answers="hard")
    assert list(inspect.signature(plain).parameters) == ["x", "answers"]


def test_old_words_of_a_strategy():
    net = nn.Linear(2, 2)
    arguments = {"model": net, "optimizer": optim.SGD(net.parameters(), lr=0.1)}
    with pytest.warns(DeprecationWarning, match="Strategy: labels is called answers now"):
        assert Strategy(labels="soft", train_epochs=3, **arguments).answers == "soft"
    with pytest.raises(TypeError, match="lables"):
        Strategy(lables="soft", **arguments)

    class Own(Strategy):
        def __init__(self, **kwargs):
            super().__init__(labels="soft", **kwargs)

    with pytest.warns(DeprecationWarning, match="Own: labels is called answers now"):
        assert Own(**arguments).answers == "soft"


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (Plain(), "Plain()"),
        (Plain(answers="soft", size=3), "Plain(answers='soft')"),
        (Plain(size=True), "Plain(size=True)"),
        (Plain(net=nn.Linear(2, 2)), "Plain(net=<Linear>)"),
        (Plain(net=len), "Plain(net=len)"),
        (Plain(size=list(range(100))), "Plain(size=<list>)"),
    ],
)
def test_repr(made, text):
    assert repr(made) == text
