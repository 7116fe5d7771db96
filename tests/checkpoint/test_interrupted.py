"""Ctrl-C and exceptions anywhere in train() and eval(): what is left can be saved, loaded, evaluated and trained."""

import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised.joint_training import AlreadyTrainedError, JointTraining
from checkpoint_cases import benchmark, build, differences, evaluator, outcome
from torch import nn

from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.checkpoint.running import interrupted_in, is_running

pytestmark = [
    pytest.mark.filterwarnings("ignore:EWC fails in class-incremental training"),
    pytest.mark.filterwarnings("ignore:task . has not been trained on yet"),
]
MODELS = {"ewc": "multihead", "progressive": "progressive", "den": "den"}
METHODS = ("naive", "ewc", "dgr", "progressive", "den")
TRAINING = (
    *("before_training", "before_train_dataset_adaptation", "after_train_dataset_adaptation", "before_training_exp"),
    *("before_training_epoch", "before_training_iteration", "before_forward", "after_forward", "before_backward"),
    *("after_backward", "before_update", "after_update", "after_training_iteration", "after_training_epoch"),
    *("after_training_exp", "after_training"),
)
EVALUATION = (
    *("before_eval", "before_eval_dataset_adaptation", "after_eval_dataset_adaptation", "before_eval_exp"),
    *("before_eval_iteration", "before_eval_forward", "after_eval_forward", "after_eval_iteration"),
    *("after_eval_exp", "after_eval"),
)
PARTS = ("loader", "forward", "criterion", "optimizer")


class Interrupt(SupervisedPlugin):
    """Raises in a hook, or in a part of the strategy, when it is armed."""

    __constants__ = ("place", "error", "armed")

    def __init__(self, place, error):
        super().__init__()
        self.place, self.error, self.armed = place, error, False
        if place in TRAINING + EVALUATION:
            setattr(self, place, self._strike)

    def _strike(self, *args, **kwargs):
        if self.armed:
            self.armed = False
            raise self.error("struck")

    def strike_in(self, strategy):
        """Have a part of the strategy raise at its next use."""
        if self.place == "loader":
            self.before_training_epoch = self._replace_loader
        elif self.place == "optimizer":
            strategy.optimizer.register_step_pre_hook(self._strike)
        else:
            module = strategy.model if self.place == "forward" else strategy._criterion
            module.register_forward_hook(self._strike)

    def _replace_loader(self, strategy, **kwargs):
        if self.armed:
            strategy.dataloader = self._broken(strategy.dataloader)

    def _broken(self, loader):
        yield next(iter(loader))
        self._strike()


@functools.cache
def digits_for(kind):
    return benchmark(MODELS.get(kind, "incremental"), train=100, test=50)


def built(kind, place="", error=KeyboardInterrupt):
    plugins, every = [Interrupt(place, error)], 1 if place in EVALUATION else -1
    return build(kind, MODELS.get(kind, "incremental"), "adam", plugins=plugins, train_epochs=1, eval_every=every)


def interrupted(kind, place, error, *, call="train"):
    """A strategy that has completed an experience, and was interrupted in the second, or in an evaluation after it."""
    digits, strategy = digits_for(kind), built(kind, place, error)
    strategy.train(digits.train_stream[0])
    strategy.plugins[0].armed = True
    if place in PARTS:
        strategy.plugins[0].strike_in(strategy)
    with pytest.raises(error, match="struck"):
        strategy.train(digits.train_stream[1]) if call == "train" else strategy.eval(digits.test_stream)
    return strategy


def goes_on(strategy, kind, path):
    """Save it, and compare how it goes on with how a fresh one does that is loaded from the file."""
    digits, fresh = digits_for(kind), built(kind, strategy.plugins[0].place)
    assert save_checkpoint(strategy, path)
    for each in (fresh, strategy):
        assert load_checkpoint(each, path) == each.clock.train_exp_counter
        assert each.experience is interrupted_in(each) is None
        each.train(digits.train_stream[each.clock.train_exp_counter])
        each.eval(digits.test_stream)
    assert differences(outcome(strategy), outcome(fresh)) == []
    assert save_checkpoint(strategy, path)


# All hooks for all methods; those of evaluations in full for a stock strategy and for one that tidies up.
PLACES = [(kind, place) for kind in METHODS for place in (*TRAINING, *PARTS, "before_eval_exp", "after_eval_iteration")]
PLACES_OF_EVALUATION = [(kind, place) for kind in ("naive", "ewc") for place in EVALUATION]


@pytest.mark.parametrize(("kind", "place"), dict.fromkeys(PLACES + PLACES_OF_EVALUATION))
def test_interrupted_in_training(tmp_path, kind, place):
    error = KeyboardInterrupt if len(place) % 2 else RuntimeError
    strategy = interrupted(kind, place, error)
    assert not is_running(strategy)
    assert strategy.clock.train_exp_counter == 1 + (place == "after_training")
    goes_on(strategy, kind, tmp_path / "run.pt")


@pytest.mark.parametrize(("kind", "at_least"), [("dgr", 2), ("den", 4)])
def test_interrupted_in_each_phase(tmp_path, kind, at_least):
    """Also where DEN has grown, and where DGR's generator has been trained for a while."""
    stream = digits_for(kind).train_stream

    def run(struck):
        strategy, begun = built(kind), {}

        def safe_point(strategy):
            begun[strategy.progress.phase] = None
            if strategy.progress.experience == 1 and strategy.progress.phase == struck:
                raise KeyboardInterrupt

        strategy.plugins[0].safe_point = safe_point
        strategy.train(stream[0])
        with nullcontext() if struck is None else pytest.raises(KeyboardInterrupt):
            strategy.train(stream[1])
        strategy.plugins[0].safe_point = lambda strategy: None
        return strategy, list(begun)

    _, phases = run(None)
    assert len(phases) >= at_least
    for phase in phases:
        strategy, _ = run(phase)
        assert phase in strategy.interrupted
        goes_on(strategy, kind, tmp_path / "run.pt")


@pytest.mark.parametrize(("kind", "place"), PLACES_OF_EVALUATION)
def test_interrupted_in_an_evaluation(tmp_path, kind, place):
    goes_on(interrupted(kind, place, KeyboardInterrupt, call="eval"), kind, tmp_path / "run.pt")


@pytest.mark.parametrize("kind", ["cumulative", "resumable-cumulative"])
@pytest.mark.parametrize(
    "place", ["before_training", "before_train_dataset_adaptation", "before_forward", "before_eval", "after_training"]
)
def test_interrupted_cumulative_has_each_experience_once(tmp_path, kind, place):
    goes_on(interrupted(kind, place, KeyboardInterrupt), kind, tmp_path / "run.pt")


@pytest.mark.parametrize(
    ("kind", "place", "call", "said"),
    [
        ("naive", "after_forward", "train", "train() on experience 1"),
        ("naive", "before_eval_exp", "train", "eval() on experience 1"),
        ("naive", "after_eval_iteration", "eval", "eval() on experience 0"),
        ("resumable", "after_forward", "train", "train() on experience 1, phase 'train', epoch 0, iteration 0"),
        ("resumable", "before_train_dataset_adaptation", "train", "train() on experience 1"),
        ("resumable", "before_training", "train", "train()"),
        ("resumable", "after_eval_iteration", "eval", None),  # nothing that is saved has been changed
    ],
)
def test_log_says_where_it_was(tmp_path, caplog, kind, place, call, said):
    strategy, fresh = interrupted(kind, place, RuntimeError, call=call), built(kind)
    with caplog.at_level(logging.WARNING):
        save_checkpoint(strategy, tmp_path / "run.pt")
        load_checkpoint(fresh, tmp_path / "run.pt")
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [] if said is None else [said in message for message in messages] == [True, True]
    caplog.clear()
    fresh.train(digits_for(kind).train_stream[1])
    strategy.train(digits_for(kind).train_stream[1])
    save_checkpoint(fresh, tmp_path / "run.pt")
    save_checkpoint(strategy, tmp_path / "run.pt")
    assert caplog.records == []


def test_exception_in_a_nested_evaluation_that_a_plugin_catches(tmp_path):
    """Training goes on in the modes, on the experience and with the loader it was on, where it tidies up."""

    class Catches(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            interrupt = strategy.plugins[0]
            interrupt.armed = True
            with pytest.raises(RuntimeError, match="struck"):
                strategy.eval(digits_for("resumable").test_stream)
            assert strategy.experience.current_experience == 0
            assert strategy.is_training
            assert strategy.model.training

    plain = build("resumable", train_epochs=2)
    plain.train(digits_for("resumable").train_stream[0])
    strategy = build("resumable", train_epochs=2, plugins=[Interrupt("before_eval_exp", RuntimeError), Catches()])
    strategy.train(digits_for("resumable").train_stream[0])
    assert differences(dict(strategy.model.state_dict()), dict(plain.model.state_dict())) == []
    assert strategy.interrupted is None


def test_saving_and_loading_are_refused_while_it_runs(tmp_path):
    """Also from another strategy's hooks, and from another thread."""
    path, refused = tmp_path / "run.pt", []

    class SavesInside(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            self.attempt(strategy)

        def before_eval_iteration(self, strategy, **kwargs):
            self.attempt(strategy)

        def attempt(self, strategy):
            for call in (save_checkpoint, load_checkpoint):
                with pytest.raises(ValueError, match=r"it is inside train\(\) or eval\(\)"):
                    call(strategy, path)
                with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="it is inside train"):
                    pool.submit(call, strategy, path).result()
            assert save_checkpoint(other, tmp_path / "other.pt")  # another one does not run
            refused.append(strategy.is_training)

    other, strategy = build("naive"), build("naive", plugins=[SavesInside()], train_epochs=1)
    strategy.train(digits_for("naive").train_stream[0])
    strategy.eval(digits_for("naive").test_stream[:1])
    assert refused[0]
    assert not refused[-1]
    assert not path.exists()


def test_joint_training_can_be_saved_when_it_is_done(tmp_path, caplog):
    """Avalanche leaves it inside its only train(), which is no interruption."""

    def joint():
        model = nn.Sequential(nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        parts = {"model": model, "optimizer": optimizer, "criterion": nn.CrossEntropyLoss()}
        return JointTraining(**parts, train_mb_size=16, evaluator=evaluator())

    strategy, fresh, digits = joint(), joint(), digits_for("naive")
    strategy.train(digits.train_stream)
    strategy.eval(digits.test_stream)
    save_checkpoint(strategy, tmp_path / "run.pt")
    load_checkpoint(fresh, tmp_path / "run.pt")
    assert caplog.records == []
    assert differences(outcome(strategy), outcome(fresh)) == []
    with pytest.raises(AlreadyTrainedError):
        fresh.train(digits.train_stream)
