"""The examples in the docstrings of public names run as doctests."""

from docs_cases import run_doctests


def test_examples():
    run_doctests(["avl_plugins.den"])
