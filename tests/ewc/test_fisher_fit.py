"""Targets that do not fit the outputs, and batches that hold more than the model reads."""

from typing import Any

import pytest
import torch
from fisher_cases import assert_same, make
from reference import fisher_reference
from torch import Tensor, distributions, nn

from avl_plugins import diagonal_fisher

X, CLASSES = torch.randn(6, 5), torch.arange(6) % 3


def net(*shape: int) -> nn.Module:
    return nn.Sequential(nn.Linear(5, int(torch.tensor(shape).prod())), nn.Unflatten(1, shape))


def normal(z: Tensor) -> distributions.Distribution:
    return distributions.Normal(z, 1.0)


@pytest.mark.parametrize("labels", ["exact", "sampled", "empirical", "batch"])
@pytest.mark.parametrize(
    ("likelihood", "outputs", "y", "message"),
    [
        ("categorical", (4, 3), torch.zeros(6, 4).long(), r"classes last: return outputs.movedim\(-1, 1\)"),
        ("categorical", (4, 3), torch.zeros(6, 4, 2).long(), r"outputs \(\d, 4, 3\) need integer targets \(\d, 3\)"),
        ("categorical", (3,), torch.zeros(6, 1).long(), r"integer targets \(\d,\) .* got torch.int64 \(\d, 1\)"),
        ("categorical", (3,), torch.zeros(5).long(), r"inputs \(6, 5\) and targets \(5,\)"),
        ("categorical", (3,), torch.zeros(6), "numbers use likelihood='gaussian'"),
        ("categorical", (3,), torch.randn(6, 3), "probabilities, which are not negative and sum to 1"),
        ("categorical", (3,), torch.ones(6, 3), "probabilities, which are not negative and sum to 1"),
        ("categorical", (1,), torch.zeros(6).long(), "two classes or more"),
        (
            "bernoulli",
            (3,),
            torch.zeros(6, 2),
            r"target for each output, of shape \(\d, 3\) .* got torch.float32 \(\d, 2\)",
        ),
        ("bernoulli", (3,), torch.zeros(6), "needs a target for each output"),
        ("bernoulli", (2, 3), torch.zeros(6, 3, 2), "needs a target for each output"),
        ("bernoulli", (1,), torch.full((6,), 5), "needs targets from 0 to 1, got 5 to 5"),
        ("bernoulli", (1,), -torch.ones(6), "needs targets from 0 to 1, got -1 to -1"),
        ("gaussian", (3,), torch.zeros(6), "needs a target for each output"),
        ("gaussian", (2, 3), torch.zeros(6, 3, 2), "needs a target for each output"),
        ("gaussian", (3,), torch.zeros(6).long(), "for class numbers use likelihood='categorical'"),
    ],
)
def test_targets_that_do_not_fit(labels: Any, likelihood: str, outputs: Any, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diagonal_fisher(net(*outputs), [(X, y)], labels=labels, likelihood=likelihood)


@pytest.mark.parametrize("labels", ["sampled", "empirical"])
def test_distributions_of_another_shape(labels: Any) -> None:
    for likelihood, outputs, y in (
        (normal, (1,), torch.zeros(6)),
        (lambda z: normal(z.sum(0)), (3,), torch.zeros(6)),
        (lambda z: distributions.Independent(normal(z), 1), (3,), torch.zeros(6)),
    ):
        with pytest.raises(ValueError, match="does not fit the targets' shape"):
            diagonal_fisher(net(*outputs), [(X, y)], labels=labels, likelihood=likelihood)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 1, 1)])
def test_dimensions_of_size_one_do_not_matter(likelihood: str, shape: tuple[int, ...]) -> None:
    y = torch.tensor([0.0, 1, 0, 1, 1, 0])
    torch.manual_seed(0)
    model = nn.Linear(5, 1)
    expected = fisher_reference(model, X, y, labels="empirical", likelihood=likelihood)
    for found in (model, nn.Sequential(model, nn.Flatten(0))):
        fisher = diagonal_fisher(found, [(X, y.reshape(shape))], labels="empirical", likelihood=likelihood)
        assert_same({n.removeprefix("0."): f for n, f in fisher.items()}, expected)


def test_one_hot_and_soft_targets() -> None:
    model, x, y = make("mlp")
    one_hot = nn.functional.one_hot(y, 3)
    for targets in (one_hot, one_hot.double(), one_hot.float()):
        found = diagonal_fisher(model, [(x, targets)], labels="empirical")
        assert_same(found, fisher_reference(model, x, y, labels="empirical"))
    soft = torch.rand(5, 3, dtype=torch.float64).softmax(1)

    def minus_loss(z: Tensor, y: Tensor) -> Tensor:
        return (y * z.log_softmax(0)).sum()

    expected = fisher_reference(model, x, soft, labels="empirical", likelihood=minus_loss)
    assert_same(diagonal_fisher(model, [(x, soft)], labels="empirical"), expected)


def test_one_against_the_rest() -> None:
    model, x, y = make("mlp")
    bits = nn.functional.one_hot(y, 3)
    found, expected = (
        diagonal_fisher(model, [(x, targets)], labels="empirical", likelihood="bernoulli") for targets in (y, bits)
    )
    assert_same(found, expected, relative=0)
    with pytest.raises(ValueError, match="labels run from 0 to 3, but the outputs have 3 classes"):
        diagonal_fisher(model, [(x, torch.tensor([0, 1, 2, 3, 0]))], labels="empirical", likelihood="bernoulli")


@pytest.mark.parametrize("max_samples", [None, 3])
@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_targets_may_be_unknown_where_they_are_not_used(likelihood: str, max_samples: Any) -> None:
    model, x, y = make("mlp")
    targets = y if likelihood == "categorical" else torch.zeros(5, 3)
    for labels in ("exact", "sampled"):
        options: Any = {"labels": labels, "likelihood": likelihood, "max_samples": max_samples}
        known, unknown = (diagonal_fisher(model, [(x, t)], **options) for t in (targets, None))
        assert_same(unknown, known, relative=0)
        assert_same(diagonal_fisher(model, [{"x": x, "y": None}], **options), known, relative=0)
    for labels in ("empirical", "batch"):
        with pytest.raises(ValueError, match=f"labels='{labels}' needs targets, and y is None"):
            diagonal_fisher(model, [(x, None)], labels=labels, likelihood=likelihood)  # type: ignore[arg-type]


class Two(nn.Module):
    """Takes an optional second input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.net(x if scale is None else x * scale)


T, SCALE = torch.zeros(6).long(), torch.rand(6, 1)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ((X, CLASSES, SCALE, T), ValueError, "got 4 items where the model also takes scale"),
        ({"x": X, "y": CLASSES, "scale": SCALE}, ValueError, "got 4 items where the model also takes scale"),
        ((X, CLASSES, SCALE), TypeError, "must be task labels, an integer a sample, got torch.float32"),
        ((X, CLASSES, SCALE[:, 0]), TypeError, "must be task labels, an integer a sample, got torch.float32"),
        (([X, SCALE], CLASSES), TypeError, "inputs of a batch must be one tensor with a row a sample, got list"),
        (({"x": X}, CLASSES), TypeError, "inputs of a batch must be one tensor with a row a sample, got dict"),
    ],
)
def test_inputs_that_the_model_would_not_get(batch: Any, error: type[Exception], message: str) -> None:
    for max_samples in (None, 3):
        with pytest.raises(error, match=message):
            diagonal_fisher(Two(), [batch], max_samples=max_samples)


def test_items_that_no_input_is_there_for_do_not_matter() -> None:
    torch.manual_seed(0)
    model = Two()
    expected = diagonal_fisher(model, [(X, CLASSES)])
    assert_same(diagonal_fisher(model, [(X, CLASSES, T)]), expected, relative=0)
    assert_same(
        {f"net.{n}": f for n, f in diagonal_fisher(model.net, [(X, CLASSES, SCALE, T)]).items()}, expected, relative=0
    )
