"""The network against the paper's equations, written out slowly, and what must not change as columns are added."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avl_plugins import ProgressiveNetwork
from avl_plugins.progressive.adapters import reduced_width
from avl_plugins.tasks.network import MASK, by_task

KINDS = ["mlp", "linear", None]


def mlp_column():
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU())


def conv_column():
    return nn.Sequential(
        nn.Conv2d(2, 9, 3, stride=2, padding=1),
        nn.BatchNorm2d(9),
        nn.ReLU(),
        nn.Conv2d(9, 12, (3, 2), padding=1, dilation=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(12 * 2 * 2, 16),
        nn.LayerNorm(16),
        nn.ReLU(),
    )


INPUTS = {"mlp": (mlp_column, (5, 6)), "conv": (conv_column, (5, 2, 8, 8))}


def network(column, kind, tasks=4, **options):
    """Make columns with alphas that differ and batch statistics that are not 0 and 1."""
    net = ProgressiveNetwork(column, adapter=kind, **options)
    for task in range(tasks):
        net.add_task(10 + task, 2 + task % 2)
        for name, parameter in net.columns[-1].named_parameters():
            if name.endswith("alpha"):
                nn.init.uniform_(parameter, -1.5, 1.5)
        for module in net.columns[-1].modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def lateral_by_hand(adapter, layer, features, positions):
    """Equations 1 and 2 of the paper, one source column at a time; `positions` > 1: flattened maps."""
    if adapter is None:
        return 0
    if hasattr(adapter, "alpha"):
        total, start = 0, 0
        for alpha, h in zip(adapter.alpha, features, strict=True):
            maps = h.reshape(h.shape[0], -1, positions) if positions > 1 else h
            width = maps.shape[1]
            part = adapter.V.weight[:, start : start + width]
            matrix = part.reshape(part.shape[0], width)  # a 1 x 1 convolution is a matrix at every pixel
            total = total + torch.einsum("rc,bc...->br...", matrix, alpha * maps)
            start += width
        bias = adapter.V.bias.view(1, -1, *[1] * (total.dim() - 2))
        joined = torch.relu(total + bias)
        joined = joined.flatten(1) if positions > 1 else joined
        sources = [joined]
    else:
        sources = features
    total, start = 0, 0
    for h in sources:
        weight = adapter.U.weight[:, start : start + h.shape[1]]
        if isinstance(layer, nn.Conv2d):
            total = total + F.conv2d(h, weight, None, layer.stride, layer.padding, layer.dilation)
        else:
            total = total + h @ weight.T
        start += h.shape[1]
    return total


def by_hand(net, x, index):
    """h_i^k = f(W_i^k h_{i-1}^k + lateral), column by column; the logits of column `index`."""
    features = []
    for column in net.columns[: index + 1]:
        h, own = x, []
        for depth, stage in enumerate(column.stages):
            maps = column.stages[depth - 1].maps if depth else 1
            positions = h.shape[1] // maps if depth and isinstance(stage.layer, nn.Linear) else 1
            z = stage.layer(h) + lateral_by_hand(
                stage.lateral, stage.layer, [f[depth - 1] for f in features], positions
            )
            h = stage.after(z)
            own.append(h)
        features.append(own)
    head = net.columns[index].head
    return head.layer(own[-1]) + lateral_by_hand(head.lateral, head.layer, [f[-1] for f in features[:-1]], 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", INPUTS)
def test_equals_the_papers_equations(kind, shape):
    make, size = INPUTS[shape]
    net = network(make(), kind).double().eval()
    x = torch.randn(size, dtype=torch.float64)
    for index, label in enumerate(net.labels):
        torch.testing.assert_close(net(x, label), by_hand(net, x, index), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
@pytest.mark.parametrize("shape", INPUTS)
def test_laterals_go_into_every_layer_but_the_first_and_into_the_head(kind, shape):
    """Each is there, is of the asked kind, and changes the output when it changes."""
    make, size = INPUTS[shape]
    net = network(make(), kind, tasks=3).eval()
    x = torch.randn(size)
    column = net.columns[2]
    assert column.stages[0].lateral is None
    assert all(stage.lateral is None for stage in (*net.columns[0].stages, net.columns[0].head))
    before = net(x, 12)
    for stage in (*column.stages[1:], column.head):
        assert hasattr(stage.lateral, "alpha") == (kind == "mlp")
        changed = copy.deepcopy(net)
        where = [*column.stages, column.head].index(stage)
        adapter = [*changed.columns[2].stages, changed.columns[2].head][where].lateral
        with torch.no_grad():
            adapter.U.weight += 1.0
        assert not torch.equal(changed(x, 12), before)
        # and it reads both earlier columns: a change of either shows
    for earlier in (0, 1):
        changed = copy.deepcopy(net)
        with torch.no_grad():
            changed.columns[earlier].stages[-1].layer.bias += 0.5
        assert not torch.equal(changed(x, 12), before)


def test_sizes():
    """784-400-400-10, reduction 8: V of 50; the first layer has no lateral, ten columns stay below 1.6 nets each."""
    net = ProgressiveNetwork(nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU()))
    for label in range(10):
        net.add_task(label, 10)
    own = 784 * 400 + 400 + 400 * 400 + 400 + 400 * 10 + 10
    for k, label in enumerate(net.labels):
        into_layer = k + (400 * k) * 50 + 50 + 50 * 400
        into_head = k + (400 * k) * 50 + 50 + 50 * 10
        assert net.parameters_of(label) == {"column": own, "lateral": into_layer + into_head if k else 0}
    total = sum(p.numel() for p in net.parameters())
    assert total < 1.6 * 10 * own
    full = ProgressiveNetwork(
        nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU()), reduction=1
    )
    for label in range(10):
        full.add_task(label, 10)
    assert round(total / (10 * own), 1) == 1.4, "the README's number"
    assert round(sum(p.numel() for p in full.parameters()) / (10 * own)) == 4, "the README's number"
    assert total == sum(sum(net.parameters_of(label).values()) for label in net.labels)
    assert [reduced_width(n, r) for n, r in [(400, 8), (400, 1), (12, 8), (12, 1), (3, 8), (81, 8), (10, 0.5)]] == [
        50, 400, 8, 12, 3, 11, 20,
    ]  # fmt: skip


def test_alpha_starts_where_asked():
    net = ProgressiveNetwork(mlp_column(), alpha_init=0.01)
    net.add_task(0, 2), net.add_task(1, 2), net.add_task(2, 2)
    assert torch.equal(net.columns[2].head.lateral.alpha, torch.full((2,), 0.01))


@pytest.mark.parametrize("kind", KINDS)
def test_widths_may_differ_between_columns(kind):
    def make(index):
        width = 8 + 4 * index
        return nn.Sequential(nn.Conv2d(2, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 5), nn.ReLU())

    net = network(make, kind, tasks=3).double().eval()
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    assert [column.stages[0].maps for column in net.columns] == [8, 12, 16]
    for index, label in enumerate(net.labels):
        torch.testing.assert_close(net(x, label), by_hand(net, x, index), rtol=1e-10, atol=1e-10)


def test_convolutions_to_the_end():
    column = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    with pytest.raises(ValueError, match="features: the column ends with a Conv1d"):
        ProgressiveNetwork(column)
    net = network(column, "mlp", features=4)
    assert net(torch.randn(5, 3, 9), 12).shape == (5, 2)
    wrong = network(column, "mlp", features=8)
    with pytest.raises(ValueError, match="gives 4 features, and 8 were announced"):
        wrong(torch.randn(5, 3, 9), 12)


def test_columns_are_made_afresh():
    """Later columns have new weights and clean batch statistics, the first one those it was given."""
    column = conv_column()
    net = network(column, "mlp")
    assert torch.equal(net.columns[0].stages[0].layer.weight, column[0].weight)
    weights = [c.stages[0].layer.weight for c in net.columns]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
    net.columns[0].stages[0].after[0].running_mean.fill_(7)
    net.add_task(99, 2)
    assert torch.equal(net.columns[-1].stages[0].after[0].running_mean, torch.zeros(9))


def test_old_outputs_stay_bit_for_bit():
    """Training five more columns with momentum, weight decay, dropout and BatchNorm moves nothing of the first."""
    net = ProgressiveNetwork(conv_column())
    x, y = torch.randn(32, 2, 8, 8), torch.randint(0, 2, (32,))
    expected = {}
    for label in range(6):
        net.add_task(label, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        net.train()
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(net(x + 0.1 * torch.randn_like(x), label), y).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            for old, logits in expected.items():
                assert torch.equal(net(x, old), logits)
            expected[label] = net(x, label)
        net.train()
        with torch.no_grad():  # frozen columns are in evaluation mode even while the network trains
            assert all(torch.equal(net(x, old), logits) for old, logits in expected.items() if old != label)


def test_frozen_columns_have_no_graph_and_no_gradient():
    net = network(mlp_column(), "mlp")
    x = torch.randn(5, 6)
    net(x, 13).sum().backward()
    frozen = [p for column in net.columns[:-1] for p in column.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    assert all(p.grad is not None for p in net.columns[-1].parameters())
    assert all(not h.requires_grad for column in net.features(x, 13)[:-1] for h in column)
    assert not net(x, 11).requires_grad


def test_a_frozen_column_loses_the_gradient_it_had():
    net = network(mlp_column(), "mlp", tasks=1)
    net(torch.randn(5, 6), 10).sum().backward()
    net.add_task(50, 2)
    assert all(p.grad is None for p in net.columns[0].parameters())


def test_one_label_may_be_a_number_a_scalar_or_one_a_sample():
    def forward(x, label):
        return x * label

    x = torch.arange(3.0)[:, None]
    for labels in (4, torch.tensor(4), torch.tensor([4, 4, 4])):
        assert torch.equal(by_task(forward, x, labels), 4 * x)
    assert torch.equal(by_task(forward, x, torch.tensor([4, 5, 4])), x * torch.tensor([[4], [5], [4]]))


def test_a_batch_of_several_tasks_is_the_tasks_apart():
    net = network(mlp_column(), "mlp").eval()  # heads of 2, 3, 2 and 3 classes
    x, t = torch.randn(12, 6), torch.tensor([10, 11, 12, 13] * 3)
    together = net(x, t)
    assert together.shape == (12, 3)
    for i, label in enumerate(t.tolist()):
        own = net(x[i : i + 1], label)
        torch.testing.assert_close(together[i : i + 1, : own.shape[1]], own)
        assert (together[i, own.shape[1] :] == MASK).all()
    assert torch.equal(net(x, torch.full((12,), 10)), net(x, 10))
    assert net(x, torch.full((12,), 10)).shape == (12, 2)
    assert set(net(x, None)) == {10, 11, 12, 13}


def test_classes_a_task_does_not_have_get_no_probability():
    net = ProgressiveNetwork(mlp_column())
    net.add_task(0, [1, 4])
    logits = net(torch.randn(7, 6), 0)
    assert logits.shape == (7, 5)
    assert (logits[:, [0, 2, 3]] == MASK).all()
    assert (logits.softmax(1)[:, [0, 2, 3]] == 0).all()
    logits.logsumexp(1).sum().backward()
    assert (net.columns[0].head.layer.weight.grad[[0, 2, 3]] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", INPUTS)
def test_state_dict_fills_a_fresh_network(kind, shape):
    make, size = INPUTS[shape]
    net = network(make(), kind).eval()
    fresh = ProgressiveNetwork(make(), adapter=kind)
    state, random = net.state_dict(), torch.get_rng_state()
    fresh.load_state_dict(state)
    assert torch.equal(torch.get_rng_state(), random)
    fresh.eval()
    x = torch.randn(size)
    assert fresh.labels == net.labels
    assert all(torch.equal(fresh(x, label), net(x, label)) for label in net.labels)
    assert [p.requires_grad for p in fresh.parameters()] == [p.requires_grad for p in net.parameters()]


def test_state_of_other_tasks_is_refused():
    net = network(mlp_column(), "mlp", tasks=2)
    other = ProgressiveNetwork(mlp_column())
    other.add_task(5, 2)
    with pytest.raises(ValueError, match=r"columns for the tasks \[5\], the state for \[10, 11\]"):
        other.load_state_dict(net.state_dict())
    assert other.labels == [5]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", INPUTS)
def test_single_task(kind, shape):
    """A copy with equal outputs that needs no label, holds no later column, and exports."""
    make, size = INPUTS[shape]
    net = network(make(), kind).eval()
    x = torch.randn(size)
    single = net.to_single_task(11)
    assert torch.equal(single(x), net(x, 11))
    own, lateral = net.parameters_of(11).values()
    first = net.parameters_of(10)["column"] - sum(p.numel() for p in net.columns[0].head.parameters())
    assert sum(p.numel() for p in single.parameters()) == own + lateral + (first if kind else 0)
    exported = torch.export.export(single, (x,)).module()
    torch.testing.assert_close(exported(x), single(x), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        single.columns[0].stages[0].layer.weight.zero_()
    assert net.columns[0].stages[0].layer.weight.abs().sum() > 0
    assert net.columns[1].head is not None
    assert net.columns[0].head is not None


def test_tap_sees_and_replaces_every_feature():
    net = network(mlp_column(), "mlp").eval()
    x, seen = torch.randn(5, 6), []
    plain = net(x, 12)
    assert torch.equal(net.forward_single_task(x, 12, tap=lambda j, i, h: seen.append((j, i)) or h), plain)
    assert seen == [(j, i) for j in range(3) for i in range(3)]
    zeros = {(j, i): torch.zeros(5, width, requires_grad=True) for j, i in seen for width in [(10, 8, 8)[i]]}
    net.forward_single_task(x, 12, tap=lambda j, i, h: h + zeros[j, i]).sum().backward()
    assert all(zero.grad.abs().sum() > 0 for zero in zeros.values())
    gone = net.forward_single_task(x, 12, tap=lambda j, i, h: h * 0 if (j, i) == (0, 2) else h)
    assert not torch.equal(gone, plain)


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (nn.Linear(3, 2), TypeError, "column must be an nn.Sequential, .*got Linear"),
        ("mlp", TypeError, "column must be a function of the column's index .*, or one itself, got 'mlp'"),
        (nn.Sequential(nn.ReLU()), ValueError, "at least one Linear or Conv layer"),
        (nn.Sequential(nn.ELU(inplace=True), nn.Linear(3, 3)), ValueError, "works in place, on the input that all"),
        (nn.Sequential(nn.LazyLinear(3)), TypeError, "LazyLinear has no shape yet"),
        (nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 3)), TypeError, "GRU cannot be cut"),
        (nn.Sequential(nn.ConvTranspose2d(3, 3, 2)), TypeError, "ConvTranspose2d cannot be cut"),
        (nn.Sequential(nn.TransformerEncoderLayer(4, 2)), TypeError, "TransformerEncoderLayer cannot be cut"),
    ],
)
def test_columns_that_cannot_be_cut(column, error, message):
    with pytest.raises(error, match=message):
        ProgressiveNetwork(column)


def test_a_column_of_another_geometry_is_refused():
    makers = [
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3), nn.ReLU()),
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3), nn.ReLU()),
    ]
    net = ProgressiveNetwork(lambda index: makers[index]())
    net.add_task(0, 2)
    with pytest.raises(ValueError, match="must differ in their widths only"):
        net.add_task(1, 2)
    assert net.labels == [0]
    assert all(p.requires_grad for p in net.parameters())


def test_bad_tasks_change_nothing():
    net = network(mlp_column(), "mlp", tasks=2)
    before = copy.deepcopy(net.state_dict())
    for label, classes, message in [
        (10, 2, "column for task 10 already"),
        (5, 0, "classes must be"),
        (5, [-1, 1], "classes must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            net.add_task(label, classes)
    assert net.state_dict().keys() == before.keys()
    assert net.columns[1].stages[0].layer.weight.requires_grad
    for call in (net.parameters_of, net.to_single_task, lambda label: net.features(torch.zeros(1, 6), label)):
        with pytest.raises(ValueError, match=r"no column has been trained on task 7; the tasks so far are \[10, 11\]"):
            call(7)


def test_a_module_that_cannot_be_made_anew_is_named():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.factor * x

    with pytest.raises(ValueError, match=r"Scale \(1\) has parameters and no reset_parameters"):
        ProgressiveNetwork(nn.Sequential(nn.Linear(6, 4), Scale()))
    net = network(lambda index: nn.Sequential(nn.Linear(6, 4), Scale()), "mlp", tasks=2)
    assert net(torch.randn(5, 6), 11).shape == (5, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda():
    net = network(conv_column(), "mlp", tasks=1).cuda()
    net.add_task(50, 2)
    x = torch.randn(5, 2, 8, 8, device="cuda")
    assert net(x, 50).device.type == "cuda"
    net.eval()
    torch.testing.assert_close(net(x, 10).cpu(), copy.deepcopy(net).cpu()(x.cpu(), 10), rtol=1e-3, atol=1e-3)
