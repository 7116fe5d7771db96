"""What is reported of DEN's growth: as numbers in the evaluator, a table and a figure."""

import pytest
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from den_cases import build, mlp
from silent import Silent
from torch import nn, optim

from avl_plugins import InMemoryLoaderPlugin
from avl_plugins.metrics import den_metrics, growth_figure, growth_table


def test_growth_is_reported(digits_split):
    strategy = build(plugins=[InMemoryLoaderPlugin()], drift_threshold=0.01, max_splits=2)
    strategy.evaluator.metrics += den_metrics()
    for experience in digits_split.train_stream[:3]:
        strategy.train(experience)
    history = strategy.evaluator.get_all_metrics()
    entry = strategy.den.history[2]

    def last(name):
        return history[f"{name}/train_phase/train_stream"][1][-1]

    for layer in (1, 2):
        assert last(f"den/selected/layer {layer}") == entry["selected"][layer]
        assert last(f"den/added/layer {layer}") == entry["added"][layer - 1] - entry["removed"][layer - 1]
        assert last(f"den/removed/layer {layer}") == entry["removed"][layer - 1]
        assert last(f"den/split/layer {layer}") == entry["split"][layer - 1]
        assert last(f"den/units/layer {layer}") == strategy.model.hidden[layer - 1].units
    assert last("den/capacity") == pytest.approx(strategy.model.capacity())
    assert last("den/loss") == entry["loss"]
    assert last("den/loss_threshold") == 0.0
    assert len(history["den/capacity/train_phase/train_stream"][1]) == 3
    assert len(history["den/growth/train_phase/train_stream"][1]) == 2, "the first task grows nothing"
    panels = strategy.evaluator.metrics[-1].result().axes
    kinds = ("selected", "added", "removed", "split")
    assert [axes.get_title() for axes in panels[:4]] == [f"units {kind}" for kind in kinds]
    assert [line.get_ydata().tolist() for line in panels[3].lines] == [
        [row["split"] for row in growth_table(strategy.den.history) if row["layer"] == layer] for layer in (1, 2)
    ]
    loss, tau = panels[4].lines
    assert loss.get_ydata().tolist() == [entry["loss"] for entry in strategy.den.history[1:]]
    assert tau.get_ydata() == [0.0, 0.0]


def test_table():
    history = [
        {"label": 4, "selected": [], "added": [], "removed": [], "drift": [], "split": []},
        {"label": 7, "selected": [9, 5], "loss": 0.3, "added": [4], "removed": [1], "drift": [0.2], "split": [2]},
        {"label": 8, "selected": [9, 5], "loss": 0.1, "added": [], "removed": [], "drift": [], "split": []},
    ]
    history.append({**history[1], "label": 9})
    rows = growth_table(history)
    seven = {"layer": 1, "selected": 5, "added": 3, "removed": 1, "split": 2, "drift": 0.2, "loss": 0.3}
    nothing = dict.fromkeys(("added", "removed", "split", "drift"))
    assert rows == [
        {"number": 2, "task": 7, **seven},
        {"number": 3, "task": 8, "layer": 1, "selected": 5, **nothing, "loss": 0.1},
        {"number": 4, "task": 9, **seven},
    ]
    (added,) = growth_figure(rows).axes[1].lines
    assert added.get_xdata().tolist() == [2, 4], "a task without expansion leaves its place free"


def test_without_the_plugin(digits_split):
    net = nn.Linear(64, 2)
    evaluator = EvaluationPlugin(accuracy_metrics(epoch=True), den_metrics(), loggers=[Silent()])
    strategy = Naive(model=net, optimizer=optim.SGD(net.parameters(), 0.1), evaluator=evaluator)
    with pytest.raises(ValueError, match="den_metrics needs a strategy with a DENPlugin"):
        strategy.train(digits_split.train_stream[0])
    assert mlp().labels == []
