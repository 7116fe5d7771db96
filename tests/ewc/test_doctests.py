"""The examples in the docstrings of public names run."""

from docs_cases import run_doctests

from avl_plugins.ewc import rules


def test_examples(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))  # one registers a rule
    run_doctests(["avl_plugins.ewc"])
