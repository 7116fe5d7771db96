"""Words of EWC: old ones for one release, repr, and signatures that show the real arguments."""

import inspect
import pydoc

import pytest
from avalanche.training.templates import SupervisedTemplate
from ewc_cases import mlp, naive

from avl_plugins import EWC, EWCPlugin


def plugin_of_strategy(**options):
    return naive(mlp(), cls=EWC, **options).ewc


@pytest.mark.parametrize("make", [EWCPlugin, plugin_of_strategy])
@pytest.mark.parametrize(
    ("old", "new", "value", "other"),
    [("labels", "fisher_labels", "sampled", "exact"), ("step", "penalty_step", "proximal", "gradient")],
)
def test_old_words(make, old, new, value, other):
    with pytest.warns(DeprecationWarning, match=f"{old} is called {new} now"):
        plugin = make(ewc_lambda=1.0, **{old: value})
    assert getattr(plugin, new) == value
    with pytest.raises(TypeError, match=f"{old} is called {new} now: give {new} alone"):
        make(ewc_lambda=1.0, **{old: value, new: other})


def test_repr():
    assert repr(EWCPlugin(ewc_lambda=3)) == "EWCPlugin(ewc_lambda=3)"
    plugin = plugin_of_strategy(ewc_lambda=0.5, fisher_labels="sampled", penalty_step="proximal", exclude=["*.bias"])
    shown = "fisher_labels='sampled', penalty_step='proximal', exclude=('*.bias',)"
    assert repr(plugin) == f"EWCPlugin(ewc_lambda=0.5, {shown})"


def test_signatures_show_the_real_arguments():
    own, shown = inspect.signature(EWCPlugin).parameters, inspect.signature(EWC).parameters
    assert list(own)[:2] == ["ewc_lambda", "fisher_labels"]
    assert own["penalty_step"].default == "gradient"
    assert all(p.kind is p.KEYWORD_ONLY for p in own.values())
    assert not {"labels", "step", "args", "kwargs"} & own.keys()
    assert not {"labels", "step", "args"} & shown.keys()
    for kind in (EWCPlugin, SupervisedTemplate):
        assert inspect.signature(kind).parameters.keys() <= shown.keys()
    for kind in (EWCPlugin, EWC):
        assert "fisher_labels: Literal['exact', 'sampled'" in pydoc.plain(pydoc.render_doc(kind))


def test_a_subclass_has_the_constructor_that_it_says():
    class Strong(EWCPlugin):
        def __init__(self, factor, decay_factor=1.0):
            super().__init__(ewc_lambda=1000 * factor * decay_factor)

    assert list(inspect.signature(Strong).parameters) == ["factor", "decay_factor"]
    assert Strong(3, decay_factor=0.5).ewc_lambda == 1500

    class Plain(EWCPlugin):
        """One that has none."""

    assert inspect.signature(Plain) == inspect.signature(EWCPlugin)
    for make in (Plain, EWCPlugin):
        with pytest.raises(TypeError, match="decay_factor is called gamma here"):
            make(ewc_lambda=1.0, decay_factor=0.5)
