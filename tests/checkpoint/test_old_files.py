"""Files written before bare names, the state of Avalanche's plugins and `Progress` are still read.

They are of the first version of the format: of a Cumulative strategy after an experience, and of a Naive one inside the
second phase of a plugin, where two batches of an epoch were still to come.
"""

import io
from pathlib import Path

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, timing_metrics
from avalanche.logging import TextLogger
from avalanche.training.plugins import EvaluationPlugin
from checkpoint_cases import Distill, Once, benchmark, build, differences

from avl_plugins.checkpoint.file import load_checkpoint
from avl_plugins.checkpoint.progress import Progress

FILES = Path(__file__).parent / "files"


class SaveAt(SupervisedPlugin):
    """Stands where the plugin stood that wrote the files."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def built(kind):
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, stream=True),
        forgetting_metrics(stream=True),
        timing_metrics(epoch=True),
        loggers=[TextLogger(io.StringIO())],
    )
    strategy = build(kind, optimizer="adam", plugins=[Once(), Distill(), SaveAt()], seed=99)
    strategy.plugins[strategy.plugins.index(strategy.evaluator)] = strategy.evaluator = evaluator
    return strategy


@pytest.mark.parametrize(
    ("name", "kind", "completed", "iterations"),
    [("between", "resumable-cumulative", 1, 12), ("inside-phase", "resumable", 1, 22)],
)
def test_an_old_file_is_loaded_and_training_goes_on(name, kind, completed, iterations):
    saved = torch.load(FILES / f"{name}.pt", weights_only=True)["state"]
    strategy, digits = built(kind), benchmark()
    assert load_checkpoint(strategy, FILES / f"{name}.pt") == completed
    assert strategy.clock.train_iterations == iterations
    for key, value in saved["model"]["state"].items():
        assert torch.equal(strategy.model.state_dict()[key], value)
    names = {parameter: name for name, parameter in strategy.model.named_parameters()}
    for parameter, state in strategy.optimizer.state.items():
        assert torch.equal(state["exp_avg"], saved["optimizer"]["state"][names[parameter]]["exp_avg"])
    assert len(strategy.optimizer.state) == len(saved["optimizer"]["state"]) > 0
    if saved["progress"] is None:
        assert strategy.progress is None
    else:
        assert differences(vars(Progress.from_plain(saved["progress"])), vars(strategy.progress)) == []
        assert str(strategy.progress) == "experience 1, phase 'distill: fit', epoch 1, iteration 1"
        assert strategy.progress.begun == ["train", "distill: draw", "distill: fit"]
    strategy.train(digits.train_stream[1])
    strategy.eval(digits.test_stream)
    assert strategy.clock.train_exp_counter == 2
    calls = next(plugin for plugin in strategy.plugins if isinstance(plugin, Distill)).calls
    assert [call[0] for call in calls] == ["0", "1"]
    if kind == "resumable-cumulative":
        assert len(strategy.dataset) == sum(len(experience.dataset) for experience in digits.train_stream[:2])
    else:
        # What was still to be done, and nothing again.
        assert strategy.clock.train_iterations == iterations + 2
