import io

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TextLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avl_plugins.growth.parameters import grow_parameter

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.25),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
}


def mlp(outputs=2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, outputs))


def step(model, optimizer, inputs=64):
    optimizer.zero_grad()
    model(torch.rand(16, inputs)).pow(2).sum().backward()
    optimizer.step()


def strategy_for(model, optimizer, plugins=()):
    evaluator = EvaluationPlugin(accuracy_metrics(epoch=True), loggers=[TextLogger(io.StringIO())])
    return Naive(model=model, optimizer=optimizer, train_mb_size=20, evaluator=evaluator, plugins=list(plugins))


def copied_state(optimizer, parameter):
    return {
        key: value.clone() if isinstance(value, torch.Tensor) else value
        for key, value in optimizer.state[parameter].items()
    }


def times_in_optimizer(optimizer, parameter):
    return sum(p is parameter for group in optimizer.param_groups for p in group["params"])


class AtExperienceStart(SupervisedPlugin):
    """Keeps the optimizer state seen after `make_optimizer()` of each `train()`."""

    def __init__(self, name):
        super().__init__()
        self.name, self.seen = name, []

    def before_training_exp(self, strategy, **kwargs):
        parameter = dict(strategy.model.named_parameters())[self.name]
        self.seen.append(copied_state(strategy.optimizer, parameter))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_survives_growth_and_two_more_trains(kind, digits_permuted):
    model = mlp(10)
    start = AtExperienceStart("0.weight")
    optimizer = OPTIMIZERS[kind](model.parameters())
    strategy = strategy_for(model, optimizer, [start])
    train = digits_permuted.train_stream
    strategy.train(train[0])

    before = {name: copied_state(optimizer, p) for name, p in model.named_parameters()}
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    grow_parameter(model, "0.weight", (11, 64), init=nn.init.kaiming_uniform_, owner=strategy)
    grow_parameter(model, "0.bias", (11,), init=nn.init.zeros_, owner=strategy)
    grow_parameter(model, "2.weight", (10, 11), init=nn.init.zeros_, owner=strategy)

    fresh = {"adagrad": {"sum": 0.25}, "rprop": {"step_size": 1e-2}}.get(kind, {})
    for name, new in model.named_parameters():
        old_block = tuple(slice(size) for size in values[name].shape)
        assert torch.equal(new[old_block], values[name])
        assert times_in_optimizer(optimizer, new) == 1
        state = optimizer.state[new]
        assert state.keys() == before[name].keys()
        for key, value in before[name].items():
            if not isinstance(value, torch.Tensor) or value.dim() == 0:
                assert state[key] == value
                continue
            assert state[key].shape == new.shape
            assert torch.equal(state[key][old_block], value)
            padding = state[key].clone()
            padding[old_block] = fresh.get(key, 0.0)
            assert torch.equal(padding, torch.full_like(padding, fresh.get(key, 0.0)))

    for experience in train[1:3]:
        ended = copied_state(optimizer, model[0].weight)
        strategy.train(experience)
        started = start.seen[-1]
        assert started.keys() == ended.keys()
        for key, value in ended.items():
            assert torch.equal(torch.as_tensor(started[key]), torch.as_tensor(value)), key
        for parameter in model.parameters():
            assert times_in_optimizer(optimizer, parameter) == 1
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
        assert all(optimizer.state[p] for p in model.parameters())
        assert model[0].weight.shape == (11, 64)


def test_momentum_of_a_frozen_row_block_is_bit_equal_after_two_trains(digits_permuted):
    model = mlp(10)
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    strategy = strategy_for(model, optimizer)
    train = digits_permuted.train_stream
    strategy.train(train[0])
    model[0].weight.requires_grad_(False)
    optimizer.zero_grad()
    momentum = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    values = model[0].weight.detach().clone()
    for name, shape in {"0.weight": (9, 64), "0.bias": (9,), "2.weight": (10, 9)}.items():
        grow_parameter(model, name, shape, init=nn.init.ones_, owner=strategy)
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad
    strategy.train(train[1])
    strategy.train(train[2])
    assert torch.equal(model[0].weight[:8], values)
    assert torch.equal(model[0].weight[8:], torch.ones(1, 64))
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"][:8], momentum)


def test_bare_optimizer_keeps_groups_and_other_parameters():
    model = mlp()
    optimizer = torch.optim.Adam(
        [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters(), "lr": 0.25}]
    )
    step(model, optimizer)
    untouched = model[0].weight
    new = grow_parameter(model, "2.bias", (5,), init=torch.arange(5.0), owner=optimizer)
    assert new is model[2].bias
    assert optimizer.param_groups[1]["params"][1] is new
    assert optimizer.param_groups[1]["lr"] == 0.25
    assert model[0].weight is untouched
    assert torch.equal(new[2:], torch.tensor([2.0, 3.0, 4.0]))


def test_growth_without_an_optimizer_and_before_the_first_step():
    model = mlp()
    grow_parameter(model, "2.bias", (3,), init=nn.init.ones_, owner=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    new = grow_parameter(model, "2.bias", (4,), init=lambda t: torch.full_like(t, 7.0), owner=optimizer)
    assert new[3] == 7.0
    assert new[2] == 1.0
    assert optimizer.state[new] == {}


def test_new_entries_train_as_if_they_had_always_been_there_under_sgd():
    """With zero outgoing and incoming weights, a unit added before a step equals one added after it."""
    small, large = nn.Linear(3, 2).double(), nn.Linear(3, 4).double()
    with torch.no_grad():
        large.weight.zero_()[:2] = small.weight
        large.bias.zero_()[:2] = small.bias
    x = torch.rand(5, 3, dtype=torch.float64)
    grown_optimizer = OPTIMIZERS["momentum"](small.parameters())
    optimizer = OPTIMIZERS["momentum"](large.parameters())

    def loss(layer):
        return layer(x)[:, :2].pow(3).sum()

    for layer, optim in ((small, grown_optimizer), (large, optimizer)):
        loss(layer).backward()
        optim.step()
    grow_parameter(small, "weight", (4, 3), init=nn.init.zeros_, owner=grown_optimizer)
    grow_parameter(small, "bias", (4,), init=nn.init.zeros_, owner=grown_optimizer)
    for layer, optim in ((small, grown_optimizer), (large, optimizer)):
        optim.zero_grad()
        (loss(layer) + layer(x)[:, 2:].sum()).backward()
        optim.step()
    torch.testing.assert_close(small.weight, large.weight, rtol=0, atol=1e-14)
    torch.testing.assert_close(small.bias, large.bias, rtol=0, atol=1e-14)


def test_shared_weight_is_replaced_in_both_modules_and_once_in_the_optimizer(digits_permuted):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.decode.weight = self.encode.weight

        def forward(self, x):
            hidden = self.encode(x)
            return self.decode(nn.functional.pad(hidden, (0, 64 - hidden.shape[1])))[:, :10]

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    strategy = strategy_for(model, optimizer)
    strategy.train(digits_permuted.train_stream[0])
    momentum = optimizer.state[model.encode.weight]["momentum_buffer"].clone()
    new = grow_parameter(model, "decode.weight", (70, 64), init=nn.init.zeros_, owner=strategy)
    assert model.encode.weight is new
    assert model.decode.weight is new
    assert strategy.optimized_param_id["encode.weight"] is new
    assert optimizer.param_groups[0]["params"] == [new]
    assert torch.equal(optimizer.state[new]["momentum_buffer"][:64], momentum)


def test_pending_gradient_dtype_and_device_are_kept():
    layer = nn.Linear(2, 2).double()
    layer(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    new = grow_parameter(layer, "weight", (3, 4), init=torch.ones(3, 4), owner=None)
    assert new.dtype == torch.float64
    assert torch.equal(new.grad, nn.functional.pad(torch.ones(2, 2, dtype=torch.float64), (0, 2, 0, 1)))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4),
    st.sampled_from(sorted(OPTIMIZERS)),
)
def test_any_dimension_grows(sizes, kind):
    """Old block bit-equal in value and state, new block what init gave, for 1 to 4 dimensions, empty ones too."""
    old_shape, extra = tuple(old for old, _ in sizes), tuple(more for _, more in sizes)
    new_shape = tuple(a + b for a, b in zip(old_shape, extra, strict=True))
    holder = nn.Module()
    holder.p = nn.Parameter(torch.randn(old_shape))
    optimizer = OPTIMIZERS[kind]([holder.p])
    holder.p.grad = torch.randn(old_shape)
    optimizer.step()
    old, state = holder.p.detach().clone(), copied_state(optimizer, holder.p)
    init = torch.randn(new_shape)
    new = grow_parameter(holder, "p", new_shape, init=init, owner=optimizer)
    block = tuple(slice(size) for size in old_shape)
    expected = init.clone()
    expected[block] = old
    assert torch.equal(new, expected)
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            assert torch.equal(optimizer.state[new][key][block], value)
    new.grad = torch.ones(new_shape)
    optimizer.step()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "0.wieght"}, "name: '0.wieght' is no parameter"),
        ({"shape": (7, 64)}, "shape: 0.weight cannot shrink from \\(8, 64\\) to \\(7, 64\\)"),
        ({"shape": (8,)}, "shape: 0.weight has 2 dimensions"),
        ({"init": torch.zeros(3)}, "init must give values of shape \\(9, 64\\), got \\(3,\\)"),
        ({"init": lambda t: torch.zeros(3)}, "init must give values of shape"),
        ({"owner": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)}, "owner: 0.weight is in no parameter"),
    ],
)
def test_errors_name_the_argument_and_change_nothing(change, message):
    model = mlp()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    step(model, optimizer)
    before, weight = copied_state(optimizer, model[0].weight), model[0].weight
    arguments = {"name": "0.weight", "shape": (9, 64), "init": nn.init.zeros_, "owner": optimizer, **change}
    name, shape = arguments.pop("name"), arguments.pop("shape")
    with pytest.raises(ValueError, match=message):
        grow_parameter(model, name, shape, **arguments)
    assert model[0].weight is weight
    assert all(torch.equal(optimizer.state[weight][k], before[k]) for k in before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"shape": (9.0, 64)}, TypeError, r"shape must be an integer >= 0, got 9\.0"),
        ({"shape": (9, True)}, TypeError, "shape must be an integer >= 0, got True"),
        ({"shape": (9, -64)}, ValueError, "shape must be an integer >= 0, got -64"),
        ({"init": 0.0}, TypeError, r"init must be a function that fills .*, or a tensor, got 0\.0"),
        ({"init": None}, TypeError, "init must be a function"),
        ({"init": lambda t: 0.5}, TypeError, r"init must return a tensor, or None .* got 0\.5"),
    ],
)
def test_arguments_of_another_kind_change_nothing(change, error, message):
    model = mlp()
    weight = model[0].weight
    with pytest.raises(error, match=message):
        grow_parameter(model, "0.weight", **{"shape": (9, 64), "init": nn.init.zeros_, "owner": None, **change})
    assert model[0].weight is weight


def test_a_lazy_parameter_has_no_shape_to_grow():
    with pytest.raises(ValueError, match=r"name: '0.weight' has no shape yet.*run a forward pass first"):
        grow_parameter(nn.Sequential(nn.LazyLinear(3)), "0.weight", (5, 4), init=nn.init.zeros_, owner=None)


def test_owner_of_another_type_is_a_type_error():
    with pytest.raises(TypeError, match="owner must be an Avalanche strategy"):
        grow_parameter(mlp(), "0.bias", (9,), init=nn.init.zeros_, owner="sgd")


def test_state_that_cannot_be_padded_is_named():
    model = mlp()
    optimizer = torch.optim.Adafactor(model.parameters())
    step(model, optimizer)
    with pytest.raises(ValueError, match="Adafactor keeps 'row_var'"):
        grow_parameter(model, "0.weight", (9, 64), init=nn.init.zeros_, owner=optimizer)
    assert times_in_optimizer(optimizer, model[0].weight) == 1
