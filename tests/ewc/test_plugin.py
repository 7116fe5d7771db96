"""EWCPlugin inside Avalanche's strategies, against explicit slow EWC and closed forms."""

import copy
from typing import Any

import pytest
import torch
from ewc_cases import (
    MultiHead,
    Record,
    ToFloat64,
    assert_same,
    batches_of,
    data_of,
    mlp,
    naive,
    sgd,
    snapshot,
)
from reference import QuadraticReference, fisher_reference, train_reference
from torch import Tensor, nn
from torch.optim import Adam

from avl_plugins.ewc.plugin import EWCPlugin


@pytest.mark.parametrize("labels", ["exact", "empirical"])
def test_three_tasks_equal_explicit_ewc(digits_permuted: Any, labels: str) -> None:
    # The same steps with every F_t and theta_t kept: losses, Fishers and parameters agree. (Mistakes 1, 3, 4, 5.)
    model = nn.Sequential(ToFloat64(), *mlp().double())
    slow, penalty = copy.deepcopy(model), QuadraticReference()
    optimizer = sgd(slow)
    plugin, record = EWCPlugin(ewc_lambda=30.0, fisher_labels=labels), Record()
    strategy = naive(model, plugin, record)
    expected: list[float] = []
    for experience in digits_permuted.train_stream:
        strategy.train(experience, eval_streams=[], shuffle=False)
        expected += train_reference(slow, optimizer, batches_of(experience, 50), penalty)
        x, y = data_of(experience)
        fisher = fisher_reference(slow, x, y, labels=labels)
        assert_same(plugin.importances, fisher, rtol=1e-6, atol=1e-12)
        penalty.add(fisher, snapshot(slow), 30.0)
    assert record.losses == pytest.approx(expected, rel=1e-6)
    assert_same(snapshot(model), snapshot(slow), rtol=1e-7, atol=1e-10)
    theta = {n: p + 0.01 for n, p in snapshot(model).items()}
    torch.testing.assert_close(plugin.penalty.value(theta), penalty.value(theta), rtol=1e-6, atol=0)


def test_penalty_is_not_zero_after_the_first_task_and_lambda_holds_the_parameters(digits_permuted: Any) -> None:
    moved = {}
    for lam in (0.0, 1e5):
        torch.manual_seed(0)
        model = mlp()
        plugin, record = EWCPlugin(ewc_lambda=lam, importance="uniform", penalty_step="proximal"), Record()
        strategy = naive(model, plugin, record)
        strategy.train(digits_permuted.train_stream[:2], eval_streams=[])
        assert (plugin.last_penalty > 0) == (lam > 0)
        moved[lam] = max(float((record.ends[1][n] - record.ends[0][n]).abs().max()) for n in record.ends[0])
    assert moved[1e5] < 1e-4 < 1e-2 < moved[0.0]


def test_one_call_with_all_experiences_equals_a_call_each(digits_permuted: Any) -> None:
    results = []
    for together in (True, False):
        torch.manual_seed(3)
        model = mlp()
        strategy = naive(model, EWCPlugin(ewc_lambda=10.0, fisher_labels="sampled", seed=1))
        stream = digits_permuted.train_stream
        for experiences in [stream] if together else list(stream):
            strategy.train(experiences, eval_streams=[])
        results.append(snapshot(model))
    assert_same(*results, rtol=0, atol=0)


def test_keeps_the_first_task_that_plain_training_forgets(digits_split: Any) -> None:
    accuracy = {}
    for lam in (0.0, 1000.0):
        torch.manual_seed(0)
        model = MultiHead()
        strategy = naive(model, EWCPlugin(ewc_lambda=lam), optimizer=Adam(model.parameters(), lr=5e-3), train_epochs=15)
        strategy.train(digits_split.train_stream, eval_streams=[])
        x, y = data_of(digits_split.test_stream[0])
        with torch.no_grad():
            accuracy[lam] = float((model.eval()(x, 0).argmax(1) == y).float().mean())
    assert accuracy[1000.0] >= accuracy[0.0]
    assert accuracy[1000.0] > 0.95


@pytest.mark.parametrize("gamma", [0.8, 1.0])
def test_online_follows_its_equations(digits_permuted: Any, gamma: float) -> None:
    # F* <- gamma F* + F; penalty lambda/2 gamma F* (theta - latest optimum)^2; gamma = 1 sums the Fishers (Huszar).
    plugin, record = EWCPlugin(ewc_lambda=5.0, mode="online", gamma=gamma), Record()
    strategy = naive(mlp(), plugin, record)
    star: dict[str, Tensor] = {}
    for experience in digits_permuted.train_stream:
        strategy.train(experience, eval_streams=[])
        star = {n: f + (gamma * star[n] if star else 0) for n, f in plugin.importances.items()}
    theta = {n: p + 0.1 for n, p in record.ends[-1].items()}
    expected = sum(5.0 / 2 * gamma * (star[n] * (theta[n] - record.ends[-1][n]) ** 2).sum() for n in star)
    torch.testing.assert_close(plugin.penalty.value(theta), expected, rtol=1e-5, atol=0)
    assert plugin.penalty.value(record.ends[-1]).item() == 0.0


def test_normalise_gives_each_task_the_same_mean(digits_permuted: Any) -> None:
    raw, even = EWCPlugin(ewc_lambda=0.0), EWCPlugin(ewc_lambda=0.0, normalise=True)
    naive(mlp(), raw, even).train(digits_permuted.train_stream[0], eval_streams=[])
    flat = torch.cat([f.flatten() for f in even.importances.values()])
    assert flat.mean().item() == pytest.approx(1.0, rel=1e-5)
    mean = torch.cat([f.flatten() for f in raw.importances.values()]).mean()
    assert_same(even.importances, {n: f / mean for n, f in raw.importances.items()}, rtol=1e-5, atol=0)


def test_lambda_may_differ_by_task(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0)
    strategy = naive(mlp(), plugin)
    explicit: dict[str, Tensor] = {}
    for lam, experience in zip((1.0, 50.0), digits_permuted.train_stream, strict=False):
        plugin.ewc_lambda = lam
        strategy.train(experience, eval_streams=[])
        explicit = {n: lam * f + explicit.get(n, 0) for n, f in plugin.importances.items()}
    assert_same(plugin.penalty.precision, explicit, rtol=1e-5, atol=0)
