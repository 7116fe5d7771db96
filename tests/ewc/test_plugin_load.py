"""Loading EWCPlugin's state: all of it or nothing, and an error that names the entry."""

import copy
from typing import Any

import pytest
import torch
from ewc_cases import assert_same, mlp, naive, trained
from torch import Tensor

from avl_plugins.ewc.plugin import EWCPlugin


def flat(value: Any, name: str = "") -> dict[str, Tensor]:
    """Everything in a state, by its path."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}/{key}").items()}
    return {name: value.clone() if isinstance(value, Tensor) else torch.tensor(list(repr(value).encode()))}


BROKEN = {
    "penalty": [
        None,
        [],
        {},
        {"precision": {}, "centre": {}, "constant": True},
        {"precision": {}, "centre": {}, "constant": "1"},
        {"precision": [], "centre": {}, "constant": 0.0},
        {"precision": {"0.bias": [1.0]}, "centre": {"0.bias": torch.ones(1)}, "constant": 0.0},
        {"precision": {"0.bias": torch.ones(1)}, "centre": {}, "constant": 0.0},
        {"precision": {"0.bias": torch.ones(1).long()}, "centre": {"0.bias": torch.ones(1)}, "constant": 0.0},
        {"precision": {"0.bias": -torch.ones(1)}, "centre": {"0.bias": torch.ones(1)}, "constant": 0.0},
        {"precision": {"0.bias": torch.ones(2)}, "centre": {"0.bias": torch.ones(1)}, "constant": 0.0},
    ],
    "terms": [None, [1], {"a": {}}, {0: {}}, {0: None}],
    "tasks": [None, -1, 1.5, "1", True],
    "importances": [None, [], {"0.bias": 1.0}],
    "fisher_seconds": [None, "1", float("nan"), -1.0],
    "last_penalty": [None, 0.0],
    "generator": [0, torch.zeros(3), torch.zeros(5056), "seed"],
    "parts": [None, -1, 0.5],
    "classes": [None, [], {0: None}, {0: ["a"]}, {"a": [0]}],
    "warned": [None, "unstable", [1]],
    "active": ["0.bias", [0], 1],
}


@pytest.mark.parametrize(("entry", "value"), [(entry, value) for entry, values in BROKEN.items() for value in values])
def test_a_broken_entry_is_named_and_nothing_is_taken(digits_permuted: Any, entry: str, value: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0, fisher_labels="sampled")
    trained(digits_permuted, plugin)
    state = {**plugin.state_dict(), "tasks": 7, entry: value}
    before, penalty = flat(copy.deepcopy(plugin.state_dict())), plugin.penalty
    with pytest.raises(ValueError, match=f"this is not the state of a EWCPlugin: entry '{entry}'"):
        plugin.load_state_dict(state)
    assert_same(flat(plugin.state_dict()), before, rtol=0, atol=0)
    assert plugin.penalty is penalty


@pytest.mark.parametrize("state", [None, [], "state", {}, {"penalty": {}}, {1: 2}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match="state of a EWCPlugin"):
        EWCPlugin(ewc_lambda=1.0).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "online"}, "saved with mode='separate', this plugin has mode='online'"),
        ({"revisits": "replace"}, "saved with revisits='add', this plugin has revisits='replace'"),
    ],
)
def test_other_settings_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EWCPlugin(ewc_lambda=1.0, **options).load_state_dict(EWCPlugin(ewc_lambda=1.0).state_dict())


def test_a_state_shares_nothing_with_the_plugin_that_takes_it(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0, fisher_labels="sampled")
    trained(digits_permuted, plugin)
    state = plugin.state_dict()
    other = EWCPlugin(ewc_lambda=1.0, fisher_labels="sampled")
    other.load_state_dict(state)
    expected = flat(copy.deepcopy(other.state_dict()))
    for tensors in (state["penalty"]["precision"], state["penalty"]["centre"], state["importances"]):
        for tensor in tensors.values():
            tensor.fill_(3)
    state["last_penalty"].fill_(3)
    assert_same(flat(other.state_dict()), expected, rtol=0, atol=0)
    naive(mlp(), other).train(digits_permuted.train_stream[1], eval_streams=[])
    assert other.tasks == 2
