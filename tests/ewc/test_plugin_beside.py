"""EWCPlugin beside other plugins, while models grow, in online streams and where gradient steps diverge."""

import warnings
from typing import Any

import avalanche.training.plugins as stock
import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Cumulative, Naive
from ewc_cases import Growing, Record, assert_same, data_of, mlp, naive, snapshot
from reference import QuadraticReference, fisher_reference
from torch import Tensor, nn

from avl_plugins.ewc.plugin import EWCPlugin


def test_leaves_gradients_modes_buffers_and_random_state_alone(digits_permuted: Any) -> None:
    # Mistake 6. A frozen BatchNorm stays in eval mode, dropout does not enter, the global generator does not move.
    model = nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 10))
    plugin = EWCPlugin(ewc_lambda=1.0, fisher_labels="sampled", max_samples=50)
    strategy = naive(model, plugin)
    strategy.train(digits_permuted.train_stream[0], eval_streams=[])
    strategy.experience = digits_permuted.train_stream[1]
    model.train()
    model[1].eval()
    model[1].bias.requires_grad_(False)
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    state, parameters = torch.get_rng_state(), snapshot(model)
    plugin.after_training_exp(strategy)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model] == [True, False, True, True, True]
    assert_same(snapshot(model), parameters, rtol=0, atol=0)
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert torch.equal(p.grad, grads[name])
    assert "1.bias" not in plugin.importances


def test_grows_with_the_classifier(digits_classes: Any) -> None:
    plugin, explicit = EWCPlugin(ewc_lambda=20.0), QuadraticReference()
    model = Growing()
    record = Record()
    strategy = naive(model, plugin, record)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="EWC fails in class-incremental")
        for experience in digits_classes.train_stream:
            strategy.train(experience, eval_streams=[])
            explicit.add({n: f.double() for n, f in plugin.importances.items()}, record.ends[-1], 20.0)
    assert plugin.penalty.precision["head.classifier.weight"].shape == (10, 12)
    theta = {n: p.double() + 0.1 for n, p in record.ends[-1].items()}
    torch.testing.assert_close(plugin.penalty.value(theta), explicit.value(theta), rtol=1e-5, atol=0)


@pytest.mark.parametrize("cls", [Naive, Cumulative])
def test_works_in_stock_strategies_beside_stock_plugins(digits_permuted: Any, cls: Any) -> None:
    plugins = [stock.ReplayPlugin(50), EWCPlugin(ewc_lambda=10.0), stock.LwFPlugin(), stock.EWCPlugin(0.1)]
    strategy = naive(mlp(), *plugins, cls=cls, eval_every=1)
    strategy.train(digits_permuted.train_stream, eval_streams=[digits_permuted.test_stream])
    assert plugins[1].last_penalty > 0
    assert torch.isfinite(strategy.model[0].weight).all()


class Clip(SupervisedPlugin):
    """Gradient clipping as users write it."""

    norms: list[float]

    def __init__(self) -> None:
        super().__init__()
        self.norms = []

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        nn.utils.clip_grad_norm_(strategy.model.parameters(), 0.01)
        self.norms.append(float(nn.utils.get_total_norm([p.grad for p in strategy.model.parameters()])))


def test_clipping_covers_the_penalty_wherever_it_stands(digits_permuted: Any) -> None:
    ends = []
    for first in (True, False):
        torch.manual_seed(0)
        model, plugin, clip = mlp(), EWCPlugin(ewc_lambda=100.0), Clip()
        naive(model, *([clip, plugin] if first else [plugin, clip])).train(
            digits_permuted.train_stream[:2], eval_streams=[]
        )
        assert max(clip.norms) < 0.0101
        ends.append(snapshot(model))
    assert_same(*ends, rtol=0, atol=0)


class Detour(torch.autograd.Function):
    """Hides the parameters behind a graph of its own, as re-entrant checkpointing does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dummy: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer, ctx.x = layer, x.detach()
        return layer(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            ctx.layer(ctx.x).backward(grad)
        return None, grad.sum() * 0, None


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 12), nn.Linear(12, 10)
        self.detour = True

    def forward(self, x: Tensor) -> Tensor:
        h = Detour.apply(x, self.last.bias[0], self.first) if self.detour and self.training else self.first(x)
        return self.last(torch.relu(h))


@pytest.mark.parametrize("curvature", ["diagonal", "kronecker"])
def test_parameters_hidden_from_the_graph_are_still_penalised(digits_permuted: Any, curvature: Any) -> None:
    ends = []
    for detour in (True, False):
        torch.manual_seed(0)
        model = Hidden()
        model.detour = detour
        plugin = EWCPlugin(ewc_lambda=50.0, curvature=curvature)
        naive(model, plugin).train(digits_permuted.train_stream, eval_streams=[])
        ends.append(snapshot(model))
    assert_same(*ends, rtol=1e-5, atol=1e-6)


def test_proximal_holds_where_the_gradient_diverges(digits_permuted: Any) -> None:
    torch.manual_seed(0)
    plugin, record = EWCPlugin(ewc_lambda=1e5, penalty_step="proximal"), Record()
    naive(mlp(), plugin, record).train(digits_permuted.train_stream, eval_streams=[])
    assert max(record.losses) < 10
    torch.manual_seed(0)
    with (
        pytest.warns(UserWarning, match="will diverge"),
        pytest.raises(ValueError, match=r"the loss is (inf|nan) in experience"),
    ):
        naive(mlp(), EWCPlugin(ewc_lambda=1e5), train_epochs=30).train(digits_permuted.train_stream, eval_streams=[])


def test_online_streams_consolidate_at_task_boundaries(digits_permuted: Any) -> None:
    stream = split_online_stream(digits_permuted.train_stream[:2], experience_size=100, access_task_boundaries=True)
    model, plugin, ends = mlp(), EWCPlugin(ewc_lambda=1.0), []
    strategy = naive(model, plugin)
    for experience in stream:
        strategy.train(experience, eval_streams=[])
        ends.append(plugin.importances)
    assert [bool(f) for f in ends[:4]] == [False, False, False, True]
    assert ends[3] is ends[6] is not ends[7]
    x, _ = data_of(digits_permuted.train_stream[1])
    expected = fisher_reference(model, x, labels="exact")
    assert_same(plugin.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-3, atol=1e-8)
