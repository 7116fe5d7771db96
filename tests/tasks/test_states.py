"""Entries of a state are checked by name and kind."""

import pytest

from avl_plugins.tasks.states import COUNT, FLAG, check_entries, is_count, is_number, list_of

ENTRIES = {"steps": COUNT, "warned": FLAG}


def test_what_fits():
    check_entries("Plugin", {"steps": 3, "warned": False}, ENTRIES)
    check_entries("Plugin", {}, {}, optional=ENTRIES)
    check_entries("Plugin", {"steps": 0}, {"steps": COUNT}, optional={"warned": FLAG})


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (None, "the state of a Plugin must be a dict, got NoneType"),
        ([("steps", 3)], "the state of a Plugin must be a dict, got list"),
        ({"steps": 3}, "not the state of a Plugin: entry 'warned' is missing"),
        ({"steps": 3, "warned": True, "more": 1}, "not the state of a Plugin: entry 'more' is unknown"),
        ({"steps": -3, "warned": True}, "entry 'steps' must be an integer >= 0, got -3"),
        ({"steps": True, "warned": True}, "entry 'steps' must be an integer >= 0, got True"),
        ({"steps": 3, "warned": [0] * 500}, r"entry 'warned' must be True or False, got \[0, 0.{0,80}$"),
    ],
)
def test_what_does_not(state, text):
    with pytest.raises(ValueError, match=text):
        check_entries("Plugin", state, ENTRIES)


def test_kinds():
    assert [is_count(value) for value in (0, 5, -1, 1.0, True, None)] == [True, True, False, False, False, False]
    assert [is_number(value) for value in (0, -1.5, True, "1", None)] == [True, True, False, False, False]
    assert list_of(is_count)([1, 2])
    assert list_of(is_count)(())
    assert not list_of(is_count)([1, -2])
    assert not list_of(is_count)({1: 2})
