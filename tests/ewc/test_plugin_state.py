"""Saving and resuming EWCPlugin, and the strategy made of it."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from ewc_cases import (
    MultiHead,
    assert_same,
    mlp,
    naive,
    sgd,
    snapshot,
    trained,
)
from torch import nn
from torch.optim import Adam

from avl_plugins.checkpoint.file import load_checkpoint
from avl_plugins.checkpoint.resume import CheckpointEvery
from avl_plugins.ewc.plugin import EWCPlugin
from avl_plugins.ewc.strategy import EWC


@pytest.mark.parametrize("mode", ["separate", "online"])
def test_a_run_goes_on_from_a_saved_state(digits_permuted: Any, mode: Any) -> None:
    def build() -> tuple[Any, EWCPlugin]:
        torch.manual_seed(0)
        plugin = EWCPlugin(ewc_lambda=10.0, fisher_labels="sampled", mode=mode, max_samples=100)
        return naive(mlp(), plugin), plugin

    whole, plugin = build()
    whole.train(digits_permuted.train_stream[:2], eval_streams=[])
    state, weights, rng = plugin.state_dict(), copy.deepcopy(whole.model.state_dict()), torch.get_rng_state()
    whole.train(digits_permuted.train_stream[2], eval_streams=[])

    fresh, other = build()
    fresh.model.load_state_dict(weights)
    other.load_state_dict(torch.load(_saved(state), weights_only=True))
    torch.set_rng_state(rng)
    fresh.train(digits_permuted.train_stream[2], eval_streams=[])
    assert_same(snapshot(fresh.model), snapshot(whole.model), rtol=0, atol=0)
    assert_same(other.importances, plugin.importances, rtol=0, atol=0)
    assert_same(other.penalty.precision, plugin.penalty.precision, rtol=0, atol=0)
    assert torch.equal(other.last_penalty, plugin.last_penalty)


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


@pytest.mark.parametrize("step", ["gradient", "proximal"])
def test_ewc_is_resumed_inside_an_experience(digits_split: Any, tmp_path: Path, step: Any) -> None:
    # Multi-head under Adam: a head that got a zero gradient instead of none would show in its momentum.
    def build(stop: int | None) -> Any:
        torch.manual_seed(0)
        model = MultiHead()
        plugins = [StopAt(stop), CheckpointEvery(tmp_path / "run.pt", epochs=None, iterations=1)]
        options = {
            "ewc_lambda": 50.0,
            "fisher_labels": "sampled",
            "penalty_step": step,
            "train_epochs": 2,
            "train_mb_size": 20,
        }
        return naive(model, *plugins, optimizer=Adam(model.parameters(), lr=0.01), cls=EWC, **options)

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
    assert_same(again.ewc.penalty.precision, whole.ewc.penalty.precision, rtol=0, atol=0)
    assert again.ewc.penalty.constant == whole.ewc.penalty.constant


def _saved(state: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_load_refuses_other_plugins_names_and_shapes(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0)
    trained(digits_permuted, plugin)
    state = plugin.state_dict()
    with pytest.raises(ValueError, match="mode='separate'"):
        EWCPlugin(ewc_lambda=1.0, mode="online").load_state_dict(state)
    with pytest.raises(ValueError, match="not the state of a EWCPlugin: entry 'mode' is missing"):
        plugin.load_state_dict({"penalty": state["penalty"]})
    broken = {**state, "penalty": {**state["penalty"], "constant": float("nan")}}
    fresh = EWCPlugin(ewc_lambda=1.0)
    with pytest.raises(ValueError, match="constant"):
        fresh.load_state_dict(broken)
    assert fresh.importances == {}
    for model, message in (
        (nn.Sequential(nn.Linear(64, 12)), "'2.weight' is protected"),
        (nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10)), r"'0.weight' has shape \(6, 64\)"),
    ):
        fresh.load_state_dict(state)
        before = snapshot(model)
        with pytest.raises(ValueError, match=message):
            naive(model, fresh).train(digits_permuted.train_stream[1], eval_streams=[])
        assert_same(snapshot(model), before, rtol=0, atol=0)


def test_strategy_is_the_template_plus_the_plugin(digits_permuted: Any) -> None:
    ends = []
    for ready in (True, False):
        torch.manual_seed(0)
        model = mlp()
        if ready:
            given: list[Any] = []
            strategy = naive(model, cls=EWC, ewc_lambda=10.0, fisher_labels="empirical")
            assert isinstance(strategy.ewc, EWCPlugin)
            assert given == []
        else:
            strategy = naive(model, EWCPlugin(ewc_lambda=10.0, fisher_labels="empirical"))
        strategy.train(digits_permuted.train_stream[:2], eval_streams=[])
        ends.append(snapshot(model))
    assert_same(*ends, rtol=0, atol=0)
    with pytest.raises(TypeError, match="unexpected keyword argument: lables"):
        naive(mlp(), cls=EWC, ewc_lambda=1.0, lables="exact")


def test_strategy_explains_avalanches_arguments_too() -> None:
    model = mlp()
    options = {"model": model, "optimizer": sgd(model), "ewc_lambda": 1.0}
    with pytest.raises(TypeError, match="decay_factor is called gamma here"):
        EWC(**options, decay_factor=0.5)
    with pytest.raises(TypeError, match="keep_importance_data does not exist here"):
        EWC(**options, keep_importance_data=True)
    for positional in ((model, sgd(model), nn.CrossEntropyLoss(), 0.4), (model, sgd(model), 0.4)):
        with pytest.raises(TypeError, match=r"positional: write EWC\(model=..., optimizer=..., ewc_lambda=...\)"):
            EWC(*positional)  # type: ignore[misc]

    class Own(EWC):
        def __init__(self, strength: float, **kwargs: Any) -> None:
            super().__init__(ewc_lambda=strength, **kwargs)

    with pytest.warns(UserWarning, match="Avalanche is transitioning"):
        own = Own(0.4, model=model, optimizer=sgd(model))
    assert own.ewc.ewc_lambda == 0.4
