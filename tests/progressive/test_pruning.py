"""Pruned laterals: which maps, how many parameters, equal outputs where nothing was lost, old tasks untouched."""

import pytest
import torch
from progressive_cases import conv_column, conv_network, images, trained_on_digits
from torch import nn

from avl_plugins import ProgressiveNetwork
from avl_plugins.progressive.activations import by_map, over_maps
from avl_plugins.progressive.perturbation import average_perturbation_sensitivity
from avl_plugins.progressive.pruning import PruningPoint, prune_laterals, pruning_curve
from avl_plugins.progressive.sensitivity import FisherSensitivity, average_fisher_sensitivity

WIDTHS = (5, 6, 7)
KINDS = ["mlp", "linear"]


def values(columns=2, widths=WIDTHS, **options):
    """Distinct values for all maps of the earlier columns."""
    return {(i, j): torch.rand(n, **options) for i, n in enumerate(widths) for j in range(columns)}


def old_outputs(net, x):
    with torch.no_grad():
        return [net(x, label) for label in (10, 11)]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_kept_is_the_same_bits(kind):
    net, x = conv_network(kind), images()
    pruned = prune_laterals(net, 12, average_fisher_sensitivity(net, [x], 12), keep=1)
    assert pruned.kept == pruned.total == net.parameters_of(12)["lateral"]
    assert torch.equal(pruned.network(x, 12), net(x, 12))
    assert pruned.network is not net
    assert all(mask.all() for mask in pruned.maps.values())


@pytest.mark.parametrize("across", ["depth", "network"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.4, 0.9])
def test_the_most_sensitive_maps_are_kept(keep, across):
    given = values()
    pruned = prune_laterals(conv_network(), 12, given, keep=keep, across=across)
    assert {place: len(mask) for place, mask in pruned.maps.items()} == {p: len(v) for p, v in given.items()}
    groups = [[(i, 0), (i, 1)] for i in range(3)] if across == "depth" else [list(given)]
    for group in groups:
        joined = torch.cat([given[place] for place in group])
        mask = torch.cat([pruned.maps[place] for place in group])
        kept = int(keep * len(joined) + 0.5)
        assert int(mask.sum()) == kept
        assert sorted(joined[mask].tolist()) == sorted(joined.tolist())[len(joined) - kept :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0.7, 0.3, 0.1])
def test_pruned_maps_are_replaced_by_their_means(kind, keep):
    """What the pruned network gives is what the whole one gives with those maps held at their means."""
    net, x = conv_network(kind), images()
    sensitivity = average_fisher_sensitivity(net, [x], 12)
    pruned = prune_laterals(net, 12, sensitivity, keep=keep)
    # Only the laterals of the last column see the means: the other columns' features have been computed by then.
    with torch.no_grad():
        features = net.features(x, 12)[:2]
        held = []
        for j, column in enumerate(features):
            held.append([])
            for i, h in enumerate(column):
                stage, mask = net.columns[j].stages[i], pruned.maps[i, j]
                mean = over_maps(sensitivity.means[i, j].where(~mask, 0.0), h, stage)
                held[j].append(h * over_maps(mask.to(h), h, stage) + mean)
        last = net.columns[2]
        expected = last.logits(last(x, held), held)
        found = pruned.network(x, 12)
    if kind == "linear":  # the convolution's zero-padded borders are where a bias is not the same as a constant map
        inner = net.columns[2].stages[1]
        with torch.no_grad():
            one = inner.layer(last.stages[0](x, ())) + inner.lateral([c[0] for c in held])
            stage = pruned.network.columns[2].stages[1]
            other = stage.layer(last.stages[0](x, ())) + stage.lateral([c[0] for c in features])
        torch.testing.assert_close(one[..., 1:, 1:], other[..., 1:, 1:], rtol=1e-9, atol=1e-12)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_kept_is_no_lateral_at_all(kind):
    net = ProgressiveNetwork(
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.Tanh()), adapter=kind
    )
    for label in (10, 11, 12):
        net.add_task(label, 3)
    net.double()
    x = torch.randn(20, 6, dtype=torch.float64)
    sensitivity = average_fisher_sensitivity(net, [x], 12)
    pruned = prune_laterals(net, 12, sensitivity, keep=0)
    assert pruned.kept == 0
    assert pruned.network.parameters_of(12)["lateral"] == 0
    assert net.parameters_of(12)["lateral"] == pruned.total > 0
    assert net.columns[2].stages[1].layer.bias is None
    with torch.no_grad():
        last = net.columns[2]
        held = [
            [sensitivity.means[i, j].expand_as(h) for i, h in enumerate(c)]
            for j, c in enumerate(net.features(x, 12)[:2])
        ]
        torch.testing.assert_close(pruned.network(x, 12), last.logits(last(x, held), held), rtol=1e-9, atol=1e-12)
    single = pruned.network.to_single_task(12)
    assert torch.equal(single(x), pruned.network(x, 12))


@pytest.mark.parametrize("kind", KINDS)
def test_counts_by_hand(kind):
    net = conv_network(kind)
    given = {(i, j): torch.full((n,), -1.0) for i, n in enumerate(WIDTHS) for j in range(2)}
    given[0, 0][2] = given[1, 1][4] = given[1, 1][5] = given[1, 0][0] = 1.0
    pruned = prune_laterals(net, 12, given, keep=4 / 36, across="network")
    assert {place for place, mask in pruned.maps.items() if mask.any()} == {(0, 0), (1, 0), (1, 1)}
    if kind == "linear":
        # One map into the convolution of 3 x 3 to 6 maps, three of 9 pixels into 7 units, the head's adapter is gone.
        assert pruned.kept == 1 * 6 * 9 + 3 * 9 * 7
    else:
        stages = net.columns[2].stages
        widths = [len(stages[i].lateral.V.bias) for i in (1, 2)]
        own = [widths[0] * 6 * 9, widths[1] * 9 * 7]
        alphas = 1 + 2
        assert pruned.kept == sum(own) + sum(widths) + widths[0] * 1 + widths[1] * 3 + alphas
    assert pruned.network.columns[2].head.lateral is None
    alive = sum(int((p != 0).sum()) for s in pruned.network.columns[2].stages[1:] for p in s.lateral.parameters())
    assert pruned.kept == alive - (1 if kind == "mlp" else 0)  # the alpha of the column that depth 0 does not read


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_is_changed(kind):
    net, x = conv_network(kind, tasks=3), images()
    net.add_task(13, 2)
    net.double()
    before = {name: p.clone() for name, p in net.named_parameters()}
    outputs, given, random = old_outputs(net, x), values(), torch.get_rng_state()
    net.train()
    modes = [m.training for m in net.modules()]
    for pruned in (prune_laterals(net, 12, given, keep=k) for k in (0.0, 0.5)):
        assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
        assert [m.training for m in net.modules()] == modes
        after = dict(pruned.network.named_parameters())
        changed = {name for name, p in before.items() if name not in after or not torch.equal(p, after[name])}
        changed |= after.keys() - before.keys()
        assert changed
        assert all(name.startswith("columns.2.") for name in changed)
        pruned.network.eval()
        assert all(torch.equal(a, b) for a, b in zip(old_outputs(pruned.network, x), outputs, strict=True))
        needed = [p.requires_grad for p in pruned.network.columns[2].parameters()]
        assert not any(needed)
    assert torch.equal(torch.get_rng_state(), random)


def test_columns_of_different_width():
    widths = [(5, 6, 7), (3, 4, 9), (5, 2, 8)]
    net = conv_network("linear", column=lambda index: conv_column(widths=widths[index]))
    pruned = prune_laterals(net, 12, average_fisher_sensitivity(net, [images()], 12), keep=0.5)
    assert [int(pruned.maps[i, 0].sum() + pruned.maps[i, 1].sum()) for i in range(3)] == [4, 5, 8]
    assert pruned.kept == 4 * 2 * 9 + 5 * 9 * 8 + 8 * 4


def test_across_the_network_the_fisher_itself_decides():
    fisher = {(i, j): torch.full((n,), 10.0**-i, dtype=torch.float64) for i, n in enumerate(WIDTHS) for j in range(3)}
    sensitivity = FisherSensitivity(12, "layer", fisher, {})
    net = conv_network()
    masks = prune_laterals(net, 12, sensitivity, keep=16 / 36, across="network").maps
    assert [int(masks[i, 0].sum() + masks[i, 1].sum()) for i in range(3)] == [10, 6, 0]
    masks = prune_laterals(net, 12, sensitivity, keep=0.5).maps
    assert [int(masks[i, 0].sum() + masks[i, 1].sum()) for i in range(3)] == [5, 6, 7]


@pytest.mark.parametrize("adapter", KINDS)
def test_curve_of_trained_columns(digits_arrays, adapter):
    noise = 0.3 * torch.randn(1, 1, 8, 8)
    net, x, y = trained_on_digits(digits_arrays, adapter, lambda x: x + noise)
    data = [(x, y)]
    fisher = average_fisher_sensitivity(net, data, 1)
    perturbation = average_perturbation_sensitivity(net, data, 1, repeats=1, tolerance=0.5)
    keep = (1.0, 0.75, 0.5, 0.25, 0.0)
    curves = {name: pruning_curve(net, 1, s, data, keep=keep) for name, s in (("f", fisher), ("p", perturbation))}
    accuracy = float((net(x, 1).argmax(1) == y).float().mean())
    for curve in curves.values():
        assert all(isinstance(point, PruningPoint) for point in curve)
        assert curve[0].score == pytest.approx(accuracy - 0.1)
        assert [point.keep for point in curve] == list(keep)
        kept = [point.kept for point in curve]
        assert kept == sorted(set(kept), reverse=True)
        assert (kept[0], kept[-1]) == (net.parameters_of(1)["lateral"], 0)
        assert {point.total for point in curve} == {kept[0]}
    # The least sensitive quarter costs next to nothing, and the sensitive maps go first in the opposite order.
    assert curves["f"][1].score > curves["f"][0].score - 0.03
    upside_down = {place: -value for place, value in fisher.maps.items()}
    worst = pruning_curve(net, 1, upside_down, data, keep=keep)
    assert worst[1].score < curves["f"][1].score - 0.1
    custom = pruning_curve(net, 1, fisher, lambda forward: float(forward(x).shape[1]), keep=(0.5,))
    assert custom[0].score == 10


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"keep": 1.5}, ValueError, "keep must be a number >= 0 and <= 1, got 1.5"),
        ({"keep": float("nan")}, ValueError, "keep must be a number >= 0 and <= 1, got nan"),
        ({"keep": None}, TypeError, "keep must be a number >= 0 and <= 1, got None"),
        ({"across": "column"}, ValueError, "across must be 'depth' or 'network', got 'column'"),
        ({"label": 10}, ValueError, "the column of task 10 has no lateral connections to prune"),
        ({"label": 3}, ValueError, "label: there is no column for task 3"),
        ({"network": conv_network(None)}, ValueError, "the column of task 12 has no lateral connections to prune"),
        ({"sensitivity": FisherSensitivity(11, "layer", {}, {})}, ValueError, "that of task 11, and label is 12"),
        (
            {"sensitivity": values(columns=1)},
            ValueError,
            "sensitivity must have 5 finite values for depth 0 of column 1",
        ),
        ({"sensitivity": values() | {(1, 0): torch.ones(7)}}, ValueError, "6 finite values for depth 1 of column 0"),
        (
            {"sensitivity": values() | {(2, 1): torch.ones(7) / 0}},
            ValueError,
            "7 finite values for depth 2 of column 1",
        ),
        ({"sensitivity": [1, 2]}, TypeError, "sensitivity must be a sensitivity or a mapping, got a list"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"network": conv_network(), "label": 12, "sensitivity": values(), "keep": 0.5} | change
    with pytest.raises(error, match=message):
        prune_laterals(**arguments)


def test_by_map_is_what_the_masks_are_about():
    net = conv_network("linear")
    x = images()
    flat = net.features(x, 12)[0][1]
    assert by_map(flat, net.columns[0].stages[1]).shape == (12, 6, 9)
    assert prune_laterals(net, 12, values(), keep=0.5).maps[1, 0].shape == (6,)
