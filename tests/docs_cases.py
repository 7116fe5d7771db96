"""Examples in docstrings, run as doctests."""

import doctest
import importlib
import warnings


def run_doctests(module_names):
    """Run the example that each public name of some modules has in its docstring; one without an example fails."""
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    found, failed = [], []
    for module_name in module_names:
        for name in (module := importlib.import_module(module_name)).__all__:
            thing = getattr(module, name)
            (test,) = finder.find(
                thing, f"{module_name}.{name}", globs=dict(vars(importlib.import_module(thing.__module__)))
            )
            assert test.examples, f"{test.name} has no example"
            found.append(test)
    for test in found:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No loggers specified")  # of Avalanche: examples are short
            if runner.run(test, out=failed.append).failed:
                failed.append(test.name)
    assert not failed, "\n".join(failed)
