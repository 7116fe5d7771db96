"""Arguments of all metrics: another kind, out of range, not finite, bool for a number, each refused by name."""

import math

import pytest
import torch
from torch import nn

from avl_plugins import metrics
from avl_plugins.metrics import learning_curve_area, transfer_metrics, transfer_score
from avl_plugins.metrics.auroc import ScoreMetric
from avl_plugins.metrics.capacity import Capacity, count_parameters
from avl_plugins.metrics.columns import ColumnSize
from avl_plugins.metrics.ewc import EWCPenalty
from avl_plugins.metrics.forgetting import MaxForgetting

FLAGS = {
    "auroc_metrics": ("experience", "stream", "accuracy"),
    "capacity_metrics": ("total", "trainable", "relative"),
    "chaudhry_forgetting_metrics": ("experience", "stream"),
    "column_metrics": ("parameters", "column_share", "network_share"),
    "den_metrics": ("units", "figure"),
    "ewc_metrics": ("minibatch", "epoch", "experience", "overlap"),
    "replay_metrics": ("images", "classes", "losses", "distance"),
    "sensitivity_metrics": ("figure", "columns", "layers"),
}
COUNTS = [
    ("replay_metrics", "samples", 2, False),
    ("sensitivity_metrics", "max_samples", 1, True),
    ("sensitivity_metrics", "batch_size", 1, False),
]
CURVE = [(0, 0.2), (4, 0.6)]


@pytest.mark.parametrize("value", [1, 0, None, "yes", 1.0])
@pytest.mark.parametrize(("factory", "name"), [(f, name) for f, names in FLAGS.items() for name in names])
def test_flags(factory, name, value):
    with pytest.raises(TypeError, match=f"^{name} must be True or False, got {value!r}$"):
        getattr(metrics, factory)(**{name: value})


@pytest.mark.parametrize(("factory", "name", "low", "none"), COUNTS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 8.0, 1.5, True, "8", -1, 0, None])
def test_counts(factory, name, low, none, value):
    make = getattr(metrics, factory)
    make(**{name: low})
    if value is None and none:
        make(**{name: None})
        return
    with pytest.raises((TypeError, ValueError), match=rf"^{name} must be an integer >= {low}.*, got {value!r}$"):
        make(**{name: value})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: metrics.sensitivity_metrics(normalise="column"), "normalise must be 'layer' or 'map', got 'column'"),
        (lambda: metrics.sensitivity_metrics(labels="empirical"), "labels must be 'exact' or 'sampled', got"),
        (lambda: metrics.replay_metrics(classifier="net"), "classifier must be a function inputs -> logits or labels"),
        (lambda: metrics.replay_metrics(shape=64), r"shape must be \(C, H, W\), or None .*, got 64"),
        (lambda: metrics.replay_metrics(shape=(8, 8)), r"shape must be \(C, H, W\), or None .*, got \(8, 8\)"),
        (lambda: metrics.replay_metrics(shape=(1, 8, 0)), "width of shape must be an integer >= 1, got 0"),
        (lambda: metrics.replay_metrics(shape=(1, 8.0, 8)), "height of shape must be an integer >= 1, got 8.0"),
        (lambda: metrics.replay_metrics(shape=(2, 8, 8)), "channels of shape must be 1 or 3, got 2"),
        (lambda: Capacity(kind="size"), "kind must be 'total', 'trainable' or 'relative', got 'size'"),
        (lambda: ColumnSize(kind="size"), "kind must be 'parameters', 'column_share' or 'network_share', got 'size'"),
        (lambda: ScoreMetric(kind="loss", per_experience=True), "kind must be 'auroc' or 'accuracy', got 'loss'"),
        (lambda: ScoreMetric(kind="auroc", per_experience=1), "per_experience must be True or False, got 1"),
        (lambda: MaxForgetting(per_experience=None), "per_experience must be True or False, got None"),
        (lambda: EWCPenalty(emit_at="stream"), "emit_at must be 'iteration' or 'epoch', got 'stream'"),
        (lambda: count_parameters(nn.Linear(2, 2), trainable=1), "trainable must be True or False, got 1"),
        (lambda: transfer_metrics(phase="test"), "phase must be 'eval' or 'train', got 'test'"),
        (lambda: transfer_metrics(stream_name=3), "stream_name must be a stream's name, or None, got 3"),
        (lambda: transfer_metrics(baseline=[CURVE]), "baseline must be a dict of learning curves by task label"),
        (lambda: transfer_metrics(baseline={"1": CURVE}), "label must be an integer"),
        (lambda: transfer_metrics(baseline={1: [0.5, 0.6]}), r"baseline\[1\]\[0\] must be a pair .*, got 0.5"),
        (lambda: transfer_metrics(floor=math.nan), "floor must be a number, got nan"),
        (lambda: transfer_metrics(floor=True), "floor must be a number, got True"),
        (lambda: transfer_metrics(floor={1: math.inf}), r"floor\[1\] must be a number, got inf"),
        (lambda: transfer_metrics(floor="chance"), "floor must be a number, got 'chance'"),
        (lambda: learning_curve_area(CURVE, floor=None), "floor must be a number, got None"),
        (lambda: learning_curve_area([(0, 1.0), (1, True)]), r"value of curve\[1\] must be a number, got True"),
        (
            lambda: learning_curve_area([(0, 1.0), (math.inf, 1.0)]),
            r"iterations of curve\[1\] must be a number, got inf",
        ),
        (lambda: learning_curve_area([(0, 1.0), (1, 2, 3)]), r"curve\[1\] must be a pair .*, got \(1, 2, 3\)"),
        (lambda: transfer_score(CURVE, [(0, "a"), (4, 1.0)]), r"value of baseline\[0\] must be a number, got 'a'"),
        (lambda: metrics.mean_auroc(torch.zeros(3, 2, 2), torch.zeros(3)), r"got the shapes \(3, 2, 2\) and \(3,\)"),
        (lambda: metrics.mean_auroc(torch.zeros(3, 2), torch.zeros(3, 2)), r"got the shapes \(3, 2\) and \(3, 2\)"),
        (lambda: metrics.mean_auroc(torch.zeros(3, 2), torch.zeros(4)), r"got the shapes \(3, 2\) and \(4,\)"),
        (lambda: metrics.mean_auroc(torch.tensor([0.1, math.nan]), torch.tensor([0, 1])), "scores must be finite"),
    ],
)
def test_others(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
