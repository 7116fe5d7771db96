"""The checks of arguments: what passes, and the error, its kind and text, for what does not."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from avl_plugins.tasks.arguments import (
    check_callable,
    check_choice,
    check_count,
    check_each_layer,
    check_flag,
    check_number,
    check_seed,
)

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("check", "value", "options"),
    [
        (check_number, 0, {}),
        (check_number, -1.5, {}),
        (check_number, np.float32(2), {"low": 2}),
        (check_number, np.int64(3), {"high": 3}),
        (check_number, Fraction(1, 3), {"low": 0, "high": 1, "open_low": True, "open_high": True}),
        (check_number, None, {"low": 1, "none": "no bound"}),
        (check_count, 1, {}),
        (check_count, np.int32(0), {"low": 0}),
        (check_count, 2**80, {}),
        (check_count, None, {"none": "all"}),
        (check_seed, None, {}),
        (check_seed, 0, {}),
        (check_seed, 2**63 - 1, {}),
        (check_each_layer, 3, {}),
        (check_each_layer, [1, 2], {}),
        (check_each_layer, (0,), {"low": 0}),
        (check_each_layer, (2, None), {"none": "no bound"}),
        (check_choice, "a", {"choices": ("a", "b")}),
        (check_choice, None, {"choices": ("a", None)}),
        (check_choice, 1, {"choices": (1, 2)}),
        (check_flag, False, {}),
        (check_callable, len, {"what": "x -> y"}),
        (check_callable, None, {"what": "x -> y", "none": "none of it"}),
    ],
)
def test_what_passes(check, value, options):
    assert check("name", value, **options) is None


@pytest.mark.parametrize(
    ("check", "value", "options", "error", "text"),
    [
        (check_number, NAN, {}, ValueError, "name must be a number, got nan"),
        (check_number, INF, {"low": 0}, ValueError, "name must be a number >= 0, got inf"),
        (check_number, -INF, {}, ValueError, "name must be a number, got -inf"),
        (check_number, np.float64("nan"), {}, ValueError, "name must be a number, got"),
        (check_number, -1, {"low": 0}, ValueError, "name must be a number >= 0, got -1"),
        (check_number, 0, {"low": 0, "open_low": True}, ValueError, "name must be a number > 0, got 0"),
        (check_number, 1.0, {"high": 1, "open_high": True}, ValueError, "name must be a number < 1, got 1.0"),
        (check_number, 2, {"low": 0, "high": 1}, ValueError, "name must be a number >= 0 and <= 1, got 2"),
        (check_number, 1e400, {"none": "no bound"}, ValueError, "name must be a number, or None for no bound, got inf"),
        (check_number, True, {}, TypeError, "name must be a number, got True"),
        (check_number, np.bool_(True), {}, TypeError, "name must be a number, got"),
        (check_number, "1", {}, TypeError, "name must be a number, got '1'"),
        (check_number, None, {}, TypeError, "name must be a number, got None"),
        (check_number, 1j, {}, TypeError, "name must be a number, got 1j"),
        (check_number, torch.tensor(1.0), {}, TypeError, r"name must be a number, got tensor\(1.\)"),
        (check_number, [1], {}, TypeError, r"name must be a number, got \[1\]"),
        (check_count, 0, {}, ValueError, "name must be an integer >= 1, got 0"),
        (check_count, 5, {"high": 4}, ValueError, "name must be an integer >= 1 and <= 4, got 5"),
        (check_count, 1.5, {}, TypeError, "name must be an integer >= 1, got 1.5"),
        (check_count, 2.0, {}, TypeError, "name must be an integer >= 1, got 2.0"),
        (check_count, False, {"low": 0}, TypeError, "name must be an integer >= 0, got False"),
        (check_count, None, {}, TypeError, "name must be an integer >= 1, got None"),
        (check_count, "3", {"none": "all"}, TypeError, "name must be an integer >= 1, or None for all, got '3'"),
        (check_seed, -1, {}, ValueError, "name must be an integer >= 0 and .*, or None for torch.initial_seed"),
        (check_seed, 2**63, {}, ValueError, "name must be an integer >= 0"),
        (check_seed, 1.0, {}, TypeError, "name must be an integer >= 0"),
        (check_each_layer, [], {}, ValueError, r"name must be an integer or one for each layer, got \[\]"),
        (check_each_layer, (2, 0), {}, ValueError, "name must be an integer >= 1, got 0"),
        (check_each_layer, (2, 1.5), {}, TypeError, "name must be an integer >= 1, got 1.5"),
        (check_each_layer, (2, None), {}, TypeError, "name must be an integer >= 1, got None"),
        (check_each_layer, None, {}, TypeError, "name must be an integer >= 1, got None"),
        (check_each_layer, True, {}, TypeError, "name must be an integer >= 1, got True"),
        (check_each_layer, "12", {}, TypeError, "name must be an integer >= 1, got '12'"),
        (check_choice, "c", {"choices": ("a", "b", None)}, ValueError, "name must be 'a', 'b' or None, got 'c'"),
        (check_choice, "b", {"choices": ("a",), "hint": "; see c"}, ValueError, "name must be 'a', got 'b'; see c"),
        (check_choice, True, {"choices": (1, 2)}, ValueError, "name must be 1 or 2, got True"),
        (check_choice, ["a"], {"choices": ("a", "b")}, ValueError, r"name must be 'a' or 'b', got \['a'\]"),
        (check_choice, np.zeros(2), {"choices": ("a", "b")}, ValueError, "name must be 'a' or 'b', got array"),
        (check_flag, 1, {}, TypeError, "name must be True or False, got 1"),
        (check_flag, None, {}, TypeError, "name must be True or False, got None"),
        (check_flag, "yes", {}, TypeError, "name must be True or False, got 'yes'"),
        (check_callable, 3, {"what": "x -> y"}, TypeError, "name must be a function x -> y, got 3"),
        (check_callable, None, {"what": "x -> y"}, TypeError, "name must be a function x -> y, got None"),
        (check_callable, 3, {"what": "of x", "none": "all"}, TypeError, "a function of x, or None for all, got 3"),
    ],
)
def test_what_does_not(check, value, options, error, text):
    with pytest.raises(error, match=text) as raised:
        check("name", value, **options)
    assert type(raised.value) is error
