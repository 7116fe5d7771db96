"""Going on inside an experience: the progress protocol, a mixin for strategies and a plugin that saves.

    class EWC(Resumable, SupervisedTemplate): ...

    strategy = EWC(..., plugins=[CheckpointEvery("run.pt", epochs=1)])
    start = load_checkpoint(strategy, "run.pt") if Path("run.pt").exists() else 0
    for experience in benchmark.train_stream[start:]:
        strategy.train(experience)        # goes on in the epoch the file was written in
        strategy.eval(benchmark.test_stream)
        save_checkpoint(strategy, "run.pt")

A plugin with training of its own divides it into phases, which are then resumed as well:

    def after_training_exp(self, strategy, **kwargs):
        for _ in phase(strategy, "den: selection", iterations=500):
            self.select_step(strategy)
        for _ in phase(strategy, "den: expansion", epochs=5):
            strategy._before_training_epoch(**kwargs)
            strategy.training_epoch(**kwargs)
            strategy._after_training_epoch(**kwargs)
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from time import time
from typing import Any

from avalanche.core import BasePlugin, SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.supervised import Cumulative
from avalanche.training.templates.base_sgd import BaseSGDTemplate, PeriodicEval
from avalanche.training.utils import trigger_plugins

from avl_plugins._atomic import check_writable
from avl_plugins.checkpoint.file import go_on_without, save_checkpoint
from avl_plugins.checkpoint.known import UnsaveableError
from avl_plugins.checkpoint.progress import Progress
from avl_plugins.checkpoint.running import place_of
from avl_plugins.checkpoint.strategy_state import capture, random_from_plain, random_to_plain, restore
from avl_plugins.tasks.arguments import check_choice, check_count, check_number

__all__ = ["CheckpointEvery", "Resumable", "phase"]


class Resumable:
    """Mixin, left of a template, for strategies that can be saved and resumed inside an experience.

    `progress` is None between experiences, and inside one a `Progress`: `progress.epoch` epochs of the phase
    `progress.phase` are complete, and `progress.iteration` iterations of the epoch it is in. The phase of the
    template's own epochs is "train". It is part of a checkpoint, and `train(experience)` after a load goes on from
    there: it sets the experience up again (data, loader, `before_` hooks of plugins; not the evaluator, periodic
    evaluation and clock), puts the saved state back over what that changed, and leaves out what has been done.
    `after_training_exp` hooks that had returned are not called again.

    A safe point is the end of an epoch or iteration, after every plugin's hooks. `safe_point(strategy)` is then called
    on the plugins that have such a method, and `save_checkpoint` may be called. A resumed run on the CPU
    equals an uninterrupted one bit for bit if what is random in it draws from the global generators, or has its
    generator in a `state_dict`.

    A resumed experience calls `before_training_exp` with the grown model: a plugin must not grow it twice.

    An exception or Ctrl-C in `train()` leaves the strategy between experiences, with what it has learnt until then: it
    can be evaluated, saved and trained again, from the beginning of the experience. In `eval()` it leaves it where it
    was before.

    Attributes:
        progress: where in an experience training is.
        interrupted: where the latest `train()` was when an exception ended it; None after one that was completed.
        at_safe_point: whether `save_checkpoint` may be called inside `train()`.
    """

    # Made anew by the next train().
    __constants__ = ("progress", "interrupted", "at_safe_point", "_resuming", "_past_data")

    progress: Progress | None = None
    interrupted: str | None = None
    at_safe_point: bool = False
    _resuming: dict[str, Any] | None = None
    _past_data: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        loop = getattr(super(), "_train_exp", BaseSGDTemplate._train_exp)
        if loop is not BaseSGDTemplate._train_exp:
            raise TypeError(
                f"{cls.__name__}: Resumable replaces the loop over epochs, and {loop.__qualname__} is another loop; "
                "put Resumable left of a template that has the usual one"
            )

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """Train as the template does; the first experience goes on from `progress` after a load.

        Raises:
            ValueError: If it is another experience, or the strategy has other plugins, than where it was saved.
        """
        strategy: Any = self
        self.interrupted, self._past_data = None, getattr(self, "dataset", None)
        try:
            self._resuming = None if self.progress is None else capture(self)
            return super().train(experiences, eval_streams, **kwargs)  # type: ignore[misc]
        except BaseException:
            loaded = self._resuming
            self.interrupted = place_of(self) if self.progress is None else f"train() on {self.progress}"
            self.progress = self._resuming = None  # nothing to go on from but the last file
            if isinstance(self, Cumulative):
                self.dataset = self._past_data  # without the data of an experience that will be trained on again
            strategy.is_training = False
            strategy._train_cleanup()
            if loaded is not None:  # nothing has been trained: it goes on as it was loaded
                with suppress(ValueError):
                    restore(self, loaded)
                    self.interrupted = None
            raise

    def eval(self, experiences: Any, **kwargs: Any) -> Any:
        """Evaluate as the template does."""
        strategy: Any = self
        before = strategy._save_train_state()
        try:
            return super().eval(experiences, **kwargs)  # type: ignore[misc]
        except BaseException:
            strategy._eval_cleanup()
            strategy._load_train_state(before)
            raise

    def phase(self, name: str, *, epochs: int | None = None, iterations: int | None = None) -> Iterator[int]:
        """Yield the numbers of the epochs or iterations of a phase that are still to be done.

        In a resumed experience a phase that was complete yields nothing, and the one the file was written in goes on.
        After each, there is a safe point. Work between two phases is done again when the second is resumed, on
        its saved state, and undone: put what draws random numbers or takes long into a phase of its own.

        Args:
            name: Unique within an experience; a plugin puts its own name before it.
            epochs: How many epochs, run by `strategy.training_epoch()` or otherwise.
            iterations: How many iterations, instead of `epochs`.

        Raises:
            ValueError: If not exactly one of `epochs` and `iterations` is given, the name has been used in
                this experience, or no experience is being trained on.
        """
        unit, count = _unit_and_count(epochs, iterations)
        if self.progress is None:
            raise ValueError(f"phase {name!r}: phases are run from after_training_exp(), inside train()")
        begun = self.progress.begun
        if self._resuming is not None:
            if name in begun[:-1]:
                return
            if name != begun[-1]:
                raise ValueError(f"phase {name!r} comes before {begun[-1]!r}, in which the checkpoint was written")
            restore(self, self._resuming)
            if not (unit == "epoch" and self.progress.iteration):
                self._resuming = None
        elif name in begun:
            raise ValueError(f"phase {name!r} has been run in this experience; give this one another name")
        else:
            self.progress = dataclasses.replace(
                self.progress, phase=name, epoch=0, iteration=0, unit=unit, begun=[*begun, name]
            )
        try:
            while (done := getattr(self.progress, unit)) < count:
                yield done
                if unit == "epoch":
                    self.progress.iteration, self.progress.random = 0, None
                setattr(self.progress, unit, done + 1)
                self._at_safe_point()
        finally:
            if self.progress is not None:
                self.progress.unit = "none"  # what is run between phases has no safe points

    def _before_training(self, **kwargs: Any) -> None:
        with self._hooks_for_setup():
            super()._before_training(**kwargs)  # type: ignore[misc]

    def _before_training_exp(self, **kwargs: Any) -> None:
        strategy: Any = self
        plugins = [type(plugin).__qualname__ for plugin in self._plugins_at_end()]
        place = {"experience": strategy.experience.current_experience, "plugins": plugins}
        self._past_data = getattr(self, "dataset", None)
        if self._resuming is None:
            super()._before_training_exp(**kwargs)  # type: ignore[misc]
            self.progress = Progress(**place)
            return
        for what, here in place.items():
            if (saved := self._resuming["progress"][what]) != here:
                raise ValueError(f"{what}: the checkpoint was written inside {what} {saved}, and this is {here}")
        with self._hooks_for_setup():
            super()._before_training_exp(**kwargs)  # type: ignore[misc]
        restore(self, self._resuming)

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        strategy: Any = self
        for _ in self.phase("train", epochs=strategy.train_epochs):
            self._before_training_epoch(**kwargs)
            if strategy._stop_training:
                strategy._stop_training = False
                break
            self.training_epoch(**kwargs)
            strategy._after_training_epoch(**kwargs)

    def _before_training_epoch(self, **kwargs: Any) -> None:
        with self._hooks_for_setup():
            super()._before_training_epoch(**kwargs)  # type: ignore[misc]
        if self._resuming is not None:
            restore(self, self._resuming)

    def training_epoch(self, **kwargs: Any) -> None:
        """Train one epoch, or what is left of the one that is being resumed."""
        strategy: Any = self
        whole = strategy.dataloader
        if self.progress is not None and self._resuming is not None:
            start: Any = self.progress.random
            strategy.dataloader = _Rest(whole, self.progress.iteration, start, self._resuming["random"])
            self._resuming = None
        elif self.progress is not None:
            self.progress.random = random_to_plain()
        try:
            super().training_epoch(**kwargs)  # type: ignore[misc]
        finally:
            strategy.dataloader = whole

    def _after_training_iteration(self, **kwargs: Any) -> None:
        super()._after_training_iteration(**kwargs)  # type: ignore[misc]
        if self.progress is not None and self.progress.unit == "epoch":
            self.progress.iteration += 1
            self._at_safe_point()

    def _after_training_exp(self, **kwargs: Any) -> None:
        progress: Any = self.progress
        for plugin in self._plugins_at_end()[progress.hooks :]:
            plugin.after_training_exp(self, **kwargs)
            progress = self.progress  # another object where a phase has begun or been resumed
            progress.hooks += 1
        if self._resuming is not None:
            raise ValueError(f"phase {progress.phase!r}, in which the checkpoint was written, was not run")
        self.progress, self._past_data = None, getattr(self, "dataset", None)

    def _at_safe_point(self) -> None:
        self.at_safe_point = True
        try:
            trigger_plugins(self, "safe_point")
        finally:
            self.at_safe_point = False

    def _plugins_at_end(self) -> list[Any]:
        """Return the plugins with work to do in `after_training_exp`, in order."""
        plugins: list[Any] = self.plugins  # type: ignore[attr-defined]
        hooks = [(plugin, getattr(plugin, "after_training_exp", None)) for plugin in plugins]
        idle = BasePlugin.after_training_exp
        return [plugin for plugin, hook in hooks if hook is not None and getattr(hook, "__func__", hook) is not idle]

    @contextmanager
    def _hooks_for_setup(self) -> Iterator[None]:
        """While resuming, leave out the plugins whose hooks record rather than prepare."""
        strategy: Any = self
        everyone = strategy.plugins
        if self._resuming is not None:
            strategy.plugins = [p for p in everyone if not isinstance(p, (EvaluationPlugin, PeriodicEval, Clock))]
        try:
            yield
        finally:
            strategy.plugins = everyone


class CheckpointEvery(SupervisedPlugin):
    """Saves a `Resumable` strategy while it trains, every so many epochs and iterations of each phase.

    It saves inside experiences only: what comes after `train()`, such as an evaluation, is the script's, and so is
    the `save_checkpoint(strategy, path)` that follows it.

    Args:
        path: The file; each save replaces it.
        epochs: Save when this many epochs more are complete; None for not at epochs.
        iterations: Save when this many iterations more of an epoch or phase are complete; None for not at iterations.
        seconds: Not within so many seconds of when the file was last written, as saving takes its time where epochs
            are short.
        on_unsaveable: What to do where a plugin, for example one of Avalanche's that keeps samples, has state that no
            checkpoint can hold: "raise", or "warn" to train without checkpoints; the log then says so.

    Raises:
        ValueError: If a number is out of range, or both `epochs` and `iterations` are None; in the first `train()`,
            before the training, if the strategy cannot be saved, or no file can be written at `path`, whose folder is
            made.
        TypeError: If an argument is of a wrong kind; in `train()`, if the strategy is not `Resumable`.
    """

    __constants__ = ("path", "epochs", "iterations", "seconds", "on_unsaveable", "_saves")

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        epochs: int | None = 1,
        iterations: int | None = None,
        seconds: float = 0.0,
        on_unsaveable: str = "raise",
    ) -> None:
        super().__init__()
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path must be a string or a path, got {path!r}")
        check_count("epochs", epochs, none="not at epochs")
        check_count("iterations", iterations, none="not at iterations")
        check_number("seconds", seconds, low=0)
        check_choice("on_unsaveable", on_unsaveable, ("raise", "warn"))
        if epochs is None and iterations is None:
            raise ValueError("epochs, iterations: one of them has to be a number")
        self.path = os.fspath(path)
        self.epochs = epochs
        self.iterations = iterations
        self.seconds = seconds
        self.on_unsaveable = on_unsaveable
        self._saves: bool | None = None

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse a strategy that has no safe points, and what could not be saved or written, before the training."""
        if not isinstance(strategy, Resumable):
            raise TypeError(
                f"CheckpointEvery: {type(strategy).__name__} cannot be resumed inside an experience; derive it from "
                "Resumable, or call save_checkpoint between train() calls"
            )
        if self._saves is None:
            self._saves = self._can_save(strategy)

    def _can_save(self, strategy: Any) -> bool:
        try:
            capture(strategy)
        except UnsaveableError as error:
            if self.on_unsaveable == "raise":
                raise
            go_on_without(strategy, error)
            return False
        check_writable(self.path)
        return True

    def safe_point(self, strategy: Any) -> None:
        """Save where an interval is complete."""
        progress = strategy.progress
        inside = progress.iteration > 0
        every, done = (self.iterations, progress.iteration) if inside else (self.epochs, progress.epoch)
        if self._saves is not False and every is not None and done % every == 0 and not self._written_lately():
            save_checkpoint(strategy, self.path, on_unsaveable=self.on_unsaveable)

    def _written_lately(self) -> bool:
        try:
            return self.seconds > 0 and time() - os.stat(self.path).st_mtime < self.seconds
        except FileNotFoundError:
            return False


def phase(strategy: Any, name: str, *, epochs: int | None = None, iterations: int | None = None) -> Iterable[int]:
    """Return `strategy.phase(...)` where the strategy is `Resumable`, and a range of all the numbers elsewhere."""
    if isinstance(strategy, Resumable):
        return strategy.phase(name, epochs=epochs, iterations=iterations)
    return range(_unit_and_count(epochs, iterations)[1])


class _Rest:
    """The batches of an epoch after the first `done`, in the order that began at random state `start`."""

    def __init__(self, loader: Any, done: int, start: dict[str, Any], now: dict[str, Any]) -> None:
        self.loader, self.done, self.start, self.now = loader, done, start, now

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        random_from_plain(self.start)
        batches = iter(self.loader)
        for _ in range(self.done):
            next(batches)
        random_from_plain(self.now)
        yield from batches


def _unit_and_count(epochs: int | None, iterations: int | None) -> tuple[str, int]:
    if (epochs is None) == (iterations is None):
        raise ValueError("epochs, iterations: give exactly one of them")
    check_count("epochs", epochs, low=0, none="iterations")
    check_count("iterations", iterations, low=0, none="epochs")
    return ("epoch", epochs) if epochs is not None else ("iteration", iterations or 0)
