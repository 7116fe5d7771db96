"""Gains and biases for each task."""

import pytest
import torch
from rl_cases import actor_critic, mlp, two_tasks
from torch import nn

from avl_plugins.rl import TaskGains


def conv():
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))


def test_a_layer_gives_what_the_paper_says():
    network = TaskGains(conv())
    network.add_task(5)
    with torch.no_grad():
        for kept in (network.gains, network.biases):
            for parameter in kept.parameters():
                parameter.normal_()
    x = torch.randn(6, 2, 3, 3)
    g, b = network.gains["5"], network.biases["5"]
    weight, last = network.layers[0].weight, network.layers[3].weight
    h = (nn.functional.conv2d(x, weight) + b["0"][None, :, None, None]) * g["0"][None, :, None, None]
    y = (h.relu().flatten(1) @ last.T + b["3"]) * g["3"]
    torch.testing.assert_close(network(x, 5), y)
    plain = nn.functional.conv2d(x, weight).relu().flatten(1) @ last.T
    assert torch.equal(network(x, 1), network(x, 2))
    torch.testing.assert_close(network(x, 1), plain)
    mixed = network(x, torch.tensor([5, 1, 5, 5, 1, 1]))
    torch.testing.assert_close(mixed, torch.where(torch.tensor([1, 0, 1, 1, 0, 0]).bool()[:, None], y, plain))


def test_a_task_gets_its_own_in_training_only_and_they_join_the_optimizer():
    benchmark = two_tasks()
    network = TaskGains(mlp(3))
    strategy = actor_critic(network)
    strategy.eval(benchmark.test_stream)
    assert network.labels == []
    strategy.train(benchmark.train_stream[0])
    assert network.labels == [0]
    first = {n: p.clone() for n, p in network.named_parameters() if n.startswith(("gains.0.", "biases.0."))}
    strategy.train(benchmark.train_stream[1])
    assert network.labels == [0, 1]
    in_optimizer = [id(p) for group in strategy.optimizer.param_groups for p in group["params"]]
    assert len(in_optimizer) == len(set(in_optimizer))
    assert {id(p) for p in network.parameters()} <= set(in_optimizer)
    now = dict(network.named_parameters())
    assert len(first) == 4
    assert all(torch.equal(p, now[n]) for n, p in first.items())
    assert not torch.equal(now["gains.1.0"], torch.ones(8))


def test_a_fresh_network_grows_to_a_state():
    network = TaskGains(mlp(3))
    for label in (3, 1):
        network.add_task(label)
    torch.nn.init.normal_(network.gains["3"]["0"])
    other = TaskGains(mlp(3))
    other.load_state_dict(network.state_dict())
    x = torch.randn(4, 3)
    assert other.labels == [3, 1]
    assert torch.equal(other(x, 3), network(x, 3))
    extra = TaskGains(mlp(3))
    extra.add_task(9)
    before = {n: p.clone() for n, p in extra.named_parameters()}
    with pytest.raises(ValueError, match=r"gains for the tasks \[9\]"):
        extra.load_state_dict(network.state_dict())
    assert extra.labels == [9]
    assert all(torch.equal(p, before[n]) for n, p in extra.named_parameters())


def test_layers_with_other_parameters_are_refused():
    with pytest.raises(ValueError, match="layer 1 is a BatchNorm1d"):
        TaskGains(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with pytest.raises(ValueError, match="found none"):
        TaskGains(nn.Sequential(nn.ReLU()))
