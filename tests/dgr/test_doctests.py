"""Examples of Deep Generative Replay, and of its signatures what they show."""

import inspect

import pytest
from avalanche.training.templates import SupervisedTemplate
from docs_cases import run_doctests

from avl_plugins.dgr import DGR, DGRPlugin


def test_examples_run():
    run_doctests(["avl_plugins.dgr"])


@pytest.mark.parametrize("kind", [DGRPlugin, SupervisedTemplate])
def test_the_strategys_signature_shows_the_arguments_of(kind):
    shown, own = inspect.signature(DGR).parameters, inspect.signature(kind).parameters
    assert own.keys() <= shown.keys()
    changed = {"model", "optimizer", "plugins"}
    assert all(shown[name].default == own[name].default for name in own.keys() - changed)
