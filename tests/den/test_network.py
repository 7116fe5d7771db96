"""The network of DEN: growth leaves old tasks' outputs as they are, capacity, extraction, state and bad input."""

import pytest
import torch
from den_cases import NETWORKS, SHAPES, all_conv, conv, copies, grown, mlp
from torch import nn

from avl_plugins.den.duplication import split_units
from avl_plugins.den.expansion import add_units, empty_units, remove_units
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.den.stand_in import NewUnits
from avl_plugins.tasks.network import MASK

COUNTS = {"mlp": (4, 3), "conv": (2, 3, 4), "all_conv": (2,)}


@pytest.mark.parametrize("kind", NETWORKS)
def test_growth_changes_no_old_output(kind):
    """Bit for bit: after units were added, after training of new units alone, after a split and after removal."""
    net, x = NETWORKS[kind]().eval(), torch.randn(5, *SHAPES[kind])
    net.add_task(0, 3)
    first = net(x, 0)
    net.add_task(1, 4)
    before = copies(net)
    add_units(net, COUNTS[kind])
    assert torch.equal(net(x, 0), first)
    net.put_in_place(NewUnits(net, COUNTS[kind]))
    assert torch.allclose(net.stand_in(net, x), net.head_of(1)(net.features(x, 1)), atol=1e-6)
    with torch.no_grad():
        for parameter in net.stand_in.parameters():
            parameter += torch.randn_like(parameter)
    trained = net(x, 1)
    assert torch.equal(net(x, 0), first)
    net.write_back()
    assert torch.allclose(net(x, 1), trained, atol=1e-5)
    assert torch.equal(net(x, 0), first)
    split_units(net, [torch.tensor([1, 3])] * len(COUNTS[kind]), before)
    assert torch.equal(net(x, 0), first)
    remove_units(net, 0, torch.tensor([net.hidden[0].units - 1, net.hidden[0].units - 3]))
    assert torch.equal(net(x, 0), first)
    assert net(x, 1).shape == (5, 4)
    assert [layer.stamps.count(2) for layer in net.hidden] == [
        COUNTS[kind][k] + 2 - 2 * (k == 0) for k in range(len(COUNTS[kind]))
    ]


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_removed_unit_without_inputs_and_bias_changes_nothing(kind):
    net, x = grown(kind, COUNTS[kind])
    layer = net.hidden[0]
    unit = layer.units - 2
    with torch.no_grad():
        layer.layer.weight[unit] = 0
        layer.layer.bias[unit] = 0
    assert empty_units(layer.layer.weight).tolist() == [unit]
    expected = net(x, 1)
    remove_units(net, 0, torch.tensor([unit]))
    assert torch.allclose(net(x, 1), expected, atol=1e-6)
    assert layer.units == len(layer.stamps) == layer.layer.weight.shape[0]


def test_units_of_earlier_tasks_are_not_removed():
    net, _ = grown("mlp", (4, 3))
    with pytest.raises(ValueError, match=r"units: \[2\] of hidden layer 2 were made by earlier tasks"):
        remove_units(net, 1, torch.tensor([2, 10]))
    assert net.hidden[1].units == 12


def test_what_stamps_leave_out():
    """Without stamps new units act on old tasks, through new connections to old units of the next layer."""
    for stamps in (True, False):
        torch.manual_seed(0)
        net, x = mlp(stamps=stamps).eval(), torch.randn(5, 64)
        net.add_task(0, 3)
        first = net(x, 0)
        net.add_task(1, 3)
        add_units(net, (4, 3))
        assert torch.equal(net(x, 0), first) == stamps
    old = net.features(x, 0)
    weight = net.hidden[1].layer.weight
    with torch.no_grad():
        weight[:9, 12:] = 0
    assert torch.allclose(net(x, 0), first, atol=1e-6), "the head of the old task does not read new units"
    assert not torch.equal(old, net.features(x, 0))


@pytest.mark.parametrize(("k", "capacity"), [(13, 1.553), (20, 1.890)])
def test_capacity_is_the_papers(k, capacity):
    """Constant expansion by 13 and 20 units a layer and task, ten one-vs-rest tasks: 1.55 and 1.89 in Fig. 4c."""
    body = nn.Sequential(nn.Linear(784, 312), nn.ReLU(), nn.Linear(312, 128), nn.ReLU())
    net = DynamicallyExpandableNetwork(body, head="binary")
    for label in range(10):
        net.add_task(label, 2)
        assert net.capacity() == 1.0 or label
        if label:
            add_units(net, (k, k))
    assert net.dense_weights(net.first_units) == 285_824
    assert round(net.capacity(), 3) == capacity
    assert net(torch.zeros(2, 784), 3).shape == (2, 1)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("stamps", [True, False])
def test_single_task_networks_give_the_same(kind, stamps):
    net, x = grown(kind, COUNTS[kind], tasks=3)
    net.use_stamps = stamps
    for label in range(3):
        single = net.to_single_task(label)
        assert torch.allclose(single(x), net(x, label), atol=1e-6)
        assert not any(isinstance(module, DynamicallyExpandableNetwork) for module in single.modules())
    exported = torch.export.export(net.to_single_task(1), (x,)).module()
    assert torch.allclose(exported(x), net(x, 1), atol=1e-6)
    with torch.no_grad():
        next(single.parameters()).zero_()
    assert next(net.parameters()).detach().abs().sum() > 0, "it is a copy"


@pytest.mark.parametrize("kind", NETWORKS)
def test_state_fills_a_fresh_network(kind):
    net, x = grown(kind, COUNTS[kind], tasks=3)
    net.put_in_place(NewUnits(net, COUNTS[kind]))
    fresh = NETWORKS[kind]().eval()
    random = torch.get_rng_state()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(torch.get_rng_state(), random)
    assert isinstance(fresh.stand_in, NewUnits)
    for label in range(3):
        assert torch.equal(fresh(x, label), net(x, label))
    assert [layer.stamps for layer in fresh.hidden] == [layer.stamps for layer in net.hidden]
    other = NETWORKS[kind]()
    other.add_task(7, 2)
    with pytest.raises(ValueError, match=r"heads for the tasks \['7'\], the state for \['0', '1', '2'\]"):
        other.load_state_dict(net.state_dict())
    assert [layer.units for layer in other.hidden] == net.first_units


def test_a_state_of_another_body_is_refused():
    net, _ = grown("mlp", (1, 1))
    other = DynamicallyExpandableNetwork(nn.Sequential(nn.Linear(64, 12), nn.ReLU()))
    with pytest.raises(ValueError, match="1 hidden layers, the state 2"):
        other.load_state_dict(net.state_dict())
    wider = DynamicallyExpandableNetwork(nn.Sequential(nn.Linear(64, 13), nn.ReLU(), nn.Linear(13, 9), nn.ReLU()))
    with pytest.raises(ValueError, match="built with 13 units"):
        wider.load_state_dict(net.state_dict())
    assert wider.labels == []


def test_several_tasks_in_a_batch():
    net, x = mlp().eval(), torch.randn(4, 64)
    net.add_task(3, 2)
    net.add_task(8, 5)
    together = net(x, torch.tensor([8, 3, 3, 8]))
    assert torch.equal(together[[0, 3]], net(x[[0, 3]], 8))
    assert torch.equal(together[[1, 2], :2], net(x[[1, 2]], 3))
    assert (together[[1, 2], 2:] == MASK).all()
    assert list(net(x, None)) == [3, 8]


def test_unseen_tasks():
    net, x = mlp().eval(), torch.randn(4, 64)
    net.add_task(0, 2)
    with pytest.warns(UserWarning, match="task 5 has not been trained on yet"):
        assert (net(x, 5) == 0).all()
    strict = mlp(unseen="raise").eval()
    strict.add_task(0, 2)
    with pytest.raises(ValueError, match=r"no head has been trained on task 5; the tasks so far are \[0\]"):
        strict(x, 5)


def test_bad_bodies():
    for body, text in (
        (nn.Linear(3, 2), "body must be an nn.Sequential, .*got Linear"),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "BatchNorm1d has parameters or buffers and cannot grow"),
        (nn.Sequential(nn.LSTM(3, 2)), "LSTM has parameters"),
    ):
        with pytest.raises(TypeError, match=text):
            DynamicallyExpandableNetwork(body)
    for body, text in (
        (nn.Sequential(nn.ReLU()), "at least one Linear or Conv2d"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 2)), "2 groups cannot grow"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(6, 2)), "reads 6 inputs from 4 units"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "features: the body ends with a convolution"),
    ):
        with pytest.raises(ValueError, match=text):
            DynamicallyExpandableNetwork(body)
    with pytest.raises(ValueError, match="features must be a multiple of the last layer's 6 units, got 20"):
        DynamicallyExpandableNetwork(nn.Sequential(nn.Conv2d(3, 6, 3)), features=20)


def test_bad_tasks():
    net = mlp(head="binary")
    net.add_task(0, 2)
    with pytest.raises(ValueError, match="there is a head for task 0 already"):
        net.add_task(0, 2)
    with pytest.raises(ValueError, match='"binary" tells the classes 0 and 1, and the task 1 has'):
        net.add_task(1, 3)
    with pytest.raises(ValueError, match="counts must be 2 numbers"):
        add_units(net, (1,))
    assert conv().head_positions == 1
    assert all_conv().head_positions == 4
