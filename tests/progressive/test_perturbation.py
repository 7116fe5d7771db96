"""Average Perturbation Sensitivity against closed forms, and its agreement with the Fisher on trained columns."""

import copy

import pytest
import torch
from progressive_cases import conv_network, images, trained_on_digits
from torch import nn

from avl_plugins import ProgressiveNetwork
from avl_plugins.progressive.activations import by_map, over_maps
from avl_plugins.progressive.perturbation import (
    PerturbationSensitivity,
    _level,
    _Perturbed,
    accuracy_above_chance,
    average_perturbation_sensitivity,
)
from avl_plugins.progressive.sensitivity import average_fisher_sensitivity

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("drop", [0.5, 0.2])
def test_levels_of_a_linear_network_in_closed_form(drop):
    """In a linear network noise moves the logits by E|dz|^2 = sigma^2 sum_m var_m |J_m|^2, whatever its level."""
    net = ProgressiveNetwork(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), adapter="linear")
    net.add_task(0, 4)
    net.add_task(1, 4)
    net.double()
    x = torch.randn(4000, 4, dtype=torch.float64)
    net.requires_grad_(False)
    clean = net(x, 1)
    scale = 0.05

    def evaluate(forward):
        return 2 - float((forward(x) - clean).square().sum(1).mean()) / scale

    found = average_perturbation_sensitivity(net, evaluate, 1, repeats=3, drop=drop, tolerance=0.005)
    assert found.score == 2
    first, second = net.columns
    head, head_old = second.head.layer.weight, second.head.lateral.U.weight
    jacobians = [
        [
            head @ second.stages[1].lateral.U.weight + head_old @ first.stages[1].layer.weight,
            head @ second.stages[1].layer.weight,
        ],
        [head_old, head],
    ]
    features = net.features(x, 1)
    for i in range(2):
        for j in range(2):
            moved = float((jacobians[i][j].square().sum(0) * features[j][i].var(0, unbiased=False)).sum())
            assert float(found.noise[i, j]) == pytest.approx(2 * drop * scale / moved, rel=0.03)
    assert torch.equal(found.precision, 1 / found.noise)
    torch.testing.assert_close(found.layers, found.precision / found.precision.sum(1, keepdim=True))
    torch.testing.assert_close(found.columns, found.layers.mean(0))


@pytest.mark.parametrize("place", [(0, 1), (1, 1), (2, 0)])
def test_noise_is_fresh_independent_and_scaled_by_each_map(place):
    net, x = conv_network(tasks=2), images(3000)
    depth, column = place
    stage = net.columns[column].stages[depth]
    h = net.features(x, 11)[column][depth].detach()
    clean = by_map(h, stage)
    std = (clean - clean.mean((0, 2), keepdim=True)).square().mean((0, 2)).sqrt()
    assert std.shape == (stage.maps,)
    perturbed = _Perturbed(net, 11, place, stage, std, torch.Generator().manual_seed(3))
    perturbed.sigma = 0.7
    noise, fresh = (by_map(perturbed._tap(column, depth, h) - h, stage) for _ in range(2))
    torch.testing.assert_close(noise.std((0, 2)), 0.7 * std, rtol=0.05, atol=0)
    scaled = (noise / std.view(1, -1, 1)).flatten(1)
    assert float(scaled.mean()) == pytest.approx(0, abs=0.02)
    correlation = torch.corrcoef(torch.cat([scaled, (fresh / std.view(1, -1, 1)).flatten(1)], 1).T)
    assert float((correlation - torch.eye(len(correlation), dtype=torch.float64)).abs().max()) < 0.1
    assert perturbed._tap(1 - column, depth, h) is h
    assert perturbed._tap(column, (depth + 1) % 3, h) is h
    perturbed.sigma = 0.0
    assert torch.equal(perturbed(x), net(x, 11))


def test_one_value_a_map_in_every_layout():
    conv, linear = conv_network().columns[0].stages[1], conv_network().columns[0].stages[2]
    maps = torch.arange(6.0)
    for h in (torch.zeros(2, 6, 3, 3), torch.zeros(2, 54)):
        assert torch.equal(by_map(h + over_maps(maps, h, conv), conv), maps.view(1, 6, 1).expand(2, 6, 9))
    units = torch.arange(7.0)
    for h in (torch.zeros(2, 4, 5, 7), torch.zeros(2, 7)):
        spread = by_map(h + over_maps(units, h, linear), linear)
        assert torch.equal(spread, units.view(1, 7, 1).expand_as(spread))


@pytest.mark.parametrize(
    ("score_at", "largest", "level"),
    [
        (lambda v: 1 - v, 100, 0.5),
        (lambda v: 1 / (1 + v), 100, 1),
        (lambda v: 1 / (1 + v / 300), 1000, 300),
        (lambda v: 1 / (1 + 1e6 * v), 1000, 1e-6),
        (lambda v: 1 / (1 + v / 300), 200, torch.inf),
        (lambda v: 1 / (1 + 8 * v), 0.25, 0.125),
        (lambda v: 1 / (1 + 2 * v), 0.25, torch.inf),
        (lambda v: 0.51, 2.0**20, torch.inf),
    ],
)
def test_bisection(score_at, largest, level):
    assert _level(score_at, 0.5, largest, 1e-3) == pytest.approx(level, rel=1e-3)


def test_a_score_that_is_low_at_any_level():
    with pytest.raises(ValueError, match=r"below 0\.5 at any level of noise; it varies too much by itself"):
        _level(lambda v: 0.4, 0.5, 1.0, 0.1)


@pytest.mark.parametrize("cut", ["adapter", "weights"])
def test_what_does_not_matter_has_no_precision(cut):
    net = conv_network(None if cut == "adapter" else "linear", tasks=2)
    if cut == "weights":
        with torch.no_grad():
            for stage in (*net.columns[1].stages[1:], net.columns[1].head):
                stage.lateral.U.weight.zero_()
    x = images(40)
    found = average_perturbation_sensitivity(net, [(x, net(x, 11).argmax(1))], 11, repeats=2)
    assert torch.isinf(found.noise[:, 0]).all()
    matters = found.noise[:, 1].isfinite()  # noise at the input of a random network may leave its favourite class
    assert matters[-1]
    assert found.layers.tolist() == [[0.0, float(m)] for m in matters]
    assert found.columns.tolist() == [0, pytest.approx(float(matters.double().mean()))]
    assert found.shape == (3, 2)
    nothing = PerturbationSensitivity(0, 1.0, torch.full((1, 2), torch.inf), {})
    assert nothing.layers.tolist() == [[0, 0]]


def test_score_is_accuracy_above_chance():
    net = conv_network()
    x = images(10)
    y = net(x, 12).argmax(1)
    y[:4] = (y[:4] + 1) % 4
    evaluate = accuracy_above_chance(net, [(x[:7], y[:7]), {"x": x[7:], "y": y[7:]}], 12)
    assert evaluate(lambda x: net(x, 12)) == pytest.approx(0.6 - 1 / 3)  # three classes, four logits
    found = average_perturbation_sensitivity(net, [(x, net(x, 12).argmax(1))], 12, repeats=1, tolerance=0.5)
    assert found.score == pytest.approx(2 / 3)
    for (depth, column), means in found.means.items():
        stage = net.columns[column].stages[depth]
        torch.testing.assert_close(means, by_map(net.features(x, 12)[column][depth], stage).mean((0, 2)).detach())


def test_nothing_is_changed_and_seeds_give_the_same_twice():
    net, x = conv_network(tasks=2).float().train(), images(40).float()
    net.columns[0].stages[0].after[0].train()
    net(x, 11).sum().backward()
    state = copy.deepcopy(net.state_dict())
    grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    modes = [m.training for m in net.modules()]
    random = torch.get_rng_state()
    data = [(x, net.eval()(x, 11).argmax(1), torch.full((40,), 11))]
    for module, mode in zip(net.modules(), modes, strict=True):
        module.training = mode

    def noisy(forward):
        torch.rand(3)  # a score may draw random numbers
        return accuracy_above_chance(net, data, 11)(forward)

    runs = [average_perturbation_sensitivity(net, d, 11, repeats=2).noise for d in (data, iter(data), noisy)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    other = torch.Generator().manual_seed(77)
    assert not torch.equal(average_perturbation_sensitivity(net, data, 11, repeats=2, generator=other).noise, runs[0])
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in net.modules()] == modes
    for parameter, grad in zip(net.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)
    tensors = {name: value for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
    assert all(torch.equal(value, state[name]) for name, value in tensors.items())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"drop": 1.0}, ValueError, "drop must be a number > 0 and < 1, got 1.0"),
        ({"repeats": 0}, ValueError, "repeats must be an integer >= 1, got 0"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be a number > 0, got 0.0"),
        ({"largest": float("inf")}, ValueError, "largest must be a number > 0, got inf"),
        ({"repeats": 1.5}, TypeError, "repeats must be an integer >= 1, got 1.5"),
        ({"drop": True}, TypeError, "drop must be a number > 0 and < 1, got True"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator, or None for a new one, got 3"),
        ({"label": 7}, ValueError, "label: there is no column for task 7"),
        ({"data": []}, ValueError, "batches is empty: an accuracy needs"),
        ({"data": [images(2)]}, ValueError, r"labels y; yield \(x, y\)"),
        (
            {"data": lambda forward: 0 * float(forward(images(1)).mean())},
            ValueError,
            "the score of task 11 without noise is 0, which cannot fall",
        ),
        ({"data": lambda forward: 1.0}, ValueError, "the function has not called the forward pass"),
        ({"network": nn.Linear(2, 2)}, TypeError, "network must be a ProgressiveNetwork, got a Linear"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"network": conv_network(tasks=2), "data": [(images(2), torch.zeros(2))], "label": 11} | change
    with pytest.raises(error, match=message):
        average_perturbation_sensitivity(arguments.pop("network"), arguments.pop("data"), **arguments)


@pytest.mark.parametrize("adapter", ["mlp", "linear"])
@pytest.mark.parametrize("variant", ["noisy", "flip"])
def test_fisher_and_perturbation_agree_on_trained_columns(digits_arrays, adapter, variant):
    noise = 0.3 * torch.randn(1, 1, 8, 8)
    second = {"noisy": lambda x: x + noise, "flip": lambda x: x.flip(-1)}[variant]
    net, x, y = trained_on_digits(digits_arrays, adapter, second)
    fisher = average_fisher_sensitivity(net, [x], 1)
    perturbation = average_perturbation_sensitivity(net, [(x, y)], 1, repeats=3)
    assert perturbation.score > 0.8
    # Which depths rely on the source most, and in each depth which column matters more.
    assert fisher.layers[:, 0].argsort().tolist() == perturbation.layers[:, 0].argsort().tolist()
    clear = (perturbation.layers[:, 0] - 0.5).abs() > 0.1
    assert ((fisher.layers[:, 0] > 0.5) == (perturbation.layers[:, 0] > 0.5))[clear].all()
    torch.testing.assert_close(fisher.layers, perturbation.layers, rtol=0, atol=0.12)
