"""Size of columns and share of laterals against counts by hand."""

import pytest
import torch
from avalanche.models import MultiTaskModule
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avl_plugins import ProgressiveNetwork, load_checkpoint, save_checkpoint
from avl_plugins.metrics import column_metrics, count_parameters
from avl_plugins.metrics.columns import ColumnSize

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified", "ignore:task . has not been trained on")


class Around(MultiTaskModule):
    """A model that contains a progressive network."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, task_labels):
        return self.network(x, task_labels)

    def forward_single_task(self, x, task_label):
        return self.network(x, task_label)


def build(model, metrics):
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=64,
        evaluator=EvaluationPlugin(*metrics, loggers=[]),
    )


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("adapter", ["linear", "mlp", None])
def test_counts_by_hand(digits_split, adapter, around):
    network = ProgressiveNetwork(nn.Sequential(nn.Linear(64, 16), nn.ReLU()), adapter=adapter, reduction=2)
    model = Around(network) if around else network
    metrics = column_metrics()
    strategy = build(model, metrics)
    assert [metric.result() for metric in metrics] == [None] * 3
    for experience in digits_split.train_stream[:3]:
        strategy.train(experience)
    # The head has two outputs. Laterals lead into it alone, from 0, 1 and 2 columns: linear 16 -> 2 a column; mlp one
    # alpha a column, V 16 k -> 8 with a bias, U 8 -> 2.
    own = 64 * 16 + 16 + 16 * 2 + 2
    lateral = {
        "linear": [0, 32, 64],
        "mlp": [0, *(k + 16 * k * 8 + 8 + 8 * 2 for k in (1, 2))],
        None: [0, 0, 0],
    }[adapter]
    logged = strategy.evaluator.get_all_metrics()
    suffix = "/train_phase/train_stream"
    assert logged[f"progressive/ColumnParameters{suffix}"][1] == [own + n for n in lateral]
    assert logged[f"progressive/ColumnLateralShare{suffix}"][1] == [n / (own + n) for n in lateral]
    sums = [sum(lateral[: k + 1]) for k in range(3)]
    assert logged[f"progressive/NetworkLateralShare{suffix}"][1] == [
        n / ((k + 1) * own + n) for k, n in enumerate(sums)
    ]
    assert all(type(value) is float for _, values in logged.values() for value in values)
    assert count_parameters(model) == 3 * own + sums[-1]
    assert metrics[0].result() == own + lateral[-1]
    metrics[0].reset()
    assert metrics[0].result() is None


def test_goes_on_from_a_checkpoint(digits_split, tmp_path):
    strategies = []
    for _ in range(2):
        network = ProgressiveNetwork(nn.Sequential(nn.Linear(64, 16), nn.ReLU()))
        strategies.append(build(network, column_metrics()))
    strategies[0].train(digits_split.train_stream[:2])
    save_checkpoint(strategies[0], tmp_path / "run.pt")
    load_checkpoint(strategies[1], tmp_path / "run.pt")
    for strategy in strategies:
        strategy.train(digits_split.train_stream[2])
    one, other = (strategy.evaluator.get_all_metrics() for strategy in strategies)
    assert dict(one) == dict(other)
    assert len(one["progressive/ColumnParameters/train_phase/train_stream"][1]) == 3


def test_what_it_refuses(digits_split):
    model = nn.Sequential(nn.Linear(64, 10))
    with pytest.raises(ValueError, match="need a model with one ProgressiveNetwork in it, and Sequential has 0"):
        build(model, column_metrics()).train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match="kind must be 'parameters', 'column_share' or 'network_share', got 'size'"):
        ColumnSize(kind="size")
    assert column_metrics(parameters=False, column_share=False, network_share=False) == []
    assert [str(m) for m in column_metrics(parameters=False)] == [
        "progressive/ColumnLateralShare",
        "progressive/NetworkLateralShare",
    ]
