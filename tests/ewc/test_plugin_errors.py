"""What EWCPlugin refuses, leaving everything as it was, and what it warns of."""

import copy
import pickle
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
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
        ({"ewc_lambda": -1.0}, ValueError, "ewc_lambda must be a number >= 0, got -1.0"),
        ({"ewc_lambda": float("nan")}, ValueError, "ewc_lambda must be a number >= 0, got nan"),
        ({"ewc_lambda": float("inf")}, ValueError, "ewc_lambda must be a number >= 0, got inf"),
        ({"ewc_lambda": "1"}, TypeError, "ewc_lambda must be a number >= 0, got '1'"),
        ({"ewc_lambda": True}, TypeError, "ewc_lambda must be a number >= 0, got True"),
        ({"ewc_lambda": None}, TypeError, "ewc_lambda must be a number >= 0, got None"),
        (
            {"fisher_labels": "true"},
            ValueError,
            "fisher_labels must be 'exact', 'sampled', 'empirical' or 'batch', got 'true'",
        ),
        ({"fisher_labels": None}, ValueError, "fisher_labels must be 'exact'"),
        ({"importance": "l2"}, ValueError, "importance must be 'fisher' or 'uniform', got 'l2'"),
        ({"mode": "huszar"}, ValueError, "mode='online', gamma=1.0"),
        ({"mode": "online", "gamma": 0}, ValueError, "gamma must be a number > 0 and <= 1, got 0"),
        ({"mode": "online", "gamma": 1.1}, ValueError, "gamma must be a number > 0 and <= 1, got 1.1"),
        ({"mode": "online", "gamma": True}, TypeError, "gamma must be a number > 0 and <= 1, got True"),
        ({"gamma": 0.9}, ValueError, "has no effect with mode='separate'"),
        ({"normalise": 1}, TypeError, "normalise must be True or False, got 1"),
        ({"normalise": None}, TypeError, "normalise must be True or False, got None"),
        ({"revisits": "keep"}, ValueError, "revisits must be 'add' or 'replace', got 'keep'"),
        ({"protect": True}, TypeError, "protect must be a function strategy -> bool, or None for always, got True"),
        ({"max_samples": 0}, ValueError, "max_samples must be an integer >= 1, or None for all, got 0"),
        ({"max_samples": 1.5}, TypeError, "max_samples must be an integer >= 1, or None for all, got 1.5"),
        ({"max_samples": True}, TypeError, "max_samples must be an integer >= 1, or None for all, got True"),
        ({"fisher_data": 3}, TypeError, "fisher_data must be a function strategy -> batches, or None .* got 3"),
        ({"fisher_data": []}, TypeError, r"fisher_data must be a function strategy -> batches, or None .* got \[\]"),
        ({"fisher_batch_size": 2.5}, TypeError, "fisher_batch_size must be an integer >= 1"),
        ({"fisher_batch_size": -1}, ValueError, "fisher_batch_size must be an integer >= 1"),
        ({"likelihood": "poisson"}, ValueError, "likelihood must be 'categorical', 'bernoulli' or 'gaussian', got"),
        ({"likelihood": 3}, ValueError, "likelihood must be 'categorical', 'bernoulli' or 'gaussian', got 3"),
        ({"penalty_step": "implicit"}, ValueError, "penalty_step must be 'gradient' or 'proximal', got 'implicit'"),
        ({"include": 3}, TypeError, "include must be glob patterns over parameter names, a function .* got 3"),
        ({"include": [3]}, TypeError, r"include must be glob patterns .* got \[3\]"),
        ({"include": []}, ValueError, r"include must be one pattern or more, or None, got \[\]"),
        ({"exclude": True}, TypeError, "exclude must be glob patterns over parameter names, a function .* got True"),
        ({"exclude": ()}, ValueError, r"exclude must be one pattern or more, or None, got \(\)"),
        ({"zero_fisher": "ignore"}, ValueError, "zero_fisher must be 'warn' or 'raise', got 'ignore'"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0"),
        ({"seed": 1.5}, TypeError, "seed must be an integer >= 0"),
        ({"seed": True}, TypeError, "seed must be an integer >= 0"),
        ({"decay_factor": 0.9}, TypeError, "gamma"),
        ({"keep_importance_data": True}, TypeError, "Leave it out"),
    ],
)
def test_arguments_are_checked(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        EWCPlugin(**{"ewc_lambda": 1.0, **kwargs})


def test_numbers_of_numpy_are_numbers(digits_permuted: Any) -> None:
    plugin = EWCPlugin(
        ewc_lambda=np.float32(2), max_samples=np.int64(30), seed=np.int64(3), fisher_batch_size=np.int64(7)
    )
    same = EWCPlugin(ewc_lambda=2.0, max_samples=30, seed=3, fisher_batch_size=7)
    naive(mlp(), plugin, same).train(digits_permuted.train_stream[0], eval_streams=[])
    assert_same(plugin.penalty.precision, same.penalty.precision, rtol=0, atol=0)


def test_lambda_that_is_set_later_is_checked_before_the_training(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0)
    plugin.ewc_lambda = float("nan")
    with pytest.raises(ValueError, match="ewc_lambda must be a number >= 0, got nan"):
        naive(mlp(), plugin).train(digits_permuted.train_stream[0], eval_streams=[])
    assert plugin.tasks == 0


def test_a_selection_from_a_generator_can_be_used_again(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0, include=(name for name in ("0.*", "2.bias")), exclude=iter(["0.bias"]))
    naive(mlp(), plugin).train(digits_permuted.train_stream[:2], eval_streams=[])
    assert set(plugin.importances) == {"0.weight", "2.bias"}


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
    plugin = EWCPlugin(ewc_lambda=1.0, fisher_labels=labels, max_samples=20)
    strategy = trained(digits_permuted, plugin)
    with torch.no_grad():
        strategy.model[0].weight[0, 0] = float("nan")
    before = state_of(strategy, plugin)
    with pytest.raises(ValueError, match=r"not finite|NaN or infinite"):
        plugin.after_training_exp(strategy)
    assert_same(state_of(strategy, plugin), before, rtol=0, atol=0, equal_nan=True)


def test_overflow_in_the_merge_changes_nothing(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0, fisher_labels="sampled")
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
    with pytest.raises(ValueError, match=r"the loss is nan in experience 1, step .* penalty_step='proximal' is stable"):
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


def test_proximal_refuses_unknown_optimizers_before_training(digits_permuted: Any) -> None:
    model = mlp()
    before = snapshot(model)
    strategy = naive(
        model, EWCPlugin(ewc_lambda=1.0, penalty_step="proximal"), optimizer=torch.optim.Adagrad(model.parameters())
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


def test_nan_in_the_data_is_named(digits_permuted: Any) -> None:
    plugin, model = EWCPlugin(ewc_lambda=1.0), mlp()
    strategy = naive(model, plugin)

    class Spoil(SupervisedPlugin):
        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            strategy.mbatch[0][0, 0] = float("inf")

    strategy.plugins.insert(0, Spoil())
    before = snapshot(model)
    with pytest.raises(ValueError, match="inputs of experience 0, step 0 have NaN or infinite values"):
        strategy.train(digits_permuted.train_stream[0], eval_streams=[])
    assert_same(snapshot(model), before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:You are using plugins that are not compatible")  # Avalanche's, and it goes on
@pytest.mark.parametrize("processes", [1, 2])
def test_distributed_runs_are_refused_at_the_first_hook(digits_permuted: Any, monkeypatch: Any, processes: int) -> None:
    model, plugin = mlp(), EWCPlugin(ewc_lambda=1.0, max_samples=10, penalty_step="proximal")
    strategy = naive(model, plugin)
    before = snapshot(model)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: processes)
    if processes == 1:
        plugin.before_training(strategy)
        return
    with pytest.raises(
        ValueError, match="EWC does not serve distributed training, in which 2 processes would drift apart"
    ):
        strategy.train(digits_permuted.train_stream[0], eval_streams=[])
    assert_same(snapshot(model), before, rtol=0, atol=0)


def test_a_plugin_that_two_strategies_share_is_refused(digits_permuted: Any) -> None:
    first, second = digits_permuted.train_stream[:2]
    plugin = EWCPlugin(ewc_lambda=1.0)
    one, two = naive(mlp(), plugin), naive(mlp(), plugin)
    one.train(first, eval_streams=[])
    before = snapshot(two.model)
    with pytest.raises(
        ValueError,
        match=r"plugin: another strategy has trained it, .* make a plugin for each strategy that trains with EWC",
    ):
        two.train(first, eval_streams=[])
    assert_same(snapshot(two.model), before, rtol=0, atol=0)
    one.train(second, eval_streams=[])
    assert plugin.tasks == 2
    copied = copy.deepcopy(plugin)  # what a copy knows is its own
    naive(mlp(), copied).train(first, eval_streams=[])
    assert (copied.tasks, plugin.tasks) == (3, 2)
    assert pickle.loads(pickle.dumps(plugin)).tasks == 2


def test_a_strategy_after_another_may_go_on_with_the_plugin(digits_permuted: Any) -> None:
    model, plugin = mlp(), EWCPlugin(ewc_lambda=1.0)
    for experience in digits_permuted.train_stream[:2]:
        strategy = naive(model, plugin)  # the one before is in nobody's hands
        strategy.train(experience, eval_streams=[])
    assert plugin.tasks == 2


@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss(reduction="sum"), partial(nn.functional.cross_entropy, reduction="sum")]
)
def test_warns_once_of_a_criterion_that_is_a_sum(digits_permuted: Any, criterion: Any) -> None:
    model = mlp()
    optimizer = SGD(model.parameters(), lr=1e-3)
    strategy = naive(model, EWCPlugin(ewc_lambda=1.0), criterion=criterion, optimizer=optimizer)
    with pytest.warns(UserWarning, match=r"sum over the mini-batch .* multiplied by train_mb_size") as seen:
        strategy.train(digits_permuted.train_stream[:2], eval_streams=[])
    assert len(seen) == 1


def test_warns_once_of_a_rate_that_is_too_high(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0, importance="uniform")
    strategy = naive(mlp(), plugin, train_epochs=0)
    strategy.train(digits_permuted.train_stream[0], eval_streams=[])
    plugin.penalty.precision = {n: 25.0 * a for n, a in plugin.penalty.precision.items()}
    with pytest.warns(UserWarning, match=r"0.1 \* 25 = 2.5 > 2 .* penalty_step='proximal'") as seen:
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
