"""Optimizers with several parameter groups: every parameter of a new column joins the group of its like."""

import pytest
import torch
from avalanche.training import Naive
from progressive_runs import build, column
from torch import nn

from avl_plugins import ProgressiveNetwork, ProgressivePlugin
from avl_plugins.progressive.groups import join_groups


def by_kind(net):
    """No weight decay for biases and normalisation, as is usual."""
    named = dict(net.named_parameters())
    few = [p for p in named.values() if p.dim() < 2]
    return [
        {"params": [p for p in named.values() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": few, "weight_decay": 0.0},
    ]


def by_depth(net):
    first, rest = net.columns[0].stages[0], net.columns[0].stages[1]
    return [{"params": list(first.parameters()), "lr": 0.01}, {"params": list(rest.parameters()), "lr": 0.1}]


def names_of(net, group):
    wanted = {id(p) for p in group["params"]}
    return {name.split(".", 2)[2] for name, p in net.named_parameters() if id(p) in wanted}


LAYER = {"layer.weight", "layer.bias"}
LATERAL = {"lateral.alpha", "lateral.V.weight", "lateral.V.bias", "lateral.U.weight"}
NORM = {"after.0.weight", "after.0.bias"}
EXPECTED = {
    by_kind: (
        {"stages.0.layer.weight"}
        | {f"{at}.{name}" for at in ("stages.1", "head") for name in {"layer.weight"} | LATERAL - {"lateral.V.bias"}},
        {f"stages.0.{name}" for name in {"layer.bias"} | NORM}
        | {f"{at}.{name}" for at in ("stages.1", "head") for name in ("layer.bias", "lateral.V.bias")},
    ),
    by_depth: (
        {f"stages.0.{name}" for name in LAYER | NORM},
        {f"{at}.{name}" for at in ("stages.1", "head") for name in LAYER | LATERAL},
    ),
}


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("groups", EXPECTED)
def test_new_columns_join_the_groups_and_frozen_ones_leave_them(digits_split, groups, reset):
    torch.manual_seed(0)
    net = ProgressiveNetwork(column())
    optimizer = torch.optim.SGD(groups(net), lr=0.1, momentum=0.9)
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    strategy = build(net, make_optimizer=lambda net: optimizer)
    for task, experience in enumerate(digits_split.train_stream[:3]):
        before = [p.clone() for p in net.columns[-1].parameters()]
        strategy.train(experience, reset_optimizer_state=reset)
        newest = set(net.columns[task].parameters())
        members = [p for group in optimizer.param_groups for p in group["params"]]
        assert len(members) == len(newest)
        assert set(members) == newest
        assert set(optimizer.state) == newest
        if task:
            assert [names_of(net, group) for group in optimizer.param_groups] == list(EXPECTED[groups])
            assert all(torch.equal(a, b) for a, b in zip(before, net.columns[task - 1].parameters(), strict=True))
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == options


def test_groups_of_one_kind_train_as_one_group(digits_split):
    """The same numbers as with all parameters in one group, in a strategy of Avalanche's."""
    ends = []
    for groups in (by_kind, lambda net: net.parameters()):
        torch.manual_seed(0)
        net = ProgressiveNetwork(column())
        optimizer = torch.optim.Adam(groups(net), lr=3e-3)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.01
        strategy = build(
            net, make_optimizer=lambda net, own=optimizer: own, strategy=Naive, plugins=[ProgressivePlugin()]
        )
        strategy.train(digits_split.train_stream[:3])
        ends.append(list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_retrained_columns_come_back_into_their_groups(digits_split):
    net = ProgressiveNetwork(column(), adapter="linear", retrain=True)
    optimizer = torch.optim.SGD(by_depth(net), lr=0.1)
    strategy = build(net, make_optimizer=lambda net: optimizer)
    strategy.train(digits_split.train_stream[:2])
    with pytest.warns(UserWarning, match="read the features of task 0"):
        strategy.train(digits_split.train_stream[0])
    assert [names_of(net, group) for group in optimizer.param_groups] == [
        {f"stages.0.{name}" for name in LAYER | NORM},
        {f"{at}.{name}" for at in ("stages.1", "head") for name in LAYER},
    ]
    members = {p for group in optimizer.param_groups for p in group["params"]}
    assert members == set(net.columns[0].parameters())


def test_a_parameter_without_its_like_is_named():
    net = ProgressiveNetwork(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4)))
    first, last = net.columns[0].stages
    optimizer = torch.optim.SGD([{"params": [first.layer.weight]}, {"params": [last.layer.weight]}], lr=0.1)
    join_groups(net, optimizer)  # biases go with their weights
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    optimizer = torch.optim.SGD([{"params": [first.layer.weight]}, {"params": [first.layer.bias]}], lr=0.1)
    groups = [list(group["params"]) for group in optimizer.param_groups]
    with pytest.raises(ValueError, match=r"optimizer: none of its 2 parameter groups .* stages\.1\.layer\.weight"):
        join_groups(net, optimizer)
    assert [list(group["params"]) for group in optimizer.param_groups] == groups
