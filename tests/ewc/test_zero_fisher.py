"""A task whose Fisher is zero everywhere: a warning and no term, or an error."""

from typing import Any

import pytest
import torch
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from ewc_cases import MultiHead, assert_same, mlp, naive, snapshot
from torch import nn

from avl_plugins import EWCPlugin
from avl_plugins.metrics import ewc_metrics
from avl_plugins.metrics.ewc import FisherOverlap

ZERO = r"the Fisher of experience 1 is zero for every protected parameter.* saturated"


def saturate(model: nn.Module) -> None:
    """Make the net certain of one class, beyond what float32 can tell from 1."""
    with torch.no_grad():
        model[2].bias[0] = 1e4  # type: ignore[index, operator]


def train_two(benchmark: Any, plugin: EWCPlugin, **options: Any) -> tuple[Any, Any]:
    """Train on a task, and on one more of which the net is certain."""
    torch.manual_seed(0)
    strategy = naive(mlp(), plugin, **options)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    state = plugin.state_dict()
    saturate(strategy.model)
    strategy.train_epochs = 0
    return strategy, state


@pytest.mark.parametrize(
    "options", [{}, {"normalise": True}, {"fisher_labels": "sampled"}, {"max_samples": 20}, {"curvature": "kronecker"}]
)
def test_it_gets_no_term_but_counts_and_training_goes_on(digits_permuted: Any, options: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=0.01, **options)
    strategy, _ = train_two(digits_permuted, plugin)
    theta = {n: p + 0.1 for n, p in snapshot(strategy.model).items()}
    before = plugin.penalty.value(theta)
    cause = "max_samples=20 has drawn none" if "max_samples" in options else "label smoothing"
    with pytest.warns(UserWarning, match=ZERO) as seen:
        strategy.train(digits_permuted.train_stream[1], eval_streams=[])
    assert len(seen) == 1
    assert cause in str(seen[0].message)
    assert "zero_fisher='raise'" in str(seen[0].message)
    assert plugin.tasks == 2
    assert not any(f.any() for f in plugin.importances.values())
    assert plugin.penalty.value(theta) == before > 0
    nn.init.zeros_(strategy.model[2].bias)
    strategy.train(digits_permuted.train_stream[2], eval_streams=[])
    assert plugin.tasks == 3
    assert plugin.penalty.value(theta) > before


@pytest.mark.parametrize("mode", ["separate", "online"])
def test_kronecker_factors_that_are_zero_add_no_term(digits_permuted: Any, mode: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=0.01, curvature="kronecker", mode=mode, normalise=True)
    strategy, before = train_two(digits_permuted, plugin)
    with pytest.warns(UserWarning, match=ZERO):
        strategy.train(digits_permuted.train_stream[1], eval_streams=[])
    assert plugin.tasks == 2
    assert plugin.penalty.terms.keys() == {"0", "2"}
    for layer, (term,) in plugin.penalty.terms.items():
        (old,) = before["penalty"]["terms"][layer]
        assert torch.equal(term.block.inputs, old["inputs"])
        assert torch.equal(term.block.outputs, old["outputs"])
        if mode == "separate":
            assert torch.equal(term.centre, old["centre"])
        else:  # recentred, as ever
            assert not term.difference({n: p.detach() for n, p in strategy.model.named_parameters()}).any()


def test_raise_makes_it_an_error_that_changes_nothing(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=10.0, fisher_labels="sampled", zero_fisher="raise")
    strategy, before = train_two(digits_permuted, plugin)
    with pytest.raises(ValueError, match=ZERO):
        strategy.train(digits_permuted.train_stream[1], eval_streams=[])
    after = plugin.state_dict()
    assert after["tasks"] == before["tasks"] == 1
    assert torch.equal(after["generator"], before["generator"])
    assert_same(after["importances"], before["importances"], rtol=0, atol=0)


def test_online_forgets_and_moves_its_centre_as_with_any_other_task(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=10.0, mode="online", gamma=0.5)
    strategy, before = train_two(digits_permuted, plugin)
    with pytest.warns(UserWarning, match=ZERO):
        strategy.train(digits_permuted.train_stream[1], eval_streams=[])
    halved = {n: a / 2 for n, a in before["penalty"]["precision"].items()}
    assert_same(plugin.penalty.precision, halved, rtol=1e-6, atol=0)
    assert_same(plugin.penalty.centre, snapshot(strategy.model), rtol=0, atol=0)


def test_a_visit_without_a_fisher_leaves_the_labels_term(digits_split: Any) -> None:
    plugin, model = EWCPlugin(ewc_lambda=10.0, revisits="replace"), MultiHead()
    strategy = naive(model, plugin)
    first, second = digits_split.train_stream[:2]
    strategy.train([first, second], eval_streams=[])
    before = plugin.penalty.state_dict()
    nn.init.zeros_(model.hidden.weight)
    nn.init.zeros_(model.hidden.bias)
    head = model.head.classifiers["0"].classifier
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1e4, 0]))
    strategy.train_epochs = 0
    with pytest.warns(UserWarning, match="the Fisher of experience 0 is zero"):
        strategy.train(first, eval_streams=[])
    assert plugin.tasks == 3
    assert plugin._terms.keys() == {0, 1}
    assert_same(plugin.penalty.precision, before["precision"], rtol=0, atol=0)


def test_parameters_that_the_outputs_do_not_depend_on(digits_permuted: Any) -> None:
    dead = mlp()
    nn.init.zeros_(dead[2].weight)
    plugin = EWCPlugin(ewc_lambda=1.0, include="0.*")
    with pytest.warns(UserWarning, match=r"include and exclude leave parameters that its outputs do not depend on"):
        naive(dead, plugin, train_epochs=0).train(digits_permuted.train_stream[0], eval_streams=[])
    assert plugin.tasks == 1
    assert not plugin.penalty.precision


def test_metrics_show_no_mass_and_no_overlap(digits_permuted: Any) -> None:
    overlap = FisherOverlap()
    plugin = EWCPlugin(ewc_lambda=10.0)
    metrics = [*ewc_metrics(experience=True), overlap]
    strategy = naive(mlp(), plugin)
    strategy.plugins[1] = strategy.evaluator = EvaluationPlugin(*metrics, loggers=[BaseLogger()])
    strategy.train(digits_permuted.train_stream[0], eval_streams=[])
    weight = strategy.model[2].bias.detach().clone()
    saturate(strategy.model)
    epochs, strategy.train_epochs = strategy.train_epochs, 0
    with pytest.warns(UserWarning, match=ZERO):
        strategy.train(digits_permuted.train_stream[1], eval_streams=[])
    with torch.no_grad():
        strategy.model[2].bias.copy_(weight)
    strategy.train_epochs = epochs
    strategy.train(digits_permuted.train_stream[2], eval_streams=[])
    masses = strategy.evaluator.get_all_metrics()["ewc/FisherMass/layer 1/train_phase/train_stream/Task000"][1]
    assert masses[1] == 0 < min(masses[0], masses[2])
    for matrix in overlap.matrices().values():
        found = torch.tensor(matrix)
        assert found.isnan().tolist() == [[False, True, False], [True, True, True], [False, True, False]]
        assert found[0, 0].item() == pytest.approx(1)
        assert 0 < found[0, 2] == found[2, 0] < 1
    assert len(overlap.matrices()) == 2
