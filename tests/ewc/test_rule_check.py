"""Rules are given up where they are wrong, and nowhere else."""

import logging
from typing import Any

import pytest
import torch
from fisher_cases import OutsideItsLayer, SequenceFirst, Tied, assert_same, make
from reference import fisher_reference
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model

from avl_plugins import diagonal_fisher, register_fisher_rule
from avl_plugins.ewc.rules import linear

pytestmark = pytest.mark.slow

NETS = (
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
)


def net(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    """Make a net of ten classes in evaluation mode, with running statistics of three batches, and two images."""
    torch.manual_seed(seed)
    size = 64 if name == "resnet18" else 32
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = get_model(name, weights=None, num_classes=10, **options)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, size, size))
    return model.eval(), torch.randn(2, 3, size, size)


@pytest.mark.parametrize("name", NETS)
def test_no_rule_of_a_usual_net_is_lost(name: str, caplog: Any) -> None:
    from avl_plugins.ewc.per_sample import SquaredGradients

    for seed in range(5):
        model, x = net(name, seed)
        squared = SquaredGradients(model, lambda z, y: [])
        with caplog.at_level(logging.INFO, logger="avl_plugins"):
            squared(x, None, None)
        assert not squared.plans[None].rest, seed
        assert not caplog.records
        assert len(squared.plans[None].rules) == sum(bool(list(m.parameters(recurse=False))) for m in model.modules())


class Rounded(nn.Module):
    """Rounds as kernels do, in one way for two samples together and in another for each alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)
        with torch.no_grad():
            self.first.weight[0], self.first.bias[0] = 0, 1e-10  # where that turns the ReLU over

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(functional.relu(h + torch.finfo(h.dtype).eps * (len(x) - 1.5)))


def test_a_relu_that_rounding_turns_over_takes_no_rule_away(caplog: Any) -> None:
    model, x = Rounded(), torch.randn(6, 5)
    with caplog.at_level(logging.INFO, logger="avl_plugins"):
        diagonal_fisher(model, [(x, torch.zeros(6).long())])
    assert not caplog.records


class Wrong(nn.Linear):
    """A linear layer whose rule is made wrong below."""


def shift_of(factor: float, dim: int) -> Any:
    """Make a rule that errs by a factor in one row or column of the weight, or in one entry of the bias."""

    def rule(layer: nn.Linear, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        sums = {name: total.clone() for name, total in linear(layer, x, g).items()}
        if dim == 2:
            sums["bias"][-1] *= factor
        else:
            sums["weight"].select(dim, -1).mul_(factor)
        return sums

    return rule


def transposed(layer: nn.Linear, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    sums = linear(layer, x, g)
    return sums | {"weight": sums["weight"].T}


def over_the_batch(layer: nn.Linear, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Square the sum over samples, not the sum of squares."""
    return {"weight": torch.einsum("cno,ni->coi", g, x).square().sum(0), "bias": g.sum(1).square().sum(0)}


def no_bias(layer: nn.Linear, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    return {"weight": linear(layer, x, g)["weight"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "rule",
    [*(shift_of(factor, dim) for factor in (0.97, 1.03) for dim in (0, 1, 2)), transposed, over_the_batch, no_bias],
)
def test_wrong_rules_are_given_up_and_named(rule: Any, dtype: torch.dtype, caplog: Any) -> None:
    register_fisher_rule(Wrong)(rule)
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), Wrong(5, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
        x = torch.randn(7, 6, dtype=dtype)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="avl_plugins"):
            fisher = diagonal_fisher(model, [(x, torch.zeros(7).long())])
        assert_same(fisher, fisher_reference(model, x))
        assert [r.getMessage().split(" by ")[0] for r in caplog.records] == [
            "the Fisher of layer '2' (Wrong) does without its rule, which is slower: it differs from the definition"
        ]


class InOneType(nn.Module):
    """Works in its own dtype only: a plain attribute does not follow the parameters."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.mix = inner, torch.randn(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) @ self.mix


@pytest.mark.parametrize(("inner", "lost"), [(OutsideItsLayer, "inner.layer"), (Tied, "inner.first")])
def test_where_float64_is_not_possible_it_is_decided_in_the_models_own(inner: Any, lost: str, caplog: Any) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        model, x = InOneType(inner()), torch.randn(7, 5)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="avl_plugins"):
            fisher = diagonal_fisher(model, [(x, torch.zeros(7).long())])
        model.mix, mix = model.mix.double(), model.mix
        assert_same(fisher, fisher_reference(model, x))
        model.mix = mix
        assert "the model does not run in float64" in caplog.text
        assert [r.args[0] for r in caplog.records if "does without its rule" in r.msg] == [lost]  # type: ignore[index]


def test_a_rule_that_rounding_has_refused_once_is_tried_again(monkeypatch: Any, caplog: Any) -> None:
    from avl_plugins.ewc import rule_check

    right, drawn = rule_check.by_loop, []

    def unlucky(*args: Any) -> dict[str, Tensor]:
        drawn.append(sorted(args[1]))
        factor = 1.01 if len(drawn) == 1 else 1.0
        return {name: total * (factor if name == "2.weight" else 1.0) for name, total in right(*args).items()}

    monkeypatch.setattr(rule_check, "by_loop", unlucky)
    model, x, y = make("mlp")
    with caplog.at_level(logging.INFO, logger="avl_plugins"):
        diagonal_fisher(model, [(x, y)])
    assert drawn == [["0.bias", "0.weight", "2.bias", "2.weight"], ["2.bias", "2.weight"]]
    assert not caplog.records


def test_the_check_leaves_the_model_as_it_was() -> None:
    model, x, y = make("mlp with batch norm and dropout", dtype=torch.float32)
    tensors = {n: (t, t.data_ptr(), t.clone()) for n, t in (*model.named_parameters(), *model.named_buffers())}
    diagonal_fisher(model, [(x, y)])
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        same, place, value = tensors[name]
        assert tensor is same
        assert tensor.data_ptr() == place
        assert torch.equal(tensor, value)


def test_reasons_are_named(caplog: Any) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.out = nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.shared(functional.relu(self.shared(x))))

    for model, x, reason in (
        (Twice(), torch.randn(4, 5), "layer 'shared' (Linear) .* it is called 2 times in a forward pass"),
        (
            SequenceFirst(),
            torch.randn(4, 3, 4),
            "layer 'layer' (Linear) .* it is not called with one tensor whose rows",
        ),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="avl_plugins"):
            diagonal_fisher(model, [(x, torch.zeros(4).long())])
        assert len(caplog.records) == 1
        start, end = reason.split(" .* ")
        assert start in caplog.text
        assert end in caplog.text
