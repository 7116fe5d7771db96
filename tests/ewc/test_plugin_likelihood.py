"""The likelihood that the criterion stands for, and what is refused before anything is trained."""

import functools
import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.training.supervised import Naive
from ewc_cases import assert_same, mlp, naive, snapshot
from reference import fisher_reference
from torch import Tensor, distributions, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from avl_plugins import EWCPlugin, one_vs_rest_loss
from avl_plugins.tasks.likelihood import likelihood_of


def data_benchmark(*tasks: Tensor, more: Tensor | None = None, labels: bool = True) -> Any:
    """Make an experience of each task's targets; inputs (64,), with a further column where there is `more`."""
    sets = []
    for y in tasks:
        columns = (torch.randn(len(y), 64), y) if more is None else (torch.randn(len(y), 64), y, more)
        attributes = [DataAttribute(list(y) if y.ndim > 1 else y.tolist(), "targets")]
        if labels:
            attributes.append(DataAttribute([0] * len(y), "targets_task_labels", use_in_getitem=True))
        sets.append(AvalancheDataset([TensorDataset(*columns)], data_attributes=attributes))  # type: ignore[list-item]
    benchmark = benchmark_from_datasets(train=sets)
    return with_classes_timeline(with_task_labels(benchmark)) if labels else benchmark


def inputs_of(benchmark: Any) -> Tensor:
    return torch.stack([sample[0] for sample in benchmark.train_stream[0].dataset])


def net(outputs: int, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, outputs), *more)


class Named(nn.CrossEntropyLoss):
    """A subclass that leaves the loss as it is."""


class Focal(nn.CrossEntropyLoss):
    """A subclass with a loss of its own."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target) ** 2


def with_own_forward() -> nn.Module:
    criterion = nn.MSELoss()
    criterion.forward = functional.l1_loss  # type: ignore[method-assign, assignment]
    return criterion


@functools.wraps(functional.cross_entropy)
def impostor(z: Tensor, y: Tensor) -> Tensor:
    return functional.l1_loss(z, functional.one_hot(y, z.shape[1]).float())


CLASSES, BITS, NUMBERS = torch.arange(40) % 3, (torch.arange(120).reshape(40, 3) % 2).float(), torch.randn(40, 3)
CERTAIN = [
    (nn.CrossEntropyLoss(), "categorical", CLASSES),
    (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1), "categorical", CLASSES),
    (Named(), "categorical", CLASSES),
    (functional.cross_entropy, "categorical", CLASSES),
    (partial(functional.cross_entropy, label_smoothing=0.1), "categorical", CLASSES),
    (nn.CrossEntropyLoss(), "categorical", functional.one_hot(CLASSES, 3).float()),
    (nn.BCEWithLogitsLoss(), "bernoulli", BITS),
    (functional.binary_cross_entropy_with_logits, "bernoulli", BITS),
    (one_vs_rest_loss, "bernoulli", CLASSES),
    (nn.MSELoss(), "gaussian", NUMBERS),
    (functional.mse_loss, "gaussian", NUMBERS),
]


@pytest.mark.parametrize(("criterion", "likelihood", "y"), CERTAIN)
def test_the_criterions_likelihood_is_taken_and_said_once(
    criterion: Any, likelihood: str, y: Tensor, caplog: Any
) -> None:
    benchmark = data_benchmark(y, y)
    plugin, model = EWCPlugin(ewc_lambda=1.0), net(3)
    strategy = naive(model, plugin, criterion=criterion)
    with caplog.at_level(logging.INFO, logger="avl_plugins"):
        strategy.train(benchmark.train_stream[0], eval_streams=[])
        expected = fisher_reference(model, inputs_of(benchmark), likelihood=likelihood)
        assert_same(plugin.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-4, atol=1e-8)
        strategy.train(benchmark.train_stream[1], eval_streams=[])
    assert [r.getMessage() for r in caplog.records] == [f"EWC's likelihood is {likelihood!r}, that of the criterion"]


@pytest.mark.parametrize("labels", ["empirical", "batch"])
@pytest.mark.parametrize(("criterion", "likelihood", "y"), CERTAIN)
def test_targets_of_every_form_are_scored(criterion: Any, likelihood: str, y: Tensor, labels: Any) -> None:
    """The squared gradient of a sample's loss, which is -log p."""
    benchmark = data_benchmark(y)
    plugin, model = EWCPlugin(ewc_lambda=1.0, fisher_labels=labels), net(3)
    naive(model, plugin, criterion=criterion, train_mb_size=1).train(benchmark.train_stream, eval_streams=[])
    log_p: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "categorical": lambda z, y: -functional.cross_entropy(z, y.to(z) if y.ndim else y),
        "bernoulli": lambda z, y: (
            -functional.binary_cross_entropy_with_logits(
                z, y.to(z) if y.ndim else functional.one_hot(y, 3).to(z), reduction="sum"
            )
        ),
        "gaussian": lambda z, y: -0.5 * (y - z).square().sum(),
    }
    expected = fisher_reference(model, inputs_of(benchmark), y, labels="empirical", likelihood=log_p[likelihood])
    assert_same(plugin.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-4, atol=1e-8)


UNCERTAIN = {
    "L1Loss": nn.L1Loss(),
    "SmoothL1Loss": nn.SmoothL1Loss(),
    "BCELoss": nn.BCELoss(),
    "Focal": Focal(),
    "MSELoss": with_own_forward(),
    "cross_entropy": impostor,
    "<lambda>": lambda z, y: functional.cross_entropy(z, y),
}


@pytest.mark.parametrize("name", UNCERTAIN)
def test_any_other_criterion_is_refused_before_anything_is_trained(digits_permuted: Any, name: str) -> None:
    model, plugin = mlp(), EWCPlugin(ewc_lambda=1.0)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"likelihood: the criterion {name} does not say .* pass likelihood="):
        naive(model, plugin, criterion=UNCERTAIN[name]).train(digits_permuted.train_stream, eval_streams=[])
    assert_same(snapshot(model), before, rtol=0, atol=0)
    assert plugin.tasks == 0


@pytest.mark.parametrize(
    "criterion", [nn.NLLLoss(), functional.nll_loss, partial(functional.nll_loss, reduction="mean")]
)
def test_log_probabilities_are_those_of_classes(criterion: Any) -> None:
    benchmark = data_benchmark(CLASSES)
    plugin, model = EWCPlugin(ewc_lambda=1.0), net(3, nn.LogSoftmax(1))
    naive(model, plugin, criterion=criterion).train(benchmark.train_stream, eval_streams=[])
    expected = fisher_reference(model, inputs_of(benchmark))
    assert_same(plugin.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-4, atol=1e-8)


def test_partials_with_positional_arguments_and_other_functions_are_not_certain() -> None:
    assert likelihood_of(partial(functional.cross_entropy, torch.zeros(1))) is None
    assert likelihood_of(partial(functional.l1_loss, reduction="sum")) is None


class OwnCriterion(Naive):
    """A strategy whose loss is not that of its criterion alone."""

    def criterion(self) -> Tensor:
        return super().criterion() + self.mb_output.square().mean()


def test_a_strategy_with_its_own_criterion_has_to_say(digits_permuted: Any) -> None:
    with pytest.raises(ValueError, match=r"likelihood: the criterion OwnCriterion\.criterion\(\) does not say"):
        naive(mlp(), EWCPlugin(ewc_lambda=1.0), cls=OwnCriterion).train(digits_permuted.train_stream, eval_streams=[])
    plugin = EWCPlugin(ewc_lambda=1.0, likelihood="categorical")
    naive(mlp(), plugin, cls=OwnCriterion).train(digits_permuted.train_stream[:1], eval_streams=[])
    assert plugin.tasks == 1


def test_a_likelihood_that_is_given_makes_any_criterion_certain(digits_permuted: Any) -> None:
    nll = nn.Sequential(*mlp(), nn.LogSoftmax(1))
    by_name, by_call = (
        EWCPlugin(ewc_lambda=1.0, likelihood=likelihood)
        for likelihood in ("categorical", lambda z: distributions.Categorical(logits=z))
    )
    naive(nll, by_name, by_call, criterion=nn.NLLLoss()).train(digits_permuted.train_stream[:1], eval_streams=[])
    assert_same(by_name.importances, by_call.importances, rtol=1e-4, atol=1e-8)
    uniform = EWCPlugin(ewc_lambda=1.0, importance="uniform")
    naive(mlp(), uniform, criterion=lambda z, y: z.square().mean()).train(
        digits_permuted.train_stream[:1], eval_streams=[]
    )
    assert uniform.tasks == 1


PROBABILITIES = (nn.Sigmoid(), nn.Flatten(0))
SEQUENCE = nn.Unflatten(1, (4, 3))  # (N, T, K)
MISFITS = [
    ({"likelihood": "gaussian"}, net(3), nn.CrossEntropyLoss(), CLASSES, "contradicts the criterion CrossEntropyLoss"),
    ({"likelihood": "categorical"}, net(3), nn.MSELoss(), NUMBERS, "contradicts the criterion MSELoss"),
    ({"likelihood": "categorical"}, net(3), functional.mse_loss, NUMBERS, "contradicts the criterion mse_loss"),
    (
        {"likelihood": "bernoulli"},
        net(3),
        partial(functional.cross_entropy),
        CLASSES,
        "contradicts the criterion cross_",
    ),
    (
        {"likelihood": "bernoulli"},
        net(1, *PROBABILITIES),
        nn.BCELoss(),
        BITS[:, 0],
        "BCELoss, which takes probabilities",
    ),
    (
        {"likelihood": "bernoulli"},
        net(1, *PROBABILITIES),
        functional.binary_cross_entropy,
        BITS[:, 0],
        "which takes probabilities",
    ),
    (
        {"likelihood": "categorical"},
        net(3),
        nn.L1Loss(),
        NUMBERS,
        "takes targets of the outputs' shape for probabilities",
    ),
    ({"likelihood": "categorical"}, net(1), nn.L1Loss(), NUMBERS[:, :1], "two classes or more"),
    ({"likelihood": "bernoulli"}, net(3), nn.L1Loss(), NUMBERS, "needs targets from 0 to 1"),
    ({"likelihood": "gaussian"}, net(3), nn.NLLLoss(), CLASSES, "contradicts the criterion NLLLoss"),
    ({"likelihood": "gaussian"}, net(3), nn.MultiMarginLoss(), CLASSES, "needs a target for each output"),
    ({}, net(3), nn.NLLLoss(), CLASSES, "takes log-probabilities of classes, and the model's outputs are none"),
    ({}, net(1), nn.CrossEntropyLoss(), 0 * CLASSES, "two classes or more"),
    ({}, net(1, nn.Flatten(0)), nn.CrossEntropyLoss(), CLASSES, "two classes or more"),
    ({}, net(3), nn.CrossEntropyLoss(), NUMBERS, "takes targets of the outputs' shape for probabilities"),
    ({}, net(3), nn.CrossEntropyLoss(), NUMBERS[:, 0], "use likelihood='gaussian'"),
    ({}, net(12, nn.Unflatten(1, (3, 4))), nn.CrossEntropyLoss(), CLASSES.repeat(4, 1).T, "fisher_labels='sampled'"),
    (
        {"likelihood": "categorical", "fisher_labels": "sampled"},
        net(12, SEQUENCE),
        lambda z, y: functional.cross_entropy(z.flatten(0, 1), y.flatten()),
        CLASSES.repeat(4, 1).T,
        r"classes last: return outputs.movedim\(-1, 1\)",
    ),
    (
        {"likelihood": lambda z: distributions.Normal(z, 1.0)},
        net(3),
        nn.L1Loss(),
        NUMBERS,
        "cannot enumerate Normal .* fisher_labels='sampled'",
    ),
    (
        {"likelihood": lambda z: distributions.Normal(z, 1.0), "fisher_labels": "sampled"},
        net(1),
        nn.L1Loss(),
        NUMBERS[:, 0],
        r"shape \(32, 1\) of outputs \(32, 1\), which does not fit the targets' shape \(32,\)",
    ),
    (
        {},
        nn.Sequential(nn.Linear(64, 3), nn.BatchNorm1d(3, track_running_stats=False)),
        nn.CrossEntropyLoss(),
        CLASSES,
        "no running statistics",
    ),
]


@pytest.mark.parametrize(("options", "model", "criterion", "y", "message"), MISFITS)
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    options: Any, model: nn.Module, criterion: Any, y: Tensor, message: str
) -> None:
    before = {n: t.clone() for n, t in model.state_dict().items()}
    plugin = EWCPlugin(ewc_lambda=1.0, **options)
    with pytest.raises(ValueError, match=message):
        naive(model, plugin, criterion=criterion).train(data_benchmark(y).train_stream, eval_streams=[])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert plugin.tasks == 0


def test_classes_last_are_right_through_a_distribution() -> None:
    y = CLASSES.repeat(4, 1).T
    last = EWCPlugin(
        ewc_lambda=1.0, fisher_labels="empirical", likelihood=lambda z: distributions.Categorical(logits=z)
    )
    model, benchmark = net(12, SEQUENCE), data_benchmark(y)
    naive(model, last, criterion=lambda z, y: functional.cross_entropy(z.flatten(0, 1), y.flatten())).train(
        benchmark.train_stream, eval_streams=[]
    )
    expected = fisher_reference(
        model,
        inputs_of(benchmark),
        y,
        labels="empirical",
        likelihood=lambda z, y: -functional.cross_entropy(z, y, reduction="sum"),
    )
    assert_same(last.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-4, atol=1e-8)


def test_the_criterions_ignore_index_is_the_fishers() -> None:
    y = CLASSES.repeat(4, 1).T.clone()
    y[::2, 1] = 255
    model, benchmark = net(12, nn.Unflatten(1, (3, 4))), data_benchmark(y)
    plugin = EWCPlugin(ewc_lambda=1.0, fisher_labels="empirical")
    naive(model, plugin, criterion=nn.CrossEntropyLoss(ignore_index=255)).train(benchmark.train_stream, eval_streams=[])

    def log_p(z: Tensor, y: Tensor) -> Tensor:
        return -functional.cross_entropy(z.unsqueeze(0), y.unsqueeze(0), ignore_index=255, reduction="sum")

    expected = fisher_reference(model, inputs_of(benchmark), y, labels="empirical", likelihood=log_p)
    assert_same(plugin.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-4, atol=1e-8)


def test_lambda_holds_a_regression_and_its_fisher_is_that_of_least_squares() -> None:
    # One linear layer: F = E[x^2] for a weight and 1 for a bias, whatever the targets.
    benchmark = data_benchmark(torch.randn(200, 1), 5 + torch.randn(200, 1))
    x = inputs_of(benchmark)
    moved = {}
    for lam in (0.0, 1e4):
        torch.manual_seed(0)
        model, plugin = nn.Linear(64, 1), EWCPlugin(ewc_lambda=lam, penalty_step="proximal")
        strategy = naive(model, plugin, criterion=nn.MSELoss(), optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
        strategy.train(benchmark.train_stream[0], eval_streams=[])
        expected = {"weight": x.square().mean(0, keepdim=True), "bias": torch.ones(1)}
        assert_same(plugin.importances, expected, rtol=1e-5, atol=0)
        before = model.bias.item()
        strategy.train(benchmark.train_stream[1], eval_streams=[])
        moved[lam] = abs(model.bias.item() - before)
    assert moved[1e4] < 0.05 < moved[0.0]


@pytest.mark.parametrize("importance", ["fisher", "uniform"])
@pytest.mark.parametrize(
    ("y", "criterion", "likelihood"),
    [
        (torch.randn(40), nn.MSELoss(), None),
        (torch.randn(40, 1)[:, 0].round(), nn.MSELoss(), None),
        (torch.randn(40), nn.L1Loss(), "gaussian"),
        (torch.randn(40), nn.L1Loss(), lambda z: distributions.Normal(z, 1.0)),
        (torch.arange(40), lambda z, y: (z - y).square().mean(), "gaussian"),  # whole numbers, such as ages
        (torch.rand(40).round(), nn.BCEWithLogitsLoss(), None),
    ],
)
def test_numbers_are_no_classes_that_could_be_new(y: Tensor, criterion: Any, likelihood: Any, importance: Any) -> None:
    benchmark = data_benchmark(y[:20], y[20:])
    plugin = EWCPlugin(ewc_lambda=1.0, fisher_labels="sampled", likelihood=likelihood, importance=importance)
    model = net(1, nn.Flatten(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        naive(model, plugin, criterion=criterion, optimizer=optimizer).train(benchmark.train_stream, eval_streams=[])
    assert plugin.tasks == 2


# ------------------------------------------------------ what the model gets in training, and for the Fisher


class Two(nn.Module):
    """A net with an optional second input, whose influence is zero to begin with."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.net, self.more = nn.Linear(64, outputs), nn.Linear(2, outputs, bias=False)
        nn.init.zeros_(self.more.weight)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        return self.net(x) if more is None else self.net(x) + self.more(more)


class ByPosition(Naive):
    def forward(self) -> Tensor:
        return self.model(self.mb_x, self.mbatch[2])


class ByKeyword(Naive):
    def forward(self) -> Tensor:
        return self.model(self.mb_x, more=self.mbatch[2])


class Scaled(Naive):
    def forward(self) -> Tensor:
        return self.model(self.mb_x / 255)


class Selected(Naive):
    def forward(self) -> Tensor:
        return super().forward()[:, :2]


class Harmless(Naive):
    def forward(self) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward().float()


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (ByPosition, r"ByPosition\.forward\(\) calls the model with 2 inputs"),
        (ByKeyword, r"ByKeyword\.forward\(\) calls the model with 2 inputs"),
        (Scaled, r"Scaled\.forward\(\) does not call the model on the mini-batch's inputs as they are"),
        (Selected, r"Selected\.forward\(\) returns \(40, 2\) where the model returns \(40, 3\)"),
        (Harmless, None),
        (Naive, None),
    ],
)
def test_a_model_that_is_called_otherwise_in_training_is_refused(cls: Any, message: str | None) -> None:
    benchmark = data_benchmark(CLASSES % 2, more=torch.randn(40, 2))
    model, plugin = Two(), EWCPlugin(ewc_lambda=1.0)
    strategy = naive(model, plugin, cls=cls)
    before = snapshot(model)
    if message is None:
        strategy.train(benchmark.train_stream, eval_streams=[])
        expected = fisher_reference(model, inputs_of(benchmark))
        assert_same(plugin.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-4, atol=1e-8)
        return
    with pytest.raises(ValueError, match=message):
        strategy.train(benchmark.train_stream, eval_streams=[])
    assert_same(snapshot(model), before, rtol=0, atol=0)
    assert not model._forward_hooks
    assert model.training


def test_what_the_model_gets_can_be_given_as_fisher_data() -> None:
    benchmark = data_benchmark(CLASSES)
    x = inputs_of(benchmark) / 255
    model, plugin = Two(), EWCPlugin(ewc_lambda=1.0, fisher_data=lambda strategy: [(x, CLASSES)])
    naive(model, plugin, cls=Scaled).train(benchmark.train_stream, eval_streams=[])
    expected = fisher_reference(model, x)
    assert_same(plugin.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("max_samples", [None, 7])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("more", [torch.randn(40, 2), torch.arange(40)])
def test_a_column_that_the_strategy_does_not_read_does_not_matter(more: Tensor, labels: bool, max_samples: Any) -> None:
    ends = []
    for column in (None, more):
        torch.manual_seed(0)
        model, plugin = Two(), EWCPlugin(ewc_lambda=1.0, max_samples=max_samples)
        benchmark = data_benchmark(CLASSES, more=column, labels=labels)
        naive(model, plugin).train(benchmark.train_stream, eval_streams=[])
        ends.append(plugin.importances)
    assert_same(*ends, rtol=0, atol=0)
