"""Strategies' constructors: keywords only, and the plugin's keywords among the strategy's."""

import inspect

import pytest
import torch
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from avl_plugins import DEN, DENPlugin, DynamicallyExpandableNetwork, Progressive, ProgressiveNetwork, ProgressivePlugin
from avl_plugins.tasks.keywords import refuse_positional, take_arguments_of


def network(kind):
    return kind(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))


STRATEGIES = [(DEN, DENPlugin, DynamicallyExpandableNetwork), (Progressive, ProgressivePlugin, ProgressiveNetwork)]


@pytest.mark.parametrize(("kind", "plugin", "made"), STRATEGIES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_positional_arguments(kind, plugin, made, count):
    net = network(made)
    given = (net, torch.optim.SGD(net.parameters(), 0.1), nn.CrossEntropyLoss())
    text = rf"{kind.__name__} takes keyword arguments only: {kind.__name__}\(model=..., optimizer=..., criterion=...\)"
    with pytest.raises(TypeError, match=text):
        kind(*given[:count])
    names = ("model", "optimizer", "criterion")
    with pytest.raises(TypeError, match=text):
        kind(*given[:count], **dict(zip(names[count:], given[count:], strict=True)))
    strategy = kind(**dict(zip(names, given, strict=True)))
    assert strategy.model is net


def test_a_subclass_may_have_arguments_of_its_own():
    class Mine(Progressive):
        def __init__(self, net, **kwargs):
            super().__init__(model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1), **kwargs)

    class Named(Progressive):
        pass

    net = network(ProgressiveNetwork)
    with pytest.warns(UserWarning, match="constructors that accept named"):  # of Avalanche
        assert Mine(net).model is net
    with pytest.raises(TypeError, match="Named takes keyword arguments only: Named"):
        Named(net)


@pytest.mark.parametrize(("kind", "plugin", "made"), STRATEGIES)
def test_the_signature_shows_the_real_arguments(kind, plugin, made):
    shown = inspect.signature(kind).parameters
    assert {"model", "optimizer", "plugins", "kwargs"} <= shown.keys()
    assert set(inspect.signature(plugin).parameters) <= shown.keys()
    assert all(parameter.kind.name in ("KEYWORD_ONLY", "VAR_KEYWORD") for parameter in shown.values())
    assert issubclass(kind, SupervisedTemplate)


def test_what_is_refused_and_taken():
    refuse_positional("EWC", ())
    with pytest.raises(TypeError, match=r"EWC takes keyword arguments only: EWC\(model=...,"):
        refuse_positional("EWC", (1,))
    keywords = {"l1": 0.5, "train_epochs": 3}
    assert take_arguments_of(DENPlugin, keywords) == {"l1": 0.5}
    assert keywords == {"train_epochs": 3}
