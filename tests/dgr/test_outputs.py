"""Replay for solvers whose outputs are not classes by softmax: they remember, or are refused before training."""

import logging
from functools import partial

import pytest
import torch
from avalanche.evaluation.metrics import loss_metrics
from dgr_cases import build, same, stream_of, vae, weights
from torch import nn
from torch.nn import functional as F

from avl_plugins import InMemoryLoaderPlugin, one_vs_rest_loss
from avl_plugins.metrics import replay_metrics

BCE, MSE = nn.BCEWithLogitsLoss(), nn.MSELoss()


def mlp(outputs):
    return nn.Sequential(nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, outputs))


def flat():
    return nn.Sequential(mlp(1), nn.Flatten(0))


def maps():
    """Three logits at each of eight places."""
    return nn.Sequential(mlp(24), nn.Unflatten(1, (3, 8)))


def inputs(kind, n=30):
    """Rows that are bright in one place of eight."""
    x = torch.full((n, 64), 0.1)
    x[:, kind * 8 : kind * 8 + 8] = 0.9
    return (x + 0.05 * torch.randn(n, 64)).clamp(0, 1)


def tasks(*targets):
    """The first task has kinds 0 and 1, the second kind 2, with a target for each kind."""
    first, second, third = (torch.as_tensor(target) for target in targets)
    rows = [target.expand(30, *target.shape).clone() for target in (first, second, third, third)]
    x = [inputs(0), inputs(1), inputs(2), inputs(2)]
    return stream_of(*((torch.cat(x[k : k + 2]), torch.cat(rows[k : k + 2])) for k in (0, 2)))


CASES = {
    # Each: model, criterion, target of kind 0, 1 and 2, options, whether outputs for kind 0 are right, classes.
    "one logit": (partial(mlp, 1), BCE, ([1.0], [0.0], [0.0]), {}, lambda z: (z > 0).all(), [0, 1]),
    "no dimension": (
        flat, F.binary_cross_entropy_with_logits, (1.0, 0.0, 0.0), {}, lambda z: (z > 0).all(), [0, 1]
    ),
    "one logit, classes": (partial(mlp, 1), one_vs_rest_loss, (1, 0, 0), {}, lambda z: (z > 0).all(), [0, 1]),
    "soft answers": (
        partial(mlp, 1), BCE, ([0.8], [0.3], [0.3]), {"answers": "soft", "temperature": 1.0},
        lambda z: (z.sigmoid() - 0.8).abs().max() < 0.15, [0, 1]
    ),
    "one against the rest": (
        partial(mlp, 4), one_vs_rest_loss, (1, 0, 3), {}, lambda z: (z.argmax(1) == 1).all(), [0, 1, 3]
    ),
    "several labels": (
        partial(mlp, 3), BCE, ([1.0, 0, 1], [0.0, 1, 1], [0.0, 0, 0]), {},
        lambda z: ((z > 0) == torch.tensor([True, False, True])).all(), []
    ),
    "values": (
        partial(mlp, 2), MSE, ([3.0, -1.0], [0.0, 1.0], [-2.0, -2.0]), {},
        lambda z: (z - torch.tensor([3.0, -1.0])).abs().max() < 0.5, []
    ),
    "integers": (flat, MSE, (3, 0, -2), {}, lambda z: (z - 3).abs().max() < 0.5, []),
    "own criterion": (
        flat, F.smooth_l1_loss, (3.0, 0.0, -2.0), {"likelihood": "gaussian"}, lambda z: (z - 3).abs().max() < 0.5, []
    ),
    "probabilities": (
        partial(mlp, 3), nn.CrossEntropyLoss(), ([0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0]), {},
        lambda z: (z.argmax(1) == 0).all(), [0, 1, 2]
    ),
    "maps": (
        maps, nn.CrossEntropyLoss(), ([1] * 8, [0] * 8, [2] * 8), {},
        lambda z: (z.argmax(1) == 1).all(), [0, 1, 2]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("case", CASES)
def test_old_answers_are_kept(case, kind):
    """Of the first task's inputs, after a second task; answers by argmax would say 0, or nothing, of most of them."""
    make, criterion, targets, options, right, classes = CASES[case]
    options = {"answers": kind, "generator": None, "replay": "exact", "epochs": 40, "chunk": 200, **options}
    torch.manual_seed(0)
    stream = tasks(*targets)
    plugins = [InMemoryLoaderPlugin()]
    strategy = build(make(), metrics=loss_metrics(epoch=True), criterion=criterion, plugins=plugins, **options)
    strategy.train(stream)
    strategy.model.eval()
    assert right(strategy.model(inputs(0)).detach())
    assert strategy.dgr.classes == classes


def test_generated_inputs_are_answered_as_well():
    torch.manual_seed(0)
    stream = tasks([1.0], [0.0], [0.0])
    metrics = replay_metrics(images=False, samples=100)
    strategy = build(mlp(1), criterion=BCE, epochs=25, generator_iterations=300, metrics=metrics)
    strategy.train(stream)
    strategy.model.eval()
    assert (strategy.model(inputs(0)) > 0).float().mean() > 0.95
    last = strategy.evaluator.get_last_metrics()
    shares = [v for k, v in last.items() if k.startswith("dgr/ReplayShare/")]
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(1)


def test_metrics_of_classes_say_nothing_of_values():
    strategy = build(flat(), criterion=MSE, metrics=replay_metrics(images=False, distance=True, samples=50))
    strategy.train(tasks(3.0, 0.0, -2.0))
    names = {name.split("/")[1] for name in strategy.evaluator.get_all_metrics()}
    assert names == {"GeneratorLoss", "GeneratorLosses"}


def test_the_likelihood_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, "avl_plugins.dgr"):
        build(flat(), criterion=MSE).train(tasks(3.0, 0.0, -2.0))
    assert [r.getMessage() for r in caplog.records] == ["the old solver answers under likelihood='gaussian'"]


def own_loss(z, y):
    return (z.squeeze() - y).abs().mean()


@pytest.mark.parametrize(
    ("make", "criterion", "targets", "options", "message"),
    [
        (flat, own_loss, (1.0, 0.0, 0.0), {}, "likelihood must be one of .* got None with own_loss"),
        (flat, BCE, (1.0, 0.0, 0.0), {"likelihood": "gaussian"}, "likelihood must be 'bernoulli', or None"),
        (flat, nn.BCELoss(), (1.0, 0.0, 0.0), {"likelihood": "bernoulli"}, "criterion must take logits, got BCELoss"),
        (flat, nn.MSELoss(reduction="sum"), (1.0, 0.0, 0.0), {}, r"reduction='sum'.*use reduction='mean'"),
        (flat, partial(F.mse_loss, reduction="sum"), (1.0, 0.0, 0.0), {}, r"reduction='sum'.*use reduction='mean'"),
        (partial(mlp, 1), MSE, (1.0, 0.0, 0.0), {}, r"shape \(20,\) and torch.float32 do not fit .* \(20, 1\) under"),
        (partial(mlp, 3), nn.CrossEntropyLoss(), (1.0, 0.0, 0.0), {}, "do not fit .* likelihood='categorical'"),
        (flat, nn.CrossEntropyLoss(), (1.0, 0.0, 0.0), {}, "do not fit .* likelihood='categorical'"),
        (partial(mlp, 1), BCE, ([2.0], [0.0], [0.0]), {}, r"do not fit .* values in \[0, 1\]"),
        (flat, MSE, (1.0, 0.0, 0.0), {"balanced": True}, "balanced must be False, got True: outputs do not say one"),
        (partial(mlp, 2), BCE, ([1.0, 0], [0.0, 0], [0.0, 0]), {"balanced": True}, "balanced must be False, got True"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(make, criterion, targets, options, message):
    options = {"generator": None, "replay": "exact", **options}
    strategy = build(make(), metrics=loss_metrics(epoch=True), criterion=criterion, **options)
    before = weights(strategy.model)
    with pytest.raises(ValueError, match=message):
        strategy.train(tasks(*targets))
    assert same(before, strategy.model)
    assert strategy.dgr.scholar is None


def test_another_kind_of_targets_later_is_refused():
    """The old solver was taught classes, and its outputs are no values."""
    strategy = build(mlp(3), metrics=loss_metrics(epoch=True), generator=None, replay="exact")
    stream = stream_of((inputs(0), torch.zeros(30, dtype=torch.int64)), (inputs(1), torch.zeros(30, 3)))
    strategy.train(stream[0])
    strategy._criterion = MSE
    before = weights(strategy.model)
    message = "targets of experience 1 are gaussian values, and those of the tasks before were categorical classes"
    with pytest.raises(ValueError, match=message):
        strategy.train(stream[1])
    assert same(before, strategy.model)


def test_outputs_that_are_no_tensor_are_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 3)

        def forward(self, x):
            return self.layer(x), x

    strategy = build(Two(), generator=vae(), criterion=lambda z, y: F.cross_entropy(z[0], y), likelihood="categorical")
    before = weights(strategy.model)
    with pytest.raises(ValueError, match=r"outputs and targets must be tensors .* got tuple and Tensor"):
        strategy.train(stream_of(inputs(0)))
    assert same(before, strategy.model)
