"""EWCPlugin with curvature="kronecker"."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from ewc_cases import (
    Growing,
    MultiHead,
    Record,
    ToFloat64,
    assert_same,
    batches_of,
    mlp,
    naive,
    sgd,
    snapshot,
)
from reference import factors_reference, train_reference
from torch import Tensor, nn
from torch.optim import SGD, Adam

from avl_plugins import EWC, CheckpointEvery, EWCPlugin, load_checkpoint
from avl_plugins.metrics.ewc import FisherMass

LAYERS = {"1": ("1.weight", "1.bias"), "3": ("3.weight", "3.bias")}


class Explicit:
    """lambda/2 <W - W_t, G_t (W - W_t) A_t>, every term written; online, factors are summed at the latest centre."""

    def __init__(self, online: bool, gamma: float) -> None:
        self.online, self.root = online, gamma**0.5
        self.terms: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {layer: [] for layer in LAYERS}

    def add(self, model: nn.Module, x: Tensor, lam: float) -> None:
        parameters = snapshot(model)
        for layer, names in LAYERS.items():
            a, g = (factor[0] * lam**0.5 for factor in factors_reference(model, layer, x))
            if self.online and self.terms[layer]:
                ((old_a, old_g, _),) = self.terms[layer]
                self.terms[layer], a, g = [], a + old_a, g + old_g
            if self.online:
                a, g = self.root * a, self.root * g
            self.terms[layer].append((a, g, self.matrix(parameters, names)))

    @staticmethod
    def matrix(parameters: dict[str, Tensor], names: tuple[str, str]) -> Tensor:
        weight, bias = (parameters[n] for n in names)
        return torch.cat([weight, bias.unsqueeze(1)], 1)

    def value(self, parameters: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for layer, names in LAYERS.items():
            for a, g, centre in self.terms[layer]:
                difference = self.matrix(parameters, names) - centre
                total = total + 0.5 * (difference * (g @ difference @ a)).sum()
        return total


@pytest.mark.parametrize(("mode", "gamma"), [("separate", 1.0), ("online", 1.0), ("online", 0.7)])
def test_three_tasks_equal_the_explicit_terms(digits_permuted: Any, mode: Any, gamma: float) -> None:
    model = nn.Sequential(ToFloat64(), *mlp().double())
    slow, penalty = copy.deepcopy(model), Explicit(mode == "online", gamma)
    optimizer = sgd(slow)
    plugin, record = EWCPlugin(ewc_lambda=3.0, curvature="kronecker", mode=mode, gamma=gamma), Record()
    strategy = naive(model, plugin, record)
    expected: list[float] = []
    for experience in digits_permuted.train_stream:
        strategy.train(experience, eval_streams=[], shuffle=False)
        batches = batches_of(experience, 50)
        expected += train_reference(slow, optimizer, batches, penalty)  # type: ignore[arg-type]
        penalty.add(slow, torch.cat([x for x, _ in batches]), 3.0)
    assert record.losses == pytest.approx(expected, rel=1e-6)  # Avalanche's loss is in single precision
    assert_same(snapshot(model), snapshot(slow), rtol=1e-7, atol=1e-10)
    theta = {n: p + 0.01 for n, p in snapshot(model).items()}
    torch.testing.assert_close(plugin.penalty.value(theta), penalty.value(theta), rtol=1e-6, atol=0)
    assert [len(terms) for terms in plugin.penalty.terms.values()] == [1 if mode == "online" else 3] * 2


def test_importances_are_the_diagonal_and_its_mass_the_trace(digits_permuted: Any) -> None:
    plugin, mass = EWCPlugin(ewc_lambda=1.0, curvature="kronecker"), FisherMass()
    strategy = naive(mlp(), plugin)
    strategy.train(digits_permuted.train_stream[0], eval_streams=[])
    assert_same(
        plugin.importances, {n: f for t in plugin.penalty.terms.values() for n, f in t[0].block.diagonal().items()}
    )
    strategy.experience = digits_permuted.train_stream[0]
    mass.after_task(strategy, plugin.importances)
    blocks = [term.block for (term,) in plugin.penalty.terms.values()]
    traces = [float(block.inputs[0].trace() * block.outputs[0].trace()) for block in blocks]
    assert list(mass.result().values()) == pytest.approx(traces, rel=1e-4)


def test_normalise_and_damping(digits_permuted: Any) -> None:
    torch.manual_seed(0)
    model = mlp()
    plain, even, damped = (
        EWCPlugin(ewc_lambda=0.0, curvature="kronecker", **options)
        for options in ({}, {"normalise": True}, {"damping": 0.5})
    )
    naive(model, plain, even, damped).train(digits_permuted.train_stream[0], eval_streams=[])
    mean = torch.cat([f.flatten() for f in plain.importances.values()]).mean()
    assert_same(even.importances, {n: f / mean for n, f in plain.importances.items()}, rtol=1e-4, atol=1e-9)
    for name, f in damped.importances.items():
        assert bool((f > plain.importances[name] + 0.499).all())


def test_include_and_exclude_leave_the_block_of_what_is_protected(digits_permuted: Any) -> None:
    torch.manual_seed(0)
    plain, some = (
        EWCPlugin(ewc_lambda=2.0, curvature="kronecker", **options)
        for options in ({}, {"include": "*.weight", "exclude": "2.*"})
    )
    naive(mlp(), plain, some).train(digits_permuted.train_stream[0], eval_streams=[])
    assert some.penalty.terms.keys() == {"0"}
    assert some.importances.keys() == {"0.weight"}
    own, whole = some.penalty.terms["0"][0].block, plain.penalty.terms["0"][0].block
    assert own.shapes == {"0.weight": (12, 64)}
    assert torch.equal(own.inputs, whole.inputs[:, :64, :64])
    assert torch.equal(own.outputs, whole.outputs)


@pytest.mark.parametrize("mode", ["separate", "online"])
def test_other_tasks_heads_cost_nothing_and_are_left_alone(digits_split: Any, mode: Any) -> None:
    plugin, record = EWCPlugin(ewc_lambda=10.0, curvature="kronecker", mode=mode), Record()
    model = MultiHead()
    strategy = naive(model, plugin, record, optimizer=Adam(model.parameters(), lr=0.01), train_epochs=2)
    strategy.eval(digits_split.test_stream)
    strategy.train(digits_split.train_stream[:3], eval_streams=[])
    heads = [f"head.classifiers.{task}.classifier" for task in range(3)]
    terms = {layer: len(terms) for layer, terms in plugin.penalty.terms.items()}
    assert terms == {"hidden": 3 if mode == "separate" else 1, **dict.fromkeys(heads, 1)}
    for name in (f"{heads[0]}.weight", f"{heads[0]}.bias"):
        assert torch.equal(record.ends[0][name], record.ends[2][name])
        assert dict(model.named_parameters())[name].grad is None


def test_grows_with_the_classifier(digits_classes: Any) -> None:
    for mode in ("separate", "online"):
        plugin = EWCPlugin(ewc_lambda=2.0, curvature="kronecker", mode=mode)  # type: ignore[arg-type]
        model, record = Growing(), Record()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="EWC fails in class-incremental")
            naive(model, plugin, record).train(digits_classes.train_stream, eval_streams=[])
        rows = [term.centre.shape[1] for term in plugin.penalty.terms["head.classifier"]]
        assert rows == ([2, 4, 6, 8, 10] if mode == "separate" else [10])
        assert all(loss < 5 for loss in record.losses)


def test_a_revisited_tasks_term_is_replaced(digits_split: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=2.0, curvature="kronecker", revisits="replace")
    model = MultiHead()
    strategy = naive(model, plugin)
    for task in (0, 1, 0):
        strategy.train(digits_split.train_stream[task], eval_streams=[])
    assert len(plugin.penalty.terms["hidden"]) == 2
    latest = plugin.penalty.terms["hidden"][-1]
    now = {n: p.detach() for n, p in model.named_parameters()}
    assert not latest.difference(now).any()  # the term of task 0 is centred where its second visit ended
    other = EWCPlugin(ewc_lambda=2.0, curvature="kronecker", revisits="replace")
    other.load_state_dict(plugin.state_dict())
    assert torch.equal(other.penalty.value(now), plugin.penalty.value(now))


class Stop(Exception):
    """Stands for a kill."""


class StopAt(SupervisedPlugin):
    """Raises in the given training iteration (counted over the run)."""

    def __init__(self, iteration: int | None) -> None:
        super().__init__()
        self.left = iteration

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Stop


@pytest.mark.parametrize(("mode", "step"), [("separate", "gradient"), ("online", "gradient"), ("online", "proximal")])
def test_is_resumed_inside_an_experience_bit_for_bit(digits_split: Any, tmp_path: Path, mode: Any, step: Any) -> None:
    def build(stop: int | None) -> Any:
        torch.manual_seed(0)
        model = MultiHead()
        plugins = [StopAt(stop), CheckpointEvery(tmp_path / "run.pt", epochs=None, iterations=1)]
        options = {
            "ewc_lambda": 5.0,
            "fisher_labels": "sampled",
            "mode": mode,
            "penalty_step": step,
            "curvature": "kronecker",
        }
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        return naive(model, *plugins, optimizer=optimizer, cls=EWC, **options, train_epochs=2, train_mb_size=20)

    def run(strategy: Any, start: int = 0) -> None:
        for experience in digits_split.train_stream[start:3]:
            strategy.train(experience, eval_streams=[])

    whole = build(None)
    run(whole)
    killed = build(21)
    with pytest.raises(Stop):
        run(killed)
    again = build(None)
    torch.manual_seed(1)
    run(again, load_checkpoint(again, tmp_path / "run.pt"))
    assert_same(snapshot(again.model), snapshot(whole.model), rtol=0, atol=0)
    assert_same(again.ewc.importances, whole.ewc.importances, rtol=0, atol=0)
    for layer, terms in whole.ewc.penalty.terms.items():
        for term, other in zip(terms, again.ewc.penalty.terms[layer], strict=True):
            for name in ("inputs", "outputs"):
                assert torch.equal(getattr(term.block, name), getattr(other.block, name))
            assert torch.equal(term.centre, other.centre)


def test_the_proximal_step_holds_where_the_gradient_diverges(digits_permuted: Any) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"ewc_lambda": 1e5, "curvature": "kronecker", "mode": "online"}
    record = Record()
    naive(mlp(), EWCPlugin(**options, penalty_step="proximal"), record).train(
        digits_permuted.train_stream, eval_streams=[]
    )
    assert max(record.losses) < 10
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="will diverge"), pytest.raises(ValueError, match=r"the loss is (nan|inf)"):
        naive(mlp(), EWCPlugin(**options), train_epochs=30).train(digits_permuted.train_stream, eval_streams=[])


def test_a_state_of_the_other_curvature_is_refused(digits_permuted: Any) -> None:
    plugins = [EWCPlugin(ewc_lambda=1.0, curvature=c) for c in ("diagonal", "kronecker")]  # type: ignore[arg-type]
    naive(mlp(), *plugins).train(digits_permuted.train_stream[0], eval_streams=[])
    for plugin, other in (plugins, plugins[::-1]):
        before = other.state_dict()
        with pytest.raises(ValueError, match=f"saved with curvature='{plugin.curvature}'"):
            other.load_state_dict(plugin.state_dict())
        assert other.state_dict()["penalty"] == before["penalty"]
    diagonal, kronecker = plugins
    state = diagonal.state_dict()
    del state["curvature"]  # saved before there was another
    EWCPlugin(ewc_lambda=1.0).load_state_dict(state)
    with pytest.raises(ValueError, match="saved with curvature='diagonal'"):
        kronecker.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"curvature": "kfac"}, ValueError, "curvature must be 'diagonal' or 'kronecker', got 'kfac'"),
        (
            {"curvature": "kronecker", "fisher_labels": "batch"},
            ValueError,
            "fisher_labels='batch' has no",
        ),
        ({"curvature": "kronecker", "importance": "uniform"}, ValueError, "importance='uniform' is diagonal"),
        (
            {"curvature": "kronecker", "penalty_step": "proximal"},
            ValueError,
            "penalty_step='proximal' .* mode='online'",
        ),
        ({"curvature": "kronecker", "damping": -1.0}, ValueError, "damping must be a number >= 0, got -1.0"),
        ({"curvature": "kronecker", "damping": "1"}, TypeError, "damping must be a number >= 0, got '1'"),
        ({"damping": 0.1}, ValueError, "damping=0.1 has no effect with curvature='diagonal'"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        EWCPlugin(ewc_lambda=1.0, **options)


def test_proximal_refuses_other_optimizers_before_training(digits_permuted: Any) -> None:
    model = mlp()
    plugin = EWCPlugin(ewc_lambda=1.0, curvature="kronecker", mode="online", penalty_step="proximal")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"penalty_step='proximal' with Kronecker factors needs .*SGD, not Adam"):
        naive(model, plugin, optimizer=Adam(model.parameters())).train(digits_permuted.train_stream[0], eval_streams=[])
    assert_same(snapshot(model), before, rtol=0, atol=0)
