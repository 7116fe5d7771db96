"""Average Fisher Sensitivity against a slow loop, a closed form and finite differences; spectra; the figure."""

import ast
import copy
import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from progressive_cases import conv_column, conv_network, fisher_by_loop, images
from torch import nn

from avl_plugins import ProgressiveNetwork
from avl_plugins.progressive import activations, figure, perturbation, pruning, sensitivity
from avl_plugins.progressive.figure import sensitivity_figure
from avl_plugins.progressive.perturbation import PerturbationSensitivity
from avl_plugins.progressive.sensitivity import (
    FisherSensitivity,
    afs_spectrum,
    average_fisher_sensitivity,
    effective_maps,
)

WIDTHS = (5, 6, 7)


@pytest.mark.parametrize("label", [10, 11, 12])
@pytest.mark.parametrize("adapter", ["mlp", "linear", None])
def test_fisher_equals_a_loop_over_samples_and_classes(adapter, label):
    net, x = conv_network(adapter), images()
    expected = fisher_by_loop(net, x, label)
    found = average_fisher_sensitivity(net, [x[:5], (x[5:6],), {"x": x[6:]}], label)
    column = label - 10
    assert found.shape == (3, column + 1)
    assert list(found.fisher) == [(i, j) for i in range(3) for j in range(column + 1)]
    for place, fisher in found.fisher.items():
        if adapter is None and place[1] < column:
            assert torch.equal(fisher, torch.zeros(WIDTHS[place[0]], dtype=torch.float64))
        else:
            torch.testing.assert_close(fisher, expected[place], rtol=1e-9, atol=1e-12)
            assert bool((fisher > 0).any())


def test_fisher_of_a_linear_network_in_closed_form():
    """Without activations the logits are linear in every h, and E_y[(w_y - E w)^2] is the variance of w under p."""
    net = ProgressiveNetwork(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), adapter="linear")
    net.add_task(0, 4)
    net.add_task(1, 4)
    net.double().eval()
    x = torch.randn(50, 4, dtype=torch.float64)
    first, second = net.columns
    own, old = first.stages[1].layer.weight, second.stages[1].lateral.U.weight
    head, head_old = second.head.layer.weight, second.head.lateral.U.weight
    jacobians = {
        (1, 1): head,
        (1, 0): head_old,
        (0, 1): head @ second.stages[1].layer.weight,
        (0, 0): head @ old + head_old @ own,  # through the new column, and through the old one's next layer
    }
    features = net.features(x, 1)
    p = net(x, 1).softmax(1)
    found = average_fisher_sensitivity(net, [x], 1)
    for (i, j), weights in jacobians.items():
        under_p = p @ weights.square() - (p @ weights).square()
        expected = features[j][i].var(0, unbiased=False) * under_p.mean(0)
        torch.testing.assert_close(found.fisher[i, j], expected.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.means[i, j], features[j][i].mean(0).detach())


def test_fisher_is_the_total_derivative_by_finite_differences():
    net, x, step = conv_network(), images(3), 1e-5
    found = average_fisher_sensitivity(net, [x], 11)
    for (depth, column), m in {(0, 0): 2, (1, 0): 3, (2, 0): 1, (0, 1): 4, (1, 1): 0}.items():
        shape = net.features(x, 11)[column][depth].shape[1:]
        stage = net.columns[column].stages[depth]
        pixels = torch.arange(torch.Size(shape).numel()).reshape(stage.maps, -1)[m]
        total = 0.0
        for pixel in pixels.tolist():
            log_ps = []
            for sign in (1, -1):

                def shift(j, i, h, sign=sign, pixel=pixel, place=(depth, column)):
                    if (i, j) != place:
                        return h
                    moved = h.clone().flatten(1)
                    moved[:, pixel] += sign * step
                    return moved.view_as(h)

                log_ps.append(net.forward_single_task(x, 11, shift).log_softmax(1))
            derivative = (log_ps[0] - log_ps[1]) / (2 * step)
            total += float((net(x, 11).softmax(1) * derivative.square()).sum(1).mean())
        variance = float(net.features(x, 11)[column][depth].reshape(3, stage.maps, -1)[:, m].var(unbiased=False))
        assert float(found.fisher[depth, column][m]) == pytest.approx(variance * total, rel=1e-5)


def test_outputs_that_are_no_logits_are_left_out():
    net = ProgressiveNetwork(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh()))
    net.add_task(0, 4)
    net.add_task(1, 4)
    net.double().eval()
    x = torch.randn(20, 4, dtype=torch.float64)
    found = average_fisher_sensitivity(net, [x], 1, logits=lambda outputs: outputs[:, :-1])
    policy = copy.deepcopy(net)  # the same network without its last output
    for layer in (policy.columns[1].head.layer, policy.columns[1].head.lateral.U):
        layer.weight = nn.Parameter(layer.weight[:-1].detach())
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias[:-1].detach())
    expected = average_fisher_sensitivity(policy, [x], 1)
    whole = average_fisher_sensitivity(net, [x], 1)
    for place, fisher in expected.fisher.items():
        torch.testing.assert_close(found.fisher[place], fisher, rtol=1e-9, atol=1e-14)
        assert not torch.allclose(whole.fisher[place], fisher, rtol=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.sampled_from(["exact", "sampled"]))
def test_batch_size_does_not_matter(sizes, labels):
    torch.manual_seed(1)
    net, x = conv_network(), images(12)
    batches, rest = [], x
    for size in sizes:
        batches.append(rest[:size])
        rest = rest[size:]
    batches.append(rest)  # may be empty, as others may
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    one, other = (
        average_fisher_sensitivity(net, data, 12, labels=labels, generator=generator)
        for data, generator in zip((batches, [x]), generators, strict=True)
    )
    for place in one.fisher:
        torch.testing.assert_close(one.fisher[place], other.fisher[place], rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(one.means[place], other.means[place], rtol=1e-9, atol=1e-14)


def test_sampled_labels_have_the_exact_ones_expectation():
    net, x = conv_network(), images(6).repeat(400, 1, 1, 1)
    exact = average_fisher_sensitivity(net, [x[:6]], 12)
    sampled = average_fisher_sensitivity(net, x.split(600), 12, labels="sampled")
    for place in exact.fisher:
        torch.testing.assert_close(sampled.fisher[place], exact.fisher[place], rtol=0.15, atol=1e-6)


def test_maps_without_variance_have_no_sensitivity():
    net = ProgressiveNetwork(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), adapter="linear")
    net.add_task(0, 2)
    with torch.no_grad():
        net.columns[0].stages[0].layer.weight[1] = 0
        net.columns[0].stages[0].layer.bias[1] = 0.1  # not a sum of powers of two
        net.columns[0].stages[0].layer.bias[2] = -1e3
        net.columns[0].stages[0].layer.bias[0] = 1
    found = average_fisher_sensitivity(net, torch.rand(77, 3).split(10), 0)
    assert found.fisher[0, 0][1] == found.fisher[0, 0][2] == 0
    assert found.fisher[0, 0][0] > 0
    assert found.fisher[0, 0].dtype == torch.float64


@pytest.mark.parametrize("normalise", ["layer", "map"])
def test_the_two_normalisations(normalise):
    net, x = conv_network(), images()
    found = average_fisher_sensitivity(net, [x], 12, normalise=normalise)
    assert found.normalise == normalise
    for i, width in enumerate(WIDTHS):
        rows = torch.stack([found.fisher[i, j] for j in range(3)])
        maps = torch.stack([found.maps[i, j] for j in range(3)])
        total = rows.sum() if normalise == "layer" else rows.sum(0)
        torch.testing.assert_close(maps, rows / total)
        torch.testing.assert_close(found.layers[i], maps.sum(1))
        assert float(found.layers[i].sum()) == pytest.approx(1 if normalise == "layer" else width)
    torch.testing.assert_close(found.columns, (found.layers / found.layers.sum(1, keepdim=True)).mean(0))
    assert float(found.columns.sum()) == pytest.approx(1)


def test_depths_and_maps_that_do_not_matter_are_zero_and_not_nan():
    zero, one = torch.zeros(2, dtype=torch.float64), torch.tensor([0.0, 3.0], dtype=torch.float64)
    fisher = {(0, 0): zero, (0, 1): zero, (1, 0): one, (1, 1): 3 * one}
    for normalise in ("layer", "map"):
        found = FisherSensitivity(1, normalise, fisher, {})
        assert found.layers.tolist() == [[0, 0], [0.25, 0.75]]
        assert found.columns.tolist() == [0.125, 0.375]
        assert found.maps[1, 0].tolist() == [0, 0.25]


def test_columns_of_different_width():
    widths = [(5, 6, 7), (3, 4, 9), (5, 2, 8)]
    net = conv_network(column=lambda index: conv_column(widths=widths[index]))
    x = images()
    found = average_fisher_sensitivity(net, [x], 12)
    expected = fisher_by_loop(net, x, 12)
    for (i, j), fisher in found.fisher.items():
        assert len(fisher) == widths[j][i]
        torch.testing.assert_close(fisher, expected[i, j], rtol=1e-9, atol=1e-12)
    assert found.layers.sum(1).tolist() == pytest.approx([1, 1, 1])
    with pytest.raises(ValueError, match=r"at depth 0 the columns have \[5, 3, 5\] maps; use normalise='layer'"):
        average_fisher_sensitivity(net, [x], 12, normalise="map")


def test_units_with_positions_and_mixed_maps():
    """A linear layer on (B, T, F) has F maps, and one after which flattened maps are pooled together has none whole."""
    net = ProgressiveNetwork(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Flatten(), nn.Linear(10, 2)))
    net.add_task(0, 2)
    net.double()
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    found = average_fisher_sensitivity(net, [x], 0)
    assert [len(found.fisher[i, 0]) for i in range(3)] == [4, 5, 2]
    h = net.features(x, 0)[0][0].detach().requires_grad_()
    stages = net.columns[0].stages
    log_p = net.columns[0].head.layer(stages[2](stages[1](h, ()), ())).log_softmax(1)
    total = 0
    for y in range(2):
        (grad,) = torch.autograd.grad(log_p[:, y].sum(), h, retain_graph=True)
        total = total + (log_p[:, y].exp().view(-1, 1, 1) * grad.square()).sum((0, 1)) / 6
    expected = h.detach().flatten(0, 1).var(0, unbiased=False) * total
    torch.testing.assert_close(found.fisher[0, 0], expected.detach())
    mixed = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.AvgPool1d(3), nn.Linear(26, 2))  # 80 values to 26
    net = ProgressiveNetwork(mixed)
    net.add_task(0, 2)
    assert len(average_fisher_sensitivity(net, [images().float()], 0).fisher[0, 0]) == 26


def test_nothing_is_changed():
    net, x = conv_network(), images().float()
    net.float().train()
    net.columns[0].stages[0].after[0].train()  # modes that no call of train() or eval() would give
    net.columns[2].stages[0].after[0].eval()
    net(x, 12).sum().backward()
    state = copy.deepcopy(net.state_dict())
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}
    modes = [m.training for m in net.modules()]
    needed = [p.requires_grad for p in net.parameters()]
    random = torch.get_rng_state()
    with torch.no_grad():
        for labels in ("exact", "sampled"):
            average_fisher_sensitivity(net, [x], 12, labels=labels)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == needed
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (grads[name] is None)
        assert parameter.grad is None or torch.equal(parameter.grad, grads[name])
    tensors = {name: value for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
    assert all(torch.equal(value, state[name]) for name, value in tensors.items())


def test_evaluation_mode_is_used():
    net, x = conv_network(), images()
    expected = average_fisher_sensitivity(net, [x], 12)
    found = average_fisher_sensitivity(net.train(), [x], 12)
    assert all(torch.equal(found.fisher[place], expected.fisher[place]) for place in found.fisher)


def test_own_generators():
    net, x = conv_network(), images()
    runs = [average_fisher_sensitivity(net, [x], 12, labels="sampled").layers for _ in range(2)]
    assert torch.equal(*runs)  # both from torch.initial_seed()
    other = torch.Generator().manual_seed(1234)
    assert not torch.equal(average_fisher_sensitivity(net, [x], 12, labels="sampled", generator=other).layers, runs[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": "empirical"}, ValueError, "labels must be 'exact' or 'sampled', got 'empirical'"),
        ({"normalise": "column"}, ValueError, "normalise must be 'layer' or 'map', got 'column'"),
        ({"label": 7}, ValueError, r"label: there is no column for task 7; the tasks so far are \[10, 11\]"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"batches": [images(0)]}, ValueError, "batches is empty"),
        ({"batches": [3]}, TypeError, r"batches must yield x, \(x, y\), \(x, y, t\) or mappings, got int"),
        (
            {"batches": [(images(2), torch.zeros(2), torch.tensor([10, 11]))]},
            ValueError,
            r"tasks \[10, 11\] for label=1",
        ),
        ({"network": nn.Linear(2, 2)}, TypeError, "network must be a ProgressiveNetwork, got a Linear"),
        ({"batches": [images(2) * torch.nan]}, ValueError, "Fisher at depth 0 of column 0 is not finite"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"network": conv_network(tasks=2), "batches": [images(2)], "label": 11} | change
    with pytest.raises(error, match=message):
        average_fisher_sensitivity(arguments.pop("network"), arguments.pop("batches"), **arguments)


def test_batch_statistics_are_refused():
    net = ProgressiveNetwork(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False)))
    net.add_task(0, 2)
    with pytest.raises(ValueError, match=r"BatchNorm1d\) has no running statistics"):
        average_fisher_sensitivity(net, [torch.rand(4, 2)], 0)


def test_spectra_are_sorted_by_column_and_over_source_maps():
    found = average_fisher_sensitivity(conv_network(), [images()], 12)
    for depth, width in enumerate(WIDTHS):
        spectrum = afs_spectrum(found, depth)
        for column, values in enumerate(spectrum.columns):
            assert values.tolist() == sorted(found.maps[depth, column].tolist(), reverse=True)
        both = [*found.maps[depth, 0].tolist(), *found.maps[depth, 1].tolist()]
        assert spectrum.source.tolist() == sorted(both, reverse=True)
        assert len(spectrum.source) == 2 * width
    alone = average_fisher_sensitivity(conv_network(), [images()], 10)
    assert afs_spectrum(alone, 0).source.shape == (0,)
    assert effective_maps(afs_spectrum(alone, 0).source) == 0
    assert effective_maps(torch.tensor([0.3, 0.3, 0.0])) == pytest.approx(2)
    assert effective_maps(torch.tensor([1.0, 0.5])) == pytest.approx(1.8)
    with pytest.raises(ValueError, match="depth must be an integer >= 0 and <= 2, got 3"):
        afs_spectrum(found, 3)


def test_the_figure_shows_the_numbers(tmp_path):
    found = average_fisher_sensitivity(conv_network(), [images()], 12)
    drawn = sensitivity_figure(found, layers=["conv 1", "conv 2", "fc"])
    assert len(drawn.axes) == 9
    for i in range(3):
        for j in range(3):
            panel = drawn.axes[3 * i + j]
            assert [bar.get_height() for bar in panel.patches] == found.maps[i, j].tolist()
            assert [text.get_text() for text in panel.texts] == [f"{found.layers[i, j]:.2f}"]
            assert panel.get_ylim() == drawn.axes[3 * i].get_ylim()
    darkness = [sum(panel.get_facecolor()[:3]) for panel in drawn.axes[:3]]
    assert sorted(range(3), key=lambda j: -darkness[j]) == found.layers[0].argsort().tolist()
    assert [drawn.axes[3 * i].get_ylabel() for i in range(3)] == ["conv 1", "conv 2", "fc"]
    assert [panel.get_title() for panel in drawn.axes[:3]] == ["column 0", "column 1", "column 2"]
    drawn.savefig(tmp_path / "figure.png")
    noise = torch.tensor([[4.0, 1.0], [torch.inf, torch.inf]], dtype=torch.float64)
    drawn = sensitivity_figure(PerturbationSensitivity(3, 0.8, noise, {}), columns=["source", "target"])
    assert [t.get_text() for panel in drawn.axes for t in panel.texts] == ["0.20", "0.80", "0.00", "0.00"]
    assert drawn.get_suptitle() == "APS of task 3"
    drawn.savefig(tmp_path / "figure.png")
    with pytest.raises(ValueError, match="columns must be 3 names, got 1"):
        sensitivity_figure(found, columns=["one"])


def test_the_analyses_import_neither_matplotlib_nor_avalanche():
    for module in (activations, sensitivity, perturbation, pruning, figure):
        imports = [n for n in ast.parse(inspect.getsource(module)).body if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {getattr(n, "module", None) or n.names[0].name for n in imports}
        assert not {name for name in names if name.startswith(("avalanche", "matplotlib"))}
