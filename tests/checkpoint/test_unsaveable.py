"""What has state that a file cannot hold is refused by name; what declares its state, or has none, is served."""

import os
import stat

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import StreamConfusionMatrix
from avalanche.models import PNN, DynamicModule
from avalanche.training.plugins import EvaluationPlugin, MASPlugin, ReplayPlugin
from avalanche.training.supervised import Naive
from checkpoint_cases import benchmark, build
from torch import nn

from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.checkpoint.known import UnsaveableError


class Counter(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.count = 0

    def after_training_iteration(self, strategy, **kwargs):
        self.count += 1


class Remembers(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.seen = []


class Stateless(SupervisedPlugin):
    __constants__ = ("every", "names")

    def __init__(self):
        super().__init__()
        self.every, self.names, self.rule = 3, ("a", "b"), len

    def after_training_iteration(self, strategy, **kwargs):
        strategy.note = self.every


class GrowsSilently(DynamicModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def adaptation(self, experience):
        self.layer = nn.Linear(64, 12)


def replaced_model(model):
    strategy = build()
    strategy.model = model
    return strategy


class BadMetric(StreamConfusionMatrix):
    def __init__(self):
        super().__init__(save_image=False)
        self.helper = object()


def with_metric(metric):
    strategy = build()
    strategy.evaluator.metrics.append(metric)
    return strategy


def with_own_parameter():
    strategy = build()
    stranger = nn.Parameter(torch.ones(3))
    stranger.grad = torch.ones(3)
    strategy.optimizer.add_param_group({"params": [stranger]})
    return strategy


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: build(plugins=[ReplayPlugin(mem_size=10)]),
            "ReplayPlugin keeps state in its attribute 'storage_policy'",
        ),
        (lambda: build(plugins=[Counter()]), "Counter keeps state in its attribute 'count'"),
        (lambda: build(plugins=[Remembers()]), "Remembers keeps state in its attribute 'seen'"),
        (lambda: replaced_model(GrowsSilently()), "GrowsSilently .* changes its shape in adaptation"),
        (lambda: replaced_model(PNN(num_layers=1, in_features=64)), "PNNLayer .* changes its shape"),
        (lambda: with_metric(BadMetric()), "BadMetric.helper is a object"),
        (with_own_parameter, "shape \\(3,\\) that is in neither the model nor the criterion"),
    ],
)
def test_what_cannot_be_saved_is_named_and_no_file_is_written(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        save_checkpoint(make(), tmp_path / "run.pt")
    assert list(tmp_path.iterdir()) == []


class WithSettings(Naive):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.rate = 0.5


class WithConstants(WithSettings):
    __constants__ = ("rate",)


class Evaluation(EvaluationPlugin):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen = 0


class Scaled:
    """A criterion that is neither a function nor a module."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, output, y):
        return self.scale * nn.functional.cross_entropy(output, y)


class ScaledConstantly(Scaled):
    __constants__ = ("scale",)


class Learnt(Scaled):
    def state_dict(self):
        return {"scale": self.scale}

    def load_state_dict(self, state):
        self.scale = state["scale"]


class WithStateBeside(MASPlugin):
    def __init__(self):
        super().__init__()
        self.beside = None


def rebuilt(kind=Naive, evaluator_kind=None, **arguments):
    strategy = build()
    if evaluator_kind is not None:
        own = strategy.evaluator
        strategy.evaluator = evaluator_kind(own.metrics, loggers=own.loggers)
        strategy.plugins[strategy.plugins.index(own)] = strategy.evaluator
        return strategy
    parts = {"model": strategy.model, "optimizer": strategy.optimizer, "evaluator": strategy.evaluator}
    return kind(**{**parts, "criterion": nn.CrossEntropyLoss(), **arguments})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: rebuilt(WithSettings),
            "WithSettings keeps state in its attribute 'rate' .* or __constants__ = .'rate',.",
        ),
        (lambda: rebuilt(evaluator_kind=Evaluation), "Evaluation keeps state in its attribute 'seen'"),
        (lambda: rebuilt(criterion=Scaled(2.0)), "Scaled keeps state in its attribute 'scale'"),
        (lambda: build(plugins=[WithStateBeside()]), "WithStateBeside keeps state in its attribute 'beside'"),
    ],
)
def test_attributes_that_nothing_is_known_of_are_refused(tmp_path, make, message):
    with pytest.raises(UnsaveableError, match=message):
        save_checkpoint(make(), tmp_path / "run.pt")


@pytest.mark.parametrize(
    "make",
    [
        lambda: rebuilt(WithConstants),
        lambda: rebuilt(criterion=ScaledConstantly(2.0)),
        lambda: rebuilt(criterion=Learnt(2.0)),
        lambda: rebuilt(criterion=nn.functional.cross_entropy),
    ],
)
def test_attributes_that_are_declared_are_not(tmp_path, make):
    strategy = make()
    save_checkpoint(strategy, tmp_path / "run.pt")
    second = make()
    if isinstance(strategy._criterion, Learnt):
        second._criterion.scale = 1.0
    load_checkpoint(second, tmp_path / "run.pt")
    assert getattr(second._criterion, "scale", 2.0) == 2.0


def test_arguments_are_checked(tmp_path):
    strategy, path = build(), tmp_path / "run.pt"
    for call in (save_checkpoint, load_checkpoint):
        with pytest.raises(TypeError, match="strategy must be an Avalanche strategy, got a Sequential"):
            call(strategy.model, path)
    with pytest.raises(ValueError, match="on_unsaveable must be 'raise' or 'warn', got 'skip'"):
        save_checkpoint(strategy, path, on_unsaveable="skip")
    assert not path.exists()
    assert save_checkpoint(strategy, path)
    with pytest.raises(ValueError, match=r"map_location must be a device, .* got 'nowhere'"):
        load_checkpoint(strategy, path, map_location="nowhere")


def test_links_permissions_and_what_is_no_file(tmp_path):
    target, link = tmp_path / "target.pt", tmp_path / "run.pt"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to(target)
    save_checkpoint(build(), link)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert load_checkpoint(build(), target) == load_checkpoint(build(), link) == 0
    os.mkfifo(tmp_path / "pipe")
    for call in (save_checkpoint, load_checkpoint):
        for path in (tmp_path / "pipe", "/dev/null"):
            with pytest.raises(ValueError, match="path must be a regular file"):
                call(build(), path)
    with pytest.raises(ValueError, match="got the folder"):
        save_checkpoint(build(), tmp_path)


def test_stateless_plugins_need_nothing(tmp_path):
    save_checkpoint(build(plugins=[Stateless()]), tmp_path / "run.pt")
    assert load_checkpoint(build(), tmp_path / "run.pt") == 0


def test_saving_inside_training_is_refused(tmp_path):
    class SavesInside(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            save_checkpoint(strategy, tmp_path / "run.pt")

    with pytest.raises(ValueError, match="inside train"):
        build(plugins=[SavesInside()]).train(benchmark().train_stream[0])
