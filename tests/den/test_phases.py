"""The maths of DEN's phases: proximal steps, selection, sub-networks, drift and duplication, in numbers."""

import pytest
import torch
from den_cases import NETWORKS, SHAPES, copies, grown
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avl_plugins.den.drift import anchors, drift_penalty, pull_back_
from avl_plugins.den.duplication import drifted_units, drifts
from avl_plugins.den.expansion import add_units, empty_units
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.den.proximal import group_soft_threshold, shrink_groups, soft_threshold
from avl_plugins.den.selection import select_units
from avl_plugins.den.stand_in import NewUnits, Selected
from avl_plugins.den.steps import proximal_step


def test_soft_threshold():
    x = torch.tensor([-0.3, -0.1, 0.0, 0.05, 0.4])
    assert torch.allclose(soft_threshold(x, 0.1), torch.tensor([-0.2, 0.0, 0.0, 0.0, 0.3]))
    assert (soft_threshold(x, 0.1) == 0).tolist() == [False, True, True, True, False]


def test_group_soft_threshold():
    """(3, 4) has norm 5: minus 1 it is 0.8 times as long; (0.3, 0.4) has 0.5 and goes."""
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    shrunk = group_soft_threshold(x, 1.0, 1)
    assert torch.allclose(shrunk, torch.tensor([[2.4, 3.2], [0.0, 0.0], [0.0, 0.0]]))
    assert (shrunk[1:] == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 2), st.integers(0, 10_000))
def test_steps_minimise_their_objective(threshold, seed):
    """The proximal step of t f at w minimises 1/2 ||u - w||^2 + t f(u): nothing nearby is better."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    norms = {
        soft_threshold: lambda u: u.abs().sum(),
        lambda x, t: group_soft_threshold(x, t, 1): lambda u: u.norm(dim=1).sum(),
    }
    for step, norm in norms.items():
        u = step(w, threshold)

        def objective(v, norm=norm):
            return 0.5 * (v - w).square().sum() + threshold * norm(v)

        for _ in range(5):
            other = u + 0.01 * torch.randn(u.shape, generator=generator, dtype=torch.float64)
            assert objective(u) <= objective(other) + 1e-12


def test_filters_shrink_as_groups():
    w = torch.zeros(2, 2, 2, 1)
    w[0, 1, :, 0] = torch.tensor([3.0, 4.0])
    w[1, 0, :, 0] = torch.tensor([0.1, 0.1])
    shrunk = shrink_groups(w, 1.0)
    assert torch.allclose(shrunk[0, 1, :, 0], torch.tensor([2.4, 3.2]))
    assert (shrunk[1] == 0).all()


def reached(head, weights, positions):
    """Slow reference of Alg. 2: one unit at a time."""
    chosen = {i // positions[-1] for i in range(head.shape[1]) if any(float(head[c, i]) != 0 for c in range(len(head)))}
    layers = [sorted(chosen)]
    for k in reversed(range(len(weights))):
        per_unit = positions[k - 1] if k else 1
        chosen = {
            i // per_unit for i in range(weights[k].shape[1]) for j in layers[0] if bool((weights[k][j, i] != 0).any())
        }
        layers.insert(0, sorted(chosen))
    return layers


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.97])
def test_selection_against_a_slow_reference(sparsity):
    """From all outputs, not from output 0 alone, through convolutions and flattened maps."""
    shapes = [(6, 3, 3, 3), (5, 6, 3, 3), (9, 20)]
    positions = [1, 4, 1]
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)

        def sparse(*shape, generator=generator):
            keep = torch.rand(shape[:2], generator=generator) > sparsity
            return torch.randn(shape, generator=generator) * keep.view(*keep.shape, *[1] * (len(shape) - 2))

        weights, head = [sparse(*shape) for shape in shapes], sparse(4, 9)
        found = select_units(head, weights, positions=positions)
        assert [own.tolist() for own in found] == reached(head, weights, positions)


def test_selection_from_all_outputs_and_its_tolerance():
    weights = [torch.eye(3), torch.eye(3)]
    head = torch.tensor([[0.0, 0.0, 1.0], [1e-3, 0.0, 0.0]])
    positions = [1, 1]
    assert [own.tolist() for own in select_units(head, weights, positions=positions)] == [[0, 2]] * 3
    assert [own.tolist() for own in select_units(head, weights, positions=positions, tolerance=1e-2)] == [[2]] * 3
    with pytest.raises(ValueError, match="tolerance must be a number >= 0, got -1"):
        select_units(head, weights, positions=positions, tolerance=-1)


def sparsify(net):
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                keep = torch.rand(parameter.shape[:2]) > 0.6
                parameter.mul_(keep.view(*keep.shape, *[1] * (parameter.dim() - 2)))


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_sub_network_is_what_the_whole_is(kind):
    """With the units that Alg. 2 selects, logits and gradients are those of the whole network; the rest stays."""
    net, x = NETWORKS[kind]().train(), torch.randn(5, *SHAPES[kind])
    net.add_task(0, 3), net.add_task(1, 4)
    sparsify(net)
    units = select_units(
        net.head_of(1).weight,
        [layer.layer.weight for layer in net.hidden],
        positions=[*(layer.positions for layer in net.hidden[1:]), net.head_positions],
    )
    assert 0 < sum(len(own) for own in units[1:]) < sum(layer.units for layer in net.hidden) or kind != "mlp"
    whole = net.head_of(1)(net.features(x, 1))
    whole.square().sum().backward()
    sub = net.put_in_place(Selected(net, units))
    assert torch.allclose(net(x, 1), whole, atol=1e-6)
    net(x, 1).square().sum().backward()
    rows = units[1]
    expected = net.hidden[0].layer.weight.grad[rows][:, units[0]]
    assert torch.allclose(sub.weights[0].grad, expected, atol=1e-5)
    before = {name: p.clone() for name, p in net.named_parameters() if "stand_in" not in name}
    with torch.no_grad():
        for parameter in sub.parameters():
            parameter.add_(1.0)
    trained = net(x, 1)
    net.write_back()
    changed = {name: (p - before[name]) for name, p in net.named_parameters()}
    for name, change in changed.items():
        assert set(change.flatten().round(decimals=4).tolist()) <= {0.0, 1.0}, name
    inside = torch.zeros_like(changed["layers.0.layer.weight"], dtype=torch.bool)
    inside[rows[:, None], units[0][None]] = True
    assert (changed["layers.0.layer.weight"][~inside] == 0).all()
    assert torch.allclose(Selected(net, units)(net, x), trained, atol=1e-4)


def test_drifts_are_of_incoming_weights():
    net, _ = grown("mlp", (2, 2))
    before = copies(net)
    with torch.no_grad():
        net.hidden[0].layer.weight[3, :2] += torch.tensor([3.0, 4.0])
        net.hidden[0].layer.bias[5] += 7.0
        net.hidden[1].layer.weight[1, 0] -= 2.0
    first, second = drifts(net, before)
    assert first.tolist() == pytest.approx([0.0, 0.0, 0.0, 5.0] + [0.0] * 10, abs=1e-5)
    assert second.tolist() == pytest.approx([0.0, 2.0] + [0.0] * 9, abs=1e-6)
    assert float(drift_penalty(anchors(net, before)).detach()) == pytest.approx(25 + 49 + 4, rel=1e-5)


def test_drift_counts_old_weights_only():
    net, _ = grown("mlp", (2, 2))
    before = copies(net)
    net.add_task(2, 2)
    add_units(net, (3, 3))
    assert float(drift_penalty(anchors(net, before)).detach()) == 0.0
    assert [len(own) for own in drifts(net, before)] == [14, 11]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.2),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, eps=1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pulling_back_minimises_a_quadratic(name):
    """1/2 h (w - a)^2 + lambda (w - c)^2 is minimal at (h a + 2 lambda c)/(h + 2 lambda), and beyond c's block at a."""
    generator = torch.Generator().manual_seed(0)
    h, a = (torch.rand(4, 5, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    c = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    for drift_lambda in (0.3, 1e4):
        w = nn.Parameter(torch.zeros(4, 5, dtype=torch.float64))
        optimizer = OPTIMIZERS[name]([w])
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.997)
        for _ in range(2500):
            optimizer.zero_grad()
            (0.5 * h * (w - a) ** 2).sum().backward()
            optimizer.step()
            pull_back_([(w, c)], optimizer, drift_lambda)
            schedule.step()
        expected = a.clone()
        expected[:3, :4] = ((h * a)[:3, :4] + 2 * drift_lambda * c) / (h[:3, :4] + 2 * drift_lambda)
        torch.testing.assert_close(w.data, expected, rtol=0, atol=2e-4)


def test_a_pull_in_numbers():
    """SGD: s = 2 lr lambda; Adam: after a first step v/(1 - beta2) is g^2, so that s = 2 lr lambda / (|g| + eps)."""
    gradient = torch.tensor([[0.5, -2.0], [1e-3, 4.0]], dtype=torch.float64)
    past = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    for make, size in ((torch.optim.SGD, torch.ones(2, 2)), (torch.optim.Adam, gradient.abs() + 1e-8)):
        w = nn.Parameter(torch.full((2, 2), 3.0, dtype=torch.float64))
        bystander = nn.Parameter(torch.ones(2))
        optimizer = make([w, bystander], lr=0.1)
        w.grad = gradient.clone()
        optimizer.step()
        moved = w.detach().clone()
        pull_back_([(w, past), (bystander, torch.zeros(2))], optimizer, 7.0)
        s = 2 * 0.1 * 7 / size[:, :1]
        torch.testing.assert_close(w.data[:, :1], moved[:, :1] - (moved[:, :1] - past) * s / (1 + s))
        assert torch.equal(w.data[:, 1:], moved[:, 1:]), "it was not there before"
        assert torch.equal(bystander.data, torch.ones(2)), "it has no gradient"


def test_a_selected_part_is_pulled_back_as_the_whole_is():
    for kind in NETWORKS:
        net, _ = grown(kind, {"mlp": (2, 2), "conv": (2, 2, 2), "all_conv": (2,)}[kind])
        before = [(weight + 1, None if bias is None else bias + 1) for weight, bias in copies(net)]
        units = [torch.arange(0, net.hidden[0].layer.weight.shape[1], 2)]
        units += [torch.arange(1, layer.units, 2) for layer in net.hidden]
        part = net.put_in_place(Selected(net, units))
        found = anchors(net, before)
        assert len(found) == sum(1 + (bias is not None) for _, bias in before)
        assert float(drift_penalty(found).detach()) == pytest.approx(sum(past.numel() for _, past in found), rel=1e-5)
        optimizer = torch.optim.SGD(part.parameters(), lr=0.5)
        for parameter in part.parameters():
            parameter.grad = torch.zeros_like(parameter)
        pull_back_(found, optimizer, 1.0)  # s = 1: half of the way
        net.write_back()
        change = net.hidden[0].layer.weight.detach() - before[0][0] + 1
        inside = torch.zeros_like(change, dtype=torch.bool)
        inside[units[1][:, None], units[0][None]] = True
        assert torch.allclose(change[inside], torch.tensor(0.5), atol=1e-6)
        assert (change[~inside].abs() < 1e-6).all()


def test_the_largest_drifts_are_split():
    drift = torch.tensor([0.1, 0.9, 0.0, 0.5, 0.7])
    assert drifted_units(drift, 0.3).tolist() == [1, 4, 3]
    assert drifted_units(drift, 0.3, most=2).tolist() == [1, 4]
    assert drifted_units(drift, 0.9).tolist() == []


def test_empty_units_ignore_biases():
    layer = nn.Conv2d(2, 3, 3)
    with torch.no_grad():
        layer.weight[1] = 0
    assert empty_units(layer.weight).tolist() == [1]


def test_new_weights_are_drawn_as_pytorch_draws_them():
    net = DynamicallyExpandableNetwork(nn.Sequential(nn.Linear(100, 10), nn.ReLU(), nn.Linear(10, 10)))
    net.add_task(0, 2), net.add_task(1, 2)
    add_units(net, (400, 400), generator=torch.Generator().manual_seed(0))
    new = net.hidden[0].layer.weight[10:].detach()
    assert float(new.abs().max()) <= 0.1
    assert float(new.std()) == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert float(net.hidden[1].layer.weight[10:].detach().abs().max()) <= 410**-0.5
    assert (net.hidden[0].layer.bias[10:] == 0).all()


def test_l1_comes_before_group_lasso():
    """B7: both act on a new unit's incoming weights, one after the other; on all others L1 alone."""
    net, _ = grown("mlp", [3, 2])
    new = NewUnits(net, [3, 2])
    with torch.no_grad():
        new.weights[0][0] *= 3
    before = {name: p.detach().clone() for name, p in new.named_parameters()}
    for parameter in new.parameters():
        parameter.grad = torch.zeros_like(parameter)
    new.weights[1].grad = None  # as of something that the loss does not depend on
    optimizer = torch.optim.SGD(new.parameters(), lr=0.1)
    proximal_step(optimizer, l1=0.2, group_lasso=5.0, incoming=new.incoming)
    found = dict(new.named_parameters())
    shrunk = before["weights.0"].sign() * (before["weights.0"].abs() - 0.02).clamp(min=0)
    norm = shrunk.norm(dim=1, keepdim=True)
    assert (norm > 0.5).flatten().tolist() == [True, False, False]
    assert torch.allclose(found["weights.0"], shrunk * (1 - 0.5 / norm).clamp(min=0))
    assert torch.equal(found["weights.1"], before["weights.1"])
    for name in ("outgoing.1", "weights.2"):
        assert torch.allclose(found[name], before[name].sign() * (before[name].abs() - 0.02).clamp(min=0))
    assert all(torch.equal(found[name], before[name]) for name in found if name.startswith("biases"))
