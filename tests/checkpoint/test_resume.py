"""Resuming inside an experience: at epoch ends, in the middle of epochs, and in a plugin's own phases."""

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EarlyStoppingPlugin
from avalanche.training.supervised import Naive
from avalanche.training.templates import SupervisedTemplate
from checkpoint_cases import (
    Distill,
    Once,
    ResumableCumulative,
    benchmark,
    build,
    differences,
    outcome,
    train_and_evaluate,
)
from torch import nn

from avl_plugins.checkpoint import archive
from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.checkpoint.progress import Progress
from avl_plugins.checkpoint.resume import CheckpointEvery, Resumable, phase
from avl_plugins.checkpoint.strategy_state import capture
from avl_plugins.data.loading import InMemoryLoaderPlugin
from avl_plugins.progressive.plugin import ProgressivePlugin

pytestmark = pytest.mark.slow


class Killed(Exception):
    pass


class KillAt(SupervisedPlugin):
    """Saves at the n-th safe point and ends the run there."""

    def __init__(self, path, number):
        super().__init__()
        self.path, self.number, self.count = path, number, 0
        self.places = []

    def safe_point(self, strategy):
        self.count += 1
        progress = strategy.progress
        self.places.append((progress.experience, progress.phase, progress.epoch, progress.iteration))
        if self.count == self.number:
            save_checkpoint(strategy, self.path)
            raise Killed

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


EXPERIENCES = 2


def killed_and_resumed(path, kind, number, *, plugins=lambda: [], **arguments):
    """Run, killed at a safe point, and finish in a strategy built with another seed; None without so many of them."""
    digits = benchmark(arguments.get("model", "incremental"))
    stream = digits.train_stream[:EXPERIENCES]
    kill = KillAt(path, number)
    first = build(kind, plugins=[*plugins(), kill], **arguments)
    try:
        train_and_evaluate(first, stream, digits.test_stream)
    except Killed:
        second = build(kind, seed=99, plugins=[*plugins(), KillAt(path, -1)], **arguments)
        done = load_checkpoint(second, path)
        train_and_evaluate(second, stream[done:], digits.test_stream)
        return second, kill.places[-1]
    return None, None


def uninterrupted(kind, *, plugins=lambda: [], **arguments):
    digits = benchmark(arguments.get("model", "incremental"))
    whole = build(kind, plugins=[*plugins(), KillAt("", -1)], **arguments)
    train_and_evaluate(whole, digits.train_stream[:EXPERIENCES], digits.test_stream)
    return whole


def plugins_with_phases():
    return [Once(), Distill(), Once()]


@pytest.mark.filterwarnings("ignore:EWC fails in class-incremental training")
@pytest.mark.filterwarnings("ignore:task . has not been trained on yet")
@pytest.mark.parametrize(
    ("kind", "arguments", "plugins"),
    [
        ("resumable", {"eval_every": 1}, plugins_with_phases),
        ("resumable", {"model": "multihead", "optimizer": "adam"}, plugins_with_phases),
        ("resumable-cumulative", {"optimizer": "adam"}, list),
        ("ewc", {"model": "multihead", "eval_every": 1, "peval_mode": "iteration"}, lambda: [InMemoryLoaderPlugin()]),
        ("ewc", {"optimizer": "adam"}, lambda: [InMemoryLoaderPlugin(), Distill()]),
        ("dgr", {"optimizer": "adam"}, lambda: [InMemoryLoaderPlugin()]),
        ("dgr", {"model": "multihead"}, list),
        ("dgr-exact", {}, list),
        ("progressive", {"model": "progressive", "eval_every": 1}, lambda: [InMemoryLoaderPlugin()]),
        ("progressive-cached", {"model": "progressive", "optimizer": "adam"}, list),
        ("den", {"model": "den", "optimizer": "adam", "eval_every": 1}, lambda: [InMemoryLoaderPlugin()]),
        ("den", {"model": "den"}, lambda: [Distill()]),
        ("den-proximal", {"model": "den-fixed", "optimizer": "adam"}, lambda: [InMemoryLoaderPlugin()]),
        ("resumable", {"model": "progressive"}, lambda: [ProgressivePlugin(cache_bytes=2**32), Distill()]),
    ],
)
def test_killed_at_any_safe_point_ends_with_the_same_bits(tmp_path, kind, arguments, plugins):
    whole = uninterrupted(kind, plugins=plugins, **arguments)
    places = next(p for p in whole.plugins if isinstance(p, KillAt)).places
    # The second experience, whole epochs and broken ones; every phase at least once.
    numbers = {}
    for number, (experience, name, epoch, iteration) in enumerate(places, start=1):
        numbers[experience, name, iteration > 0 or epoch % 2] = number
    for number in numbers.values():
        second, place = killed_and_resumed(tmp_path / "run.pt", kind, number, plugins=plugins, **arguments)
        assert place == places[number - 1]
        assert differences(outcome(whole), outcome(second)) == [], place
    phases = 1 + 3 * any(isinstance(p, Distill) for p in whole.plugins) + (kind == "dgr") + 4 * kind.startswith("den")
    assert len({name for _, name, *_ in places}) == phases


def test_finished_hooks_and_phases_are_not_run_again(tmp_path):
    whole = uninterrupted("resumable", plugins=plugins_with_phases)
    places = next(p for p in whole.plugins if isinstance(p, KillAt)).places
    number = places.index((1, "distill: fit", 1, 0)) + 1
    second, _ = killed_and_resumed(tmp_path / "run.pt", "resumable", number, plugins=plugins_with_phases)
    first, distill, last = second.plugins[:3]
    assert first.count == last.count == EXPERIENCES
    assert distill.calls == whole.plugins[1].calls
    assert len(distill.calls) == EXPERIENCES
    assert whole.progress is second.progress is None


def test_killed_again_and_again(tmp_path):
    """Each start gets five safe points further, through the phases of two plugins with a third between them."""

    def built(seed, number):
        kill = KillAt(tmp_path / "run.pt", number)
        return build("resumable", seed=seed, plugins=[Distill("a"), Once(), Distill("b"), kill])

    digits = benchmark()
    stream = digits.train_stream[:EXPERIENCES]
    whole = built(3, -1)
    train_and_evaluate(whole, stream, digits.test_stream)
    starts, done, strategy = 1, 0, built(3, 5)
    while True:
        try:
            train_and_evaluate(strategy, stream[done:], digits.test_stream)
            break
        except Killed:
            strategy = built(starts, 5)
            done = load_checkpoint(strategy, tmp_path / "run.pt")
            starts += 1
    assert starts == 1 + (len(whole.plugins[3].places) - 1) // 5
    assert differences(outcome(whole), outcome(strategy)) == []


def test_frozen_modes_set_at_the_start_of_the_experience_survive(tmp_path):
    """A plugin that puts BatchNorm into eval mode when an experience starts still has it so after a load."""

    class FreezeNorm(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            strategy.model[1].eval()
            strategy.model[0].weight.requires_grad_(strategy.experience.current_experience == 0)

    plugins = lambda: [FreezeNorm()]  # noqa: E731
    whole = uninterrupted("resumable", plugins=plugins)
    number = next(p for p in whole.plugins if isinstance(p, KillAt)).places.index((1, "train", 1, 0)) + 1
    second, _ = killed_and_resumed(tmp_path / "run.pt", "resumable", number, plugins=plugins)
    assert differences(outcome(whole), outcome(second)) == []
    assert outcome(second)["frozen"] == ["0.weight"]


def test_several_experiences_in_one_train_call(tmp_path):
    digits = benchmark()
    whole = build("resumable", plugins=[KillAt("", -1)])
    whole.train(digits.train_stream[:3])
    places = whole.plugins[0].places
    first = build("resumable", plugins=[KillAt(tmp_path / "run.pt", places.index((1, "train", 1, 0)) + 1)])
    with pytest.raises(Killed):
        first.train(digits.train_stream[:3])
    second = build("resumable", seed=99, plugins=[KillAt("", -1)])
    assert load_checkpoint(second, tmp_path / "run.pt") == 1
    second.train(digits.train_stream[1:3], eval_streams=[digits.train_stream[:3]])
    assert differences(outcome(whole), outcome(second)) == []


@pytest.mark.filterwarnings("ignore:Metric .* used by the EarlyStopping plugin")
def test_early_stopping_inside_an_experience(tmp_path):
    plugins = lambda: [  # noqa: E731
        EarlyStoppingPlugin(patience=1, val_stream_name="train_stream", metric_name="Top1_Acc_Stream", margin=0.5)
    ]
    settings = {"train_epochs": 6, "eval_every": 1}
    whole = uninterrupted("resumable", plugins=plugins, **settings)
    places = next(p for p in whole.plugins if isinstance(p, KillAt)).places
    assert max(epoch for _, _, epoch, _ in places) < 6
    number = places.index((1, "train", 1, 0)) + 1
    second, _ = killed_and_resumed(tmp_path / "run.pt", "resumable", number, plugins=plugins, **settings)
    assert differences(outcome(whole), outcome(second)) == []


def test_checkpoint_every(tmp_path, monkeypatch):
    saves = []

    def save(strategy, path, **options):
        saves.append((strategy.progress.epoch, strategy.progress.iteration))

    monkeypatch.setattr("avl_plugins.checkpoint.resume.save_checkpoint", save)
    plugins = [CheckpointEvery(tmp_path / "a", epochs=2, iterations=2)]
    strategy = build("resumable", plugins=plugins, train_epochs=3)
    strategy.train(benchmark().train_stream[0])
    assert strategy.clock.train_exp_iterations == 9
    assert saves == [(0, 2), (1, 2), (2, 0), (2, 2)]


def test_checkpoint_every_leaves_seconds_between_saves(tmp_path, monkeypatch):
    now, saves = [0.0], []

    def save(strategy, path, **options):
        saves.append(strategy.progress.epoch)
        with open(path, "w"):
            os.utime(path, (now[0], now[0]))

    monkeypatch.setattr("avl_plugins.checkpoint.resume.time", lambda: now[0])
    monkeypatch.setattr("avl_plugins.checkpoint.resume.save_checkpoint", save)
    every = CheckpointEvery(tmp_path / "a", seconds=5)
    for epoch, at in enumerate((1, 4, 5, 6, 9.5, 11, 16, 20, 21)):
        now[0] = at
        every.safe_point(SimpleNamespace(progress=Progress(0, [], epoch=epoch)))
    assert saves == [0, 3, 5, 6, 8]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be an integer >= 1, or None for not at epochs, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be an integer >= 1, or None for not at epochs, got 1.5"),
        ({"epochs": math.nan}, TypeError, "epochs must be an integer .* got nan"),
        ({"epochs": math.inf}, TypeError, "epochs must be an integer .* got inf"),
        ({"epochs": True}, TypeError, "epochs must be an integer .* got True"),
        ({"epochs": "1"}, TypeError, "epochs must be an integer .* got '1'"),
        ({"iterations": -1}, ValueError, "iterations must be an integer >= 1, or None for not at iterations, got -1"),
        ({"iterations": True}, TypeError, "iterations must be an integer .* got True"),
        ({"iterations": 2.0}, TypeError, "iterations must be an integer .* got 2.0"),
        ({"epochs": None}, ValueError, "one of them has to be a number"),
        ({"seconds": -1}, ValueError, "seconds must be a number >= 0, got -1"),
        ({"seconds": math.nan}, ValueError, "seconds must be a number >= 0, got nan"),
        ({"seconds": math.inf}, ValueError, "seconds must be a number >= 0, got inf"),
        ({"seconds": None}, TypeError, "seconds must be a number >= 0, got None"),
        ({"seconds": "10"}, TypeError, "seconds must be a number >= 0, got '10'"),
        ({"on_unsaveable": "ignore"}, ValueError, "on_unsaveable must be 'raise' or 'warn', got 'ignore'"),
        ({"path": 3}, TypeError, "path must be a string or a path, got 3"),
        ({"path": None}, TypeError, "path must be a string or a path, got None"),
        ({"path": b"run.pt"}, TypeError, "path must be a string or a path, got b'run.pt'"),
    ],
)
def test_checkpoint_every_refuses_at_construction(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        CheckpointEvery(**{"path": tmp_path / "run.pt", **arguments})


def test_checkpoint_every_takes_numbers_of_numpy(tmp_path):
    every = CheckpointEvery(tmp_path / "run.pt", epochs=np.int64(2), seconds=np.float32(0.0))
    build("resumable", plugins=[every], train_epochs=2).train(benchmark().train_stream[0])
    assert load_checkpoint(build("resumable"), tmp_path / "run.pt") == 0


def test_checkpoint_every_refuses_a_strategy_without_safe_points(tmp_path):
    with pytest.raises(TypeError, match="Naive cannot be resumed inside an experience"):
        build("naive", plugins=[CheckpointEvery(tmp_path / "run.pt")]).train(benchmark().train_stream[0])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "got the folder ''"),
        ("folder", "path must be a regular file or a new one, got the folder"),
        ("pipe", "got the pipe"),
        ("/dev/null", "got the device"),
        ("file/run.pt", "path must be a file that can be written, got .*Not a directory"),
        ("loop", "path must be a regular file or a new one, got the link"),
        ("r" * 256, "path must be a file that can be written, got .*name too long"),
    ],
)
def test_checkpoint_every_refuses_a_path_before_the_training(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder")
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    with open("file", "w") as file:
        file.write("text")
    strategy = build("resumable", plugins=[CheckpointEvery(path)], eval_every=1)
    with pytest.raises(ValueError, match=message):
        strategy.train(benchmark().train_stream[0])
    assert strategy.clock.total_iterations == 0
    assert strategy.evaluator.get_all_metrics() == {}  # in front of the evaluation that comes first, too
    assert sorted(os.listdir()) == ["file", "folder", "loop", "pipe"]


def test_checkpoint_every_makes_the_folder_before_the_training(tmp_path):
    class Stops(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            raise Killed

    path = tmp_path / "new" / "run.pt"
    with pytest.raises(Killed):
        build("resumable", plugins=[CheckpointEvery(path), Stops()]).train(benchmark().train_stream[0])
    assert list(path.parent.iterdir()) == []


def saved_inside(path, **arguments):
    with pytest.raises(Killed):
        build("resumable", plugins=[KillAt(path, 4)], **arguments).train(benchmark().train_stream[0])


def test_another_experience_or_other_plugins_are_refused(tmp_path):
    path, digits = tmp_path / "run.pt", benchmark()
    saved_inside(path)
    second = build("resumable", plugins=[KillAt(path, -1)])
    assert load_checkpoint(second, path) == 0
    loaded = capture(second)
    with pytest.raises(ValueError, match="written inside experience 0, and this is 1"):
        second.train(digits.train_stream[1])
    assert differences(loaded, capture(second)) == []  # still to go on
    assert second.interrupted is None
    second.train(digits.train_stream[0])
    whole = build("resumable", plugins=[KillAt(path, -1)])
    whole.train(digits.train_stream[0])
    assert differences(outcome(whole), outcome(second)) == []
    second = build("resumable", plugins=[KillAt(path, -1)])
    load_checkpoint(second, path)

    class AtEnd(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            pass

    second.plugins.insert(0, AtEnd())
    with pytest.raises(ValueError, match="written inside plugins"):
        second.train(digits.train_stream[0])


def test_stock_strategy_refuses_a_file_from_inside_an_experience(tmp_path):
    saved_inside(tmp_path / "run.pt")
    naive = build("naive", plugins=[KillAt("", -1)])
    content = torch.load(tmp_path / "run.pt", weights_only=True)
    content["state"]["strategy"] = "Naive"
    content["sha256"] = archive.digest(content["state"])
    torch.save(content, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="inside an experience, and this strategy is not Resumable"):
        load_checkpoint(naive, tmp_path / "run.pt")


def test_progress(tmp_path):
    """A dataclass, which reads as the dict that it was for one more release, and is stored as one."""
    progress = Progress(experience=1, plugins=["Clock"], phase="train", unit="epoch", epoch=2, iteration=3)
    assert str(progress) == "experience 1, phase 'train', epoch 2, iteration 3"
    with pytest.warns(DeprecationWarning, match=r"progress\['epoch'\] is progress\.epoch now"):
        assert progress["epoch"] == 2
    plain = progress.to_plain()
    assert "random" not in plain
    assert Progress.from_plain(plain) == progress
    assert Progress.from_plain({**plain, "random": {"torch": 1}}).random == {"torch": 1}
    for change, message in (
        ({"more": 1}, "entries missing or unknown: more"),
        ({"epoch": None}, "progress.epoch is a NoneType in it, and a int"),
        ({"begun": "train"}, "progress.begun is a str in it, and a list"),
        ({"phase": 3}, "progress.phase is a int in it, and a str"),
    ):
        with pytest.raises(ValueError, match=message):
            Progress.from_plain({**plain, **change})
    del plain["hooks"]
    with pytest.raises(ValueError, match="entries missing or unknown: hooks"):
        Progress.from_plain(plain)


def test_saved_again_before_training_goes_on(tmp_path):
    path = tmp_path / "run.pt"
    saved_inside(path)
    second = build("resumable", plugins=[KillAt(path, -1)])
    load_checkpoint(second, path)
    save_checkpoint(second, tmp_path / "again.pt")
    one, two = (torch.load(p, weights_only=True) for p in (path, tmp_path / "again.pt"))
    assert differences(one["state"], two["state"]) == []


def test_interrupted_in_memory_starts_the_experience_anew(tmp_path):
    """After an exception the weights are those of no safe point: the next train() is a new one, as in Avalanche."""
    strategy = build("resumable", plugins=[KillAt(tmp_path / "run.pt", 4)])
    experience = benchmark().train_stream[0]
    with pytest.raises(Killed):
        strategy.train(experience)
    assert strategy.progress is None
    strategy.train(experience)
    assert strategy.clock.train_exp_iterations == 6


def test_phase_errors_and_stock_strategies():
    strategy = build("resumable")
    with pytest.raises(ValueError, match="give exactly one of them"):
        next(strategy.phase("a"))
    with pytest.raises(ValueError, match="phases are run from after_training_exp"):
        next(strategy.phase("a", epochs=1))
    assert list(phase(build("naive"), "a", epochs=2)) == [0, 1]
    assert list(phase(build("naive"), "a", iterations=3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="give exactly one of them"):
        phase(build("naive"), "a", epochs=1, iterations=1)
    for either in (build("naive"), strategy):
        for number, error in ((1.5, TypeError), (math.nan, TypeError), (True, TypeError), (-1, ValueError)):
            with pytest.raises(error, match="epochs must be an integer >= 0, or None for iterations, got"):
                list(phase(either, "a", epochs=number))

    class Twice(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            for name in ("train", "a"):
                for _ in phase(strategy, name, iterations=1):
                    pass

    with pytest.raises(ValueError, match="phase 'train' has been run in this experience"):
        build("resumable", plugins=[Twice()]).train(benchmark().train_stream[0])


def test_phase_that_is_gone_is_an_error(tmp_path):
    class Changing(SupervisedPlugin):
        names = ("a", "b")

        def after_training_exp(self, strategy, **kwargs):
            for name in self.names:
                for _ in phase(strategy, name, iterations=2):
                    pass

    path, experience = tmp_path / "run.pt", benchmark().train_stream[0]
    with pytest.raises(Killed):
        build("resumable", plugins=[Changing(), KillAt(path, 11)]).train(experience)
    for names, message in (
        ((), "phase 'b', in which the checkpoint was written, was not run"),
        (("c",), "phase 'c' comes"),
    ):
        Changing.names = names
        second = build("resumable", plugins=[Changing(), KillAt(path, -1)])
        load_checkpoint(second, path)
        assert second.progress.phase == "b"
        with pytest.raises(ValueError, match=message):
            second.train(experience)


def test_other_loops_over_epochs_are_refused():
    class OwnLoop(Naive):
        def _train_exp(self, experience, eval_streams=None, **kwargs):
            pass

    with pytest.raises(TypeError, match=r"OwnLoop\._train_exp is another loop"):
        type("Mixed", (Resumable, OwnLoop), {})

    class Plain(Resumable, SupervisedTemplate):
        pass

    model = nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert Plain(model=model, optimizer=optimizer, evaluator=build().evaluator).progress is None
    assert ResumableCumulative.progress is None
