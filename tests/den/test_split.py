"""Splits: what every task computes is left as it was, in random networks and through training, and who reads whom."""

import copy
import io

import pytest
import torch
from avalanche.core import SupervisedPlugin
from den_cases import NETWORKS, WIDTHS, build, copies, grown, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avl_plugins import InMemoryLoaderPlugin
from avl_plugins.den.drift import anchors
from avl_plugins.den.duplication import drifts, split_units
from avl_plugins.den.expansion import add_units
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.den.selection import units_with_a_path
from avl_plugins.den.stand_in import NewUnits, Selected, all_that_is_used


def perturb(parameters, size=1.0):
    with torch.no_grad():
        for parameter in parameters:
            parameter += size * torch.randn_like(parameter)


@st.composite
def histories(draw):
    """A body, what its input is, and for every later task the units that it adds and splits in each layer."""
    bias = st.booleans()
    layers: list[nn.Module] = []
    if draw(st.booleans()):
        shape, widths = (2, 4, 4), [draw(st.integers(1, 4)), draw(st.integers(1, 4))]
        layers += [nn.Conv2d(2, widths[0], 3, padding=1, bias=draw(bias)), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(widths[0], widths[1], 3, padding=1, bias=draw(bias)), nn.Tanh()]
        flat, options = 4 * widths[1], {"features": 4 * widths[1]}
        if draw(st.booleans()):
            widths.append(draw(st.integers(1, 5)))
            layers += [nn.Flatten(), nn.Linear(flat, widths[2], bias=draw(bias)), nn.ReLU()]
            options = {}
    else:
        shape, widths, options = (5,), draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)), {}
        for below, width in zip([5, *widths], widths, strict=False):
            layers += [nn.Linear(below, width, bias=draw(bias)), nn.ReLU() if draw(st.booleans()) else nn.Tanh()]
    tasks = draw(st.integers(1, 3))
    added = [[draw(st.integers(0, 2)) for _ in widths] for _ in range(tasks)]
    picked = [[draw(st.lists(st.integers(0, 9), max_size=3)) for _ in widths] for _ in range(tasks)]
    return nn.Sequential(*layers), options, shape, added, picked


def outputs_by_hand(net, parts, label, x):
    """A task's logits from weights and biases of units that were there when it was the newest, one after the other."""
    h = net.before(x)
    for layer, (weight, bias) in zip(net.hidden, parts, strict=True):
        if isinstance(layer.layer, nn.Conv2d):
            h = nn.functional.conv2d(h, weight, bias, padding=layer.layer.padding)
        else:
            h = nn.functional.linear(h, weight, bias)
        h = layer.after(h)
    head = net.head_of(label)
    return nn.functional.linear(h.flatten(1), net.head_weight(label), head.bias)


def parts_of(net, label, weights):
    """Slices of full weights that a task uses, contiguous."""
    found, below = [], None
    for layer, own, (weight, bias) in zip(net.hidden, net.units_of(label), weights, strict=True):
        part = weight[own]
        if below is not None:
            part = part[:, [u * layer.positions + p for u in below for p in range(layer.positions)]]
        found.append((part.contiguous(), None if bias is None else bias[own]))
        below = own
    return found


@settings(max_examples=80, deadline=None, derandomize=True)
@given(histories(), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 10**6))
def test_a_split_changes_no_tasks_function(history, dtype, seed):
    """Of the newest task to rounding; of each earlier one bit for bit: what it computes from its own units, of which
    the split ones, and what others read of them, are as they were before the newest task."""
    body, options, shape, added, picked = history
    torch.manual_seed(seed)
    net = DynamicallyExpandableNetwork(body, **options).to(dtype).eval()
    x = torch.randn(6, *shape, dtype=dtype)
    net.add_task(0, 3)
    for task, (counts, chosen) in enumerate(zip(added, picked, strict=True), start=1):
        before, units_before = copies(net), [layer.units for layer in net.hidden]
        net.add_task(task, 2 + task)
        add_units(net, counts)
        perturb(net.parameters(), 0.5)
        for layer, (weight, bias) in zip(net.hidden, before, strict=True):  # phases leave these where they are
            with torch.no_grad():
                own = layer.split_units()
                layer.layer.weight[own, : weight.shape[1]] = weight[own]
                if bias is not None:
                    layer.layer.bias[own] = bias[own]
        can = [[u for u in range(n) if not s.splits[u]] for n, s in zip(units_before, net.hidden, strict=True)]
        units = [sorted({c[i % len(c)] for i in own}) for c, own in zip(can, chosen, strict=True)]
        now, newest = copies(net), net(x, task)
        older = [parts_of(net, label, put_back(net, now, units, before)) for label in range(task)]
        expected = [outputs_by_hand(net, parts, label, x) for label, parts in enumerate(older)]
        split_units(net, [torch.tensor(own, dtype=torch.long) for own in units], before)
        torch.testing.assert_close(net(x, task), newest, rtol=1e-9 if dtype == torch.float64 else 1e-3, atol=1e-5)
        for label, logits in enumerate(expected):
            assert torch.equal(net(x, label), logits)
        for k, own in enumerate(units):
            assert [net.hidden[k].splits[u] for u in own] == [task + 1] * len(own)
            assert net.hidden[k].stamps[-len(own) :] == [task + 1] * len(own) or not own


def put_back(net, now, units, before):
    """Full weights in which the units' incoming ones, and those by which old ones read them, are those of before."""
    found, below = [], []
    for layer, (weight, bias), own, (past, past_bias) in zip(net.hidden, now, units, before, strict=True):
        weight, bias = weight.clone(), None if bias is None else bias.clone()
        columns = [u * layer.positions + p for u in below for p in range(layer.positions)]
        weight[: len(past), columns] = past[:, columns]
        weight[own, : past.shape[1]] = past[own]
        if bias is not None:
            bias[own] = past_bias[own]
        found.append((weight, bias))
        below = own
    return found


@pytest.mark.parametrize("kind", NETWORKS)
def test_where_split_units_alone_have_drifted_earlier_tasks_are_as_before(kind):
    """Bit for bit, although everything that reads the units has moved with them."""
    net, x = grown(kind, [2] * {"mlp": 2, "conv": 3, "all_conv": 1}[kind], tasks=3)
    first = [net(x, label) for label in (0, 1, 2)]
    before = copies(net)
    net.add_task(3, 2)
    units = [torch.tensor([1, 3])] * len(net.hidden)
    with torch.no_grad():
        for layer, below in zip(net.hidden, [None, *net.hidden], strict=False):
            layer.layer.weight[[1, 3]] += torch.randn_like(layer.layer.weight[[1, 3]])
            if below is not None:
                columns = [u * layer.positions + p for u in (1, 3) for p in range(layer.positions)]
                layer.layer.weight[:, columns] += torch.randn_like(layer.layer.weight[:, columns])
    newest = net(x, 3)
    assert not any(torch.allclose(net(x, label), first[label], atol=1e-3) for label in (0, 1, 2))
    split_units(net, units, before)
    assert all(torch.equal(net(x, label), first[label]) for label in (0, 1, 2))
    torch.testing.assert_close(net(x, 3), newest, rtol=1e-4, atol=1e-5)
    for label in range(4):
        torch.testing.assert_close(net.to_single_task(label)(x), net(x, label), rtol=1e-5, atol=1e-6)


def test_who_reads_whom_after_a_split():
    """The old unit has its weights of before, incoming and outgoing; the copy those of now, and its head weights."""
    net = mlp()
    net.add_task(0, 2), net.add_task(1, 3)
    before = copies(net)
    perturb(net.parameters())
    now, head = copies(net), net.head_of(1).weight.clone()
    split_units(net, [torch.tensor([4]), torch.tensor([2, 0])], before)
    (w1, b1), (w2, b2) = copies(net)
    assert [layer.units for layer in net.hidden] == [13, 11]
    assert [layer.splits.count(2) for layer in net.hidden] == [1, 2]
    assert torch.equal(w1[4], before[0][0][4])
    assert torch.equal(w1[12], now[0][0][4])
    assert (float(b1[4]), float(b1[12])) == (float(before[0][1][4]), float(now[0][1][4]))
    assert torch.equal(w1[[0, 5]], now[0][0][[0, 5]])
    assert torch.equal(w2[5, 4], before[1][0][5, 4]), "what the layer above reads of the old unit"
    assert torch.equal(w2[5, 12], now[1][0][5, 4])
    assert torch.equal(w2[5, :4], now[1][0][5, :4])
    assert torch.equal(w2[2, :12], before[1][0][2])
    assert float(w2[2, 12]) == 0, "the old one does not read the copy"
    assert float(w2[9, 4]) == 0, "the copy does not read the old one"
    assert torch.equal(w2[9, [0, 12]], torch.stack([now[1][0][2, 0], now[1][0][2, 4]]))
    assert torch.equal(b2[[9, 10]], now[1][1][[2, 0]])
    new = net.head_of(1).weight
    assert torch.equal(new[:, [9, 10]], head[:, [2, 0]])
    assert (new[:, [2, 0]] == 0).all()
    assert net.head_of(0).in_features == 9
    assert net.head_of(1).in_features == 11
    assert net.units_of(0) == [list(range(12)), list(range(9))]
    assert net.units_of(1) == [[u for u in range(13) if u != 4], [1, *range(3, 11)]]


def split_once(kind="mlp"):
    """Three tasks, of which the second added two units a layer and split two; the third is the newest."""
    net, x = grown(kind, [2] * {"mlp": 2, "conv": 3, "all_conv": 1}[kind])
    before = [(w[:-2, : (None if k == 0 else w.shape[1] - 2 * net.hidden[k].positions)], None if b is None else b[:-2])
              for k, (w, b) in enumerate(copies(net))]  # fmt: skip
    perturb(net.parameters(), 0.1)
    split_units(net, [torch.tensor([0, 2])] * len(net.hidden), before)
    net.add_task(2, 3)
    return net, x


@pytest.mark.parametrize("kind", NETWORKS)
def test_units_that_a_later_task_adds_are_not_connected_with_old_ones_of_a_split(kind):
    net, x = split_once(kind)
    first = [net(x, label) for label in (0, 1)]
    old = [layer.units for layer in net.hidden]
    add_units(net, [3] * len(net.hidden))
    assert all(torch.equal(net(x, label), first[label]) for label in (0, 1))
    for layer, below, units in zip(net.hidden[1:], net.hidden, old[1:], strict=False):
        columns = [u * layer.positions + p for u in (0, 2) for p in range(layer.positions)]
        assert (layer.layer.weight[units:, columns] == 0).all()
        assert (layer.layer.weight[[0, 2], old[net.hidden.index(below)] * layer.positions :] == 0).all()
        assert (layer.layer.weight[units:, : 2 * layer.positions] != 0).any()
    assert (net.head_of(2).weight[:, : net.head_positions] == 0).all(), "nor is a head made after it"
    net.put_in_place(NewUnits(net, [3] * len(net.hidden)))
    whole = net.head_weight(2) @ net.features(x, 2).T
    torch.testing.assert_close(net(x, 2), whole.T + net.head_of(2).bias, rtol=1e-4, atol=1e-5)
    perturb(net.stand_in.parameters())
    trained = net(x, 2)
    net.write_back()
    torch.testing.assert_close(net(x, 2), trained, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(net(x, label), first[label]) for label in (0, 1))


@pytest.mark.parametrize("kind", NETWORKS)
def test_selection_leaves_out_old_ones_of_a_split(kind):
    net, x = split_once(kind)
    inputs, *units = units_with_a_path(net)
    assert units == net.units_of(2)
    assert all({0, 2}.isdisjoint(own) for own in units)
    before = copies(net)
    whole = net(x, 2)
    net.put_in_place(Selected(net, [inputs, *units]))
    torch.testing.assert_close(net(x, 2), whole, rtol=1e-4, atol=1e-5)
    perturb(net.stand_in.parameters())
    net.write_back()
    for layer, (weight, _) in zip(net.hidden, before, strict=True):
        assert torch.equal(layer.layer.weight[[0, 2]], weight[[0, 2]])
        assert not torch.equal(layer.layer.weight[1], weight[1])


def test_all_that_the_newest_task_uses():
    net, x = grown("mlp", (2, 2))
    assert all_that_is_used(net) is None, "the network as a whole"
    net, x = split_once()
    before = copies(net)
    add_units(net, (1, 1))
    whole = net(x, 2)
    net.put_in_place(all_that_is_used(net))
    torch.testing.assert_close(net(x, 2), whole, rtol=1e-4, atol=1e-5)
    pulled = anchors(net, before)
    assert [tuple(past.shape) for _, past in pulled] == [(14, 64), (14,), (11, 14), (11,)]
    for parameter, past in pulled:
        assert torch.equal(parameter[tuple(map(slice, past.shape))], past)
    assert [tuple(weight.shape) for weight in net.stand_in.weights] == [(15, 64), (12, 15), (3, 12)]
    assert [len(drift) for drift in drifts(net, before)] == [16, 13]


def test_units_that_cannot_be_split():
    net, _ = grown("mlp", (2, 2))
    before = [(weight[:-2], bias[:-2]) for weight, bias in copies(net)]
    before[1] = (before[1][0][:, :-2], before[1][1])
    for units, text in (
        ([[0], [10]], "units: of hidden layer 2, 10 was made by the newest task, or is none of its units"),
        ([[-1], []], "units: of hidden layer 1, -1 was made"),
        ([[3, 3], []], "units: 3 of hidden layer 1 would be split twice"),
    ):
        with pytest.raises(ValueError, match=text):
            split_units(net, [torch.tensor(own, dtype=torch.long) for own in units], before)
        assert net.hidden[0].units == 14
    net, _ = split_once()
    with pytest.raises(ValueError, match="units: 2 of hidden layer 2 would be split twice"):
        split_units(net, [torch.tensor([1]), torch.tensor([2])], copies(net))
    assert sum(map(bool, net.hidden[0].splits)) == 2


def test_state_says_what_has_been_split():
    net, x = split_once("conv")
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    fresh = NETWORKS["conv"]().eval()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert [layer.splits for layer in fresh.hidden] == [layer.splits for layer in net.hidden]
    assert all(torch.equal(fresh(x, label), net(x, label)) for label in range(3))
    old = net.state_dict()
    del old["_extra_state"]["splits"]  # a file from before splits were told apart: all tasks read both
    older = NETWORKS["conv"]().eval()
    older.load_state_dict(old)
    assert [sum(layer.splits) for layer in older.hidden] == [0, 0, 0]
    assert older.units_of(1) == [list(range(layer.units)) for layer in net.hidden]


class AtSplit(SupervisedPlugin):
    """Logits of all tasks at the end of the training before the split, and at the beginning of that after it."""

    def __init__(self, x):
        super().__init__()
        self.x, self.logits = x, {}

    def _note(self, strategy, when):
        network = copy.deepcopy(strategy.model).eval()
        network.write_back()
        self.logits[len(network.labels), strategy.den.phase.name, when] = [
            network(self.x, label).detach() for label in network.labels
        ]

    def before_training_iteration(self, strategy, **kwargs):
        self.logits.setdefault((len(strategy.model.labels), strategy.den.phase.name, "first"), None)
        if self.logits[len(strategy.model.labels), strategy.den.phase.name, "first"] is None:
            self._note(strategy, "first")

    def after_training_iteration(self, strategy, **kwargs):
        self._note(strategy, "last")


@pytest.mark.parametrize("options", [{}, {"selective": False, "expand": None, "retraining_drift": 0.01}])
def test_in_training_old_units_of_a_split_stay_for_good(digits_split, options):
    """Through all phases of the tasks that follow, with L1, weight decay and momentum; and the split moves nothing."""
    x = torch.rand(20, 64)
    at_split = AtSplit(x)
    strategy = build(
        plugins=[InMemoryLoaderPlugin(), at_split],
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        **{"drift_threshold": 1e-3, "max_splits": 3, "l1": 0.01, **options},
    )
    strategy.train(digits_split.train_stream[0])
    before = copies(strategy.model)
    strategy.train(digits_split.train_stream[1])
    split = [layer.split_units().tolist() for layer in strategy.model.hidden]
    assert [len(own) for own in split] == [3, 3]
    second = copies(strategy.model)
    for own, (weight, bias), (now, bias_now) in zip(split, before, second, strict=True):
        assert torch.equal(now[own][:, : weight.shape[1]], weight[own]), "in the phase after the split, too"
        assert torch.equal(bias_now[own], bias[own])
    strategy.train(digits_split.train_stream[2:4])
    for own, layer, (weight, bias) in zip(split, strategy.model.hidden, second, strict=True):
        assert torch.equal(layer.layer.weight[own][:, : weight.shape[1]], weight[own])
        assert torch.equal(layer.layer.bias[own], bias[own])
        assert (layer.layer.weight[own][:, weight.shape[1] :] == 0).all()
    assert sum(len(layer.split_units()) for layer in strategy.model.hidden) > 12
    for task in (2, 3, 4):
        last, first = at_split.logits[task, "drift", "last"], at_split.logits[task, "split", "first"]
        torch.testing.assert_close(first[-1], last[-1], rtol=1e-4, atol=1e-5)
        moved = float((first[0] - last[0]).abs().max())
        assert task > 2 or moved > 1e-4, "the first task has some of its old units back"
    assert strategy.model.hidden[0].units > WIDTHS[0]


def test_an_evaluation_in_a_phase_sees_the_weights_of_that_phase(digits_split):
    """Those that earlier tasks share with the newest are trained in a copy of the selected part."""

    class Look(SupervisedPlugin):
        moved = 0.0

        def after_training_epoch(self, strategy, **kwargs):
            if strategy.den.phase.name == "retraining":
                strategy.eval(digits_split.test_stream[:1])
                part = strategy.model.stand_in
                own = strategy.model.hidden[0].block(part.units[1], part.units[0])[0]
                assert torch.equal(own, part.weights[0])
                self.moved = float((own - self.before[0][0][part.units[1]][:, part.units[0]]).abs().max())

    look = Look()
    strategy = build(plugins=[InMemoryLoaderPlugin(), look], expand=None, split=False)
    strategy.train(digits_split.train_stream[0])
    look.before = copies(strategy.model)
    strategy.train(digits_split.train_stream[1])
    assert look.moved > 1e-3
