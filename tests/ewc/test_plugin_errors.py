"""What EWCPlugin refuses, leaving everything as it was, and what it warns of."""

import copy
import warnings
from typing import Any

import pytest
import torch
from avalanche.training.templates import SupervisedMetaLearningTemplate
from ewc_cases import (
    MultiHead,
    assert_same,
    mlp,
    naive,
    snapshot,
    trained,
)
from torch import Tensor, nn
from torch.optim import SGD, Adam

from avl_plugins.ewc.plugin import EWCPlugin


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"ewc_lambda": -1.0}, ValueError, "ewc_lambda must be finite and >= 0"),
        ({"ewc_lambda": float("nan")}, ValueError, "ewc_lambda"),
        ({"ewc_lambda": float("inf")}, ValueError, "ewc_lambda"),
        ({"ewc_lambda": "1"}, TypeError, "ewc_lambda must be a number"),
        ({"labels": "true"}, ValueError, "labels must be one of 'exact'"),
        ({"importance": "l2"}, ValueError, "importance must be"),
        ({"mode": "huszar"}, ValueError, "mode='online', gamma=1.0"),
        ({"mode": "online", "gamma": 0}, ValueError, "gamma must be finite and > 0 and <= 1"),
        ({"mode": "online", "gamma": 1.1}, ValueError, "gamma"),
        ({"gamma": 0.9}, ValueError, "has no effect with mode='separate'"),
        ({"step": "implicit"}, ValueError, "step must be"),
        ({"likelihood": "poisson"}, ValueError, "likelihood must be"),
        ({"max_samples": 0}, ValueError, "max_samples"),
        ({"fisher_batch_size": 2.5}, TypeError, "fisher_batch_size must be an integer"),
        ({"decay_factor": 0.9}, TypeError, "gamma"),
        ({"keep_importance_data": True}, TypeError, "Leave it out"),
    ],
)
def test_arguments_are_checked(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        EWCPlugin(**{"ewc_lambda": 1.0, **kwargs})


def test_positional_lambda_is_explained() -> None:
    with pytest.raises(TypeError, match=r"write EWCPlugin\(ewc_lambda=...\)"):
        EWCPlugin(0.4)


def state_of(strategy: Any, plugin: EWCPlugin) -> dict[str, Tensor]:
    """All that an error must leave alone."""
    state = {f"model.{n}": p for n, p in snapshot(strategy.model).items()}
    state |= {f"grad.{n}": p.grad.clone() for n, p in strategy.model.named_parameters() if p.grad is not None}
    state |= {f"mode.{n}": torch.tensor(m.training) for n, m in strategy.model.named_modules()}
    for part in ("precision", "centre"):
        state |= {f"{part}.{n}": t.clone() for n, t in plugin.state_dict()["penalty"][part].items()}
    state |= {f"importance.{n}": t.clone() for n, t in plugin.importances.items()}
    generator = plugin.state_dict()["generator"]
    return state | {
        "constant": torch.tensor(plugin.penalty.constant),
        "rng": torch.get_rng_state(),
        "generator": torch.zeros(0) if generator is None else generator,
    }


@pytest.mark.parametrize("labels", ["exact", "sampled"])
def test_nan_parameters_give_an_error_and_change_nothing(digits_permuted: Any, labels: str) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0, labels=labels, max_samples=20)
    strategy = trained(digits_permuted, plugin)
    with torch.no_grad():
        strategy.model[0].weight[0, 0] = float("nan")
    before = state_of(strategy, plugin)
    with pytest.raises(ValueError, match=r"not finite|NaN or infinite"):
        plugin.after_training_exp(strategy)
    assert_same(state_of(strategy, plugin), before, rtol=0, atol=0, equal_nan=True)


def test_overflow_in_the_merge_changes_nothing(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0, labels="sampled")
    strategy = trained(digits_permuted, plugin)
    plugin.ewc_lambda = 1e300
    before = state_of(strategy, plugin)
    with pytest.raises(ValueError, match="overflows"):
        plugin.after_training_exp(strategy)
    assert_same(state_of(strategy, plugin), before, rtol=0, atol=0)


def test_nan_loss_is_named_before_any_step(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0)
    strategy = trained(digits_permuted, plugin)
    strategy.loss = torch.full((1,), float("nan"), requires_grad=True) + 0
    before = state_of(strategy, plugin)
    with pytest.raises(ValueError, match=r"the loss is not finite in experience 1, step .*: nan plus EWC's penalty"):
        plugin.before_backward(strategy)
    assert_same(state_of(strategy, plugin), before, rtol=0, atol=0)


def test_an_empty_experience_is_named(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0)
    experience = copy.copy(digits_permuted.train_stream[0])
    experience.dataset = experience.dataset.subset([])
    with pytest.raises(ValueError, match="experience 0 is empty"):
        naive(mlp(), plugin).train(experience, eval_streams=[])
    nothing = EWCPlugin(ewc_lambda=1.0, fisher_data=lambda strategy: [])
    with pytest.raises(ValueError, match="at least one sample"):
        naive(mlp(), nothing).train(digits_permuted.train_stream[0], eval_streams=[])
    assert not nothing.penalty.precision


def test_models_and_selections_with_nothing_to_protect(digits_permuted: Any) -> None:
    experience = digits_permuted.train_stream[0]
    frozen = mlp().requires_grad_(False)
    optimizer = SGD(frozen.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no parameters that need gradients"):
        naive(frozen, EWCPlugin(ewc_lambda=1.0), optimizer=optimizer).train(experience, eval_streams=[])
    with pytest.raises(ValueError, match="include pattern 'head' matches none"):
        naive(mlp(), EWCPlugin(ewc_lambda=1.0, include="head")).train(experience, eval_streams=[])
    with pytest.raises(ValueError, match="leave none"):
        naive(mlp(), EWCPlugin(ewc_lambda=1.0, exclude="*")).train(experience, eval_streams=[])
    dead = mlp()
    nn.init.zeros_(dead[2].weight)
    with pytest.raises(ValueError, match="experience 0 is zero for every protected parameter"):
        naive(dead, EWCPlugin(ewc_lambda=1.0, include="0.*"), train_epochs=0).train(experience, eval_streams=[])


def test_proximal_refuses_unknown_optimizers_before_training(digits_permuted: Any) -> None:
    model = mlp()
    before = snapshot(model)
    strategy = naive(
        model, EWCPlugin(ewc_lambda=1.0, step="proximal"), optimizer=torch.optim.Adagrad(model.parameters())
    )
    with pytest.raises(ValueError, match="not Adagrad"):
        strategy.train(digits_permuted.train_stream[0], eval_streams=[])
    assert_same(snapshot(model), before, rtol=0, atol=0)


class Meta(SupervisedMetaLearningTemplate):
    """Inner and outer updates would be here."""


def test_refuses_a_template_that_would_never_apply_the_penalty(digits_permuted: Any) -> None:
    strategy = naive(mlp(), EWCPlugin(ewc_lambda=1.0), cls=Meta)
    with pytest.raises(ValueError, match="Meta is a meta-learning strategy"):
        strategy.train(digits_permuted.train_stream[0], eval_streams=[])


def test_warns_once_of_a_rate_that_is_too_high(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0, importance="uniform")
    strategy = naive(mlp(), plugin, train_epochs=0)
    strategy.train(digits_permuted.train_stream[0], eval_streams=[])
    plugin.penalty.precision = {n: 25.0 * a for n, a in plugin.penalty.precision.items()}
    with pytest.warns(UserWarning, match=r"0.1 \* 25 = 2.5 > 2 .* step='proximal'") as seen:
        strategy.train(digits_permuted.train_stream[1:], eval_streams=[])
    assert len(seen) == 1
    model = mlp()
    quiet = EWCPlugin(ewc_lambda=1e9, importance="uniform")
    strategy = naive(model, quiet, train_epochs=0, optimizer=Adam(model.parameters(), lr=0.1))
    strategy.train(digits_permuted.train_stream, eval_streams=[])


def test_warns_once_of_class_incremental_training_only(digits_classes: Any, digits_split: Any) -> None:
    with pytest.warns(UserWarning, match=r"new classes \[2, 3\] under task label 0") as seen:
        naive(mlp(), EWCPlugin(ewc_lambda=1.0)).train(digits_classes.train_stream[:3], eval_streams=[])
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strategy = naive(MultiHead(), EWCPlugin(ewc_lambda=1.0))
        strategy.train(digits_split.train_stream[:2], eval_streams=[])
        strategy.train(digits_split.train_stream[0], eval_streams=[])  # a task again is not a new class
