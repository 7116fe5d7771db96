"""`diagonal_fisher` for models that autocast, have sparse gradients, are compiled, or hide a layer from its hooks."""

import copy
import warnings
from typing import Any

import pytest
import torch
from fisher_cases import ALL_MODELS, Tokens, assert_same, batches, make
from reference import fisher_reference
from torch import Tensor, nn
from torch.nn import functional

from avl_plugins import diagonal_fisher, register_fisher_rule
from avl_plugins.ewc.per_sample import SquaredGradients
from avl_plugins.ewc.sums import by_loop


class Autocast(nn.Module):
    """Runs a net in bfloat16, as models do that turn autocast on in their forward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_autocast_in_the_models_forward(name: str) -> None:
    model, x, y = make(name, dtype=torch.float32)
    expected = {f"net.{n}": f for n, f in fisher_reference(model, x).items()}
    fisher = diagonal_fisher(Autocast(model), batches(x, y, 3))
    assert all(f.dtype == torch.float32 for f in fisher.values())
    for parameter, f in fisher.items():
        error = float((f - expected[parameter]).abs().max() / expected[parameter].max())
        assert error < 0.04, parameter  # bfloat16 has eight bits


def test_autocast_around_the_call_does_not_reach_the_rules() -> None:
    model, x, y = make("mlp", dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = diagonal_fisher(model, [(x, y)])
    assert_same(around, {n.removeprefix("net."): f for n, f in diagonal_fisher(Autocast(model), [(x, y)]).items()})


class Bags(nn.Module):
    """Sparse embeddings, with a rule and without one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4, sparse=True)
        self.bag = nn.EmbeddingBag(6, 4, sparse=True, mode="sum")
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.embed(x).sum(1) + self.bag(x)).tanh())


@pytest.mark.parametrize("labels", ["exact", "empirical", "batch"])
def test_sparse_embeddings(labels: Any) -> None:
    torch.manual_seed(0)
    sparse = Bags().double()
    dense = copy.deepcopy(sparse)
    dense.embed.sparse = dense.bag.sparse = False
    x, y = torch.randint(0, 6, (7, 5)), torch.randint(0, 3, (7,))
    assert_same(*(diagonal_fisher(model, batches(x, y, 3), labels=labels) for model in (sparse, dense)))
    if labels != "batch":
        assert_same(diagonal_fisher(sparse, [(x, y)], labels=labels), fisher_reference(dense, x, y, labels=labels))


def test_old_weight_norm() -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randint(0, 3, (6,))
    z = model(x).detach()
    scores = [functional.one_hot(y, 3) - z.softmax(1)]
    expected = {n: f / 6 for n, f in by_loop(model, dict(model.named_parameters()), x, None, scores).items()}
    assert {"0.weight_g", "0.weight_v"} <= expected.keys()
    assert_same(diagonal_fisher(model, batches(x, y, 4), labels="empirical"), expected)


class Part(nn.Module):
    """A model with a submodule that may be compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: Any = nn.Sequential(nn.Linear(5, 7), nn.Tanh())
        self.out = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("how", ["model", "in place", "submodule", "function"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models(backend: str, how: str, warm: bool) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    model: Any = Part().double()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.zeros(6).long()
    expected = diagonal_fisher(model, batches(x, y, 4))
    if how == "model":
        model = torch.compile(model, backend=backend)
    elif how == "in place":
        model.compile(backend=backend)
    elif how == "submodule":
        model.inner = torch.compile(model.inner, backend=backend)
    else:
        model.forward = torch.compile(model.forward, backend=backend)
    if warm:
        model(x)
    found = diagonal_fisher(model, batches(x, y, 4))
    assert_same({n.replace("_orig_mod.", ""): f for n, f in found.items()}, expected, relative=1e-12)
    assert torch.compiler.is_compiling() is False
    torch.compiler.reset()


class Shy(nn.Linear):
    """Calls its hooks in the first passes only, as compiled code may."""

    shown = 0

    def __call__(self, x: Tensor) -> Tensor:  # type: ignore[override]
        self.shown += 1
        return super().__call__(x) if self.shown < 3 else self.forward(x)


def test_a_layer_whose_hooks_do_not_fire_is_not_lost(caplog: Any) -> None:
    register_fisher_rule(Shy)(lambda layer, x, g: {"weight": g.square().sum(0).T @ x.square()})
    torch.manual_seed(0)
    model = nn.Sequential(Shy(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.zeros(6).long()
    expected = fisher_reference(nn.Sequential(copy.deepcopy(model[0]), *model[1:]), x)
    model[0].shown = 0
    with caplog.at_level("INFO", logger="avl_plugins"):
        assert_same(diagonal_fisher(model, batches(x, y, 2)), expected)
    assert "layer '0' (Shy) does without its rule, which is slower: it is used without being called" in caplog.text


def test_nothing_that_autograd_or_a_rule_returns_is_written_to() -> None:
    # A rule that returns one tensor for two parameters, and in the end the parameter itself.
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.a + self.b)

    @register_fisher_rule(Pair)
    def rule(layer: Pair, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        both = (g * x).square().sum((0, 1))
        return {"a": both, "b": both}

    torch.manual_seed(0)
    model, x, y = nn.Sequential(Pair(), nn.Linear(5, 3)).double(), torch.randn(9, 5).double(), torch.zeros(9).long()
    squared = SquaredGradients(model, lambda z, y: [1 - z.softmax(1)])
    assert squared(x, y, None).keys() == dict(model.named_parameters()).keys()
    assert_same(diagonal_fisher(model, batches(x, y, 4)), fisher_reference(model, x))


def test_tokens_that_come_once_in_the_probe_and_often_later() -> None:
    torch.manual_seed(0)
    model = Tokens(scale_grad_by_freq=True).double()
    x = torch.cat([torch.arange(4).expand(2, 4), torch.zeros(4, 4).long()])  # the rule is checked on the first two
    assert_same(diagonal_fisher(model, [(x, torch.zeros(6).long())]), fisher_reference(model, x))
