"""One-vs-rest: AUROC against a count of pairs, its metric with one logit a task, and the loss."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from den_cases import build, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from avl_plugins import InMemoryLoaderPlugin, one_vs_rest_loss
from avl_plugins.den.loss import one_vs_rest_targets
from avl_plugins.metrics import auroc_metrics, mean_auroc


def task_benchmark(**streams):
    return with_classes_timeline(with_task_labels(benchmark_from_datasets(**streams)))


def pairs_in_order(scores, positive):
    """Share of pairs (positive, negative) with the larger score first, equal ones counting half."""
    high, low = scores[positive][:, None], scores[~positive][None]
    return float(((high > low).double() + 0.5 * (high == low).double()).mean())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_auroc_is_the_share_of_ordered_pairs(seed, coarse):
    generator = torch.Generator().manual_seed(seed)
    scores, y = 3 * torch.randn(40, 1, generator=generator), torch.arange(40) % 3 == 0
    scores = scores.round() if coarse else scores * 1e-6  # with ties, and too close for float16
    expected = pairs_in_order(scores[:, 0], y)
    assert mean_auroc(scores, y.long()) == pytest.approx(expected, abs=1e-6)
    assert mean_auroc(-scores, y.long()) == pytest.approx(1 - expected, abs=1e-6)


def test_auroc_of_several_classes():
    scores = torch.randn(60, 4)
    y = torch.arange(60) % 3  # class 3 does not occur
    expected = [pairs_in_order(scores[:, c], y == c) for c in range(3)]
    assert mean_auroc(scores, y) == pytest.approx(sum(expected) / 3, abs=1e-6)
    two = torch.randn(60, 2)
    assert mean_auroc(two, y % 2) == pytest.approx(pairs_in_order(two[:, 1] - two[:, 0], y % 2 == 1), abs=1e-6)
    with pytest.raises(ValueError, match="y: there is no class"):
        mean_auroc(scores, torch.zeros(60, dtype=torch.long))


def test_one_logit_a_sample_and_classes_in_a_column():
    scores, y = torch.randn(20), torch.arange(20) % 2
    assert mean_auroc(scores, y) == mean_auroc(scores[:, None], y[:, None]) == mean_auroc(scores[:, None], y)


def test_an_experience_without_auroc_is_left_out(digits_split, caplog):
    """With a single class there is nothing to tell apart; the mean is over the others."""
    strategy = build(mlp(), plugins=[InMemoryLoaderPlugin()])
    strategy.evaluator.metrics += auroc_metrics(accuracy=True)
    strategy.train(digits_split.train_stream[:2])
    rows = [i for i, y in enumerate(digits_split.test_stream[1].dataset.targets) if y == 1]
    one_class = digits_split.test_stream[1].dataset.subset(rows)
    both = task_benchmark(test=[digits_split.test_stream[0].dataset, one_class]).test_stream
    found = strategy.eval(both)
    where = "eval_phase/test_stream"
    assert found[f"AUROC_Stream/{where}"] == found[f"AUROC_Exp/{where}/Task000/Exp000"]
    assert f"AUROC_Exp/{where}/Task001/Exp001" not in found
    assert f"ThresholdAcc_Exp/{where}/Task001/Exp001" in found
    assert "no AUROC of experience 1: y: there is no class" in caplog.text


def test_loss():
    logits, y = torch.randn(7, 1), torch.tensor([0, 1, 1, 0, 0, 1, 0])
    assert torch.equal(one_vs_rest_loss(logits, y), binary_cross_entropy_with_logits(logits[:, 0], y.float()))
    logits, y = torch.randn(3, 4), torch.tensor([2, 0, 3])
    assert torch.equal(one_vs_rest_targets(logits, y), torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]))
    with pytest.raises(ValueError, match="y: there is a class 4, and 4 logits tell 4 classes"):
        one_vs_rest_loss(logits, torch.tensor([4, 0, 0]))
    with pytest.raises(ValueError, match="a class 2, and 1 logits tell 2 classes"):
        one_vs_rest_loss(torch.zeros(1, 1), torch.tensor([2]))


def test_metric_of_binary_tasks(digits_split):
    """Avalanche's accuracy takes one logit as class 0 always; AUROC and the threshold at 0 read it."""
    net = mlp(head="binary")
    strategy = build(net, plugins=[InMemoryLoaderPlugin()], epochs=20, criterion=one_vs_rest_loss)
    strategy.evaluator.metrics += auroc_metrics(accuracy=True)
    strategy.train(digits_split.train_stream[:2])
    found = strategy.eval(digits_split.test_stream[:2])
    where = "eval_phase/test_stream"
    each = []
    for k in range(2):
        data = digits_split.test_stream[k].dataset
        x, y, _ = (torch.stack([torch.as_tensor(v) for v in part]) for part in zip(*data, strict=True))
        logits = net.eval()(x, k).detach()
        each.append(pairs_in_order(logits[:, 0], y == 1))
        assert found[f"AUROC_Exp/{where}/Task00{k}/Exp00{k}"] == pytest.approx(each[-1], abs=1e-6)
        right = float(((logits[:, 0] > 0).long() == y).float().mean())
        assert found[f"ThresholdAcc_Exp/{where}/Task00{k}/Exp00{k}"] == pytest.approx(right)
        assert right > 0.85
        assert found[f"Top1_Acc_Exp/{where}/Task00{k}/Exp00{k}"] == pytest.approx(float((y == 0).float().mean()))
    assert found[f"AUROC_Stream/{where}"] == pytest.approx(sum(each) / 2, abs=1e-6)
