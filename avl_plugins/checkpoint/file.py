"""Saving a strategy to a file, and loading it, without pickle.

    start = load_checkpoint(strategy, path) if path.exists() else 0
    for experience in benchmark.train_stream[start:]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        save_checkpoint(strategy, path)

The resumed run ends with the weights and metrics of an uninterrupted one, bit for bit on the CPU.
"""

import logging
import os
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from avalanche.logging import TensorboardLogger
from avalanche.training.templates.base import BaseTemplate
from torch.utils.tensorboard import SummaryWriter

from avl_plugins.checkpoint import archive
from avl_plugins.checkpoint.known import UnsaveableError
from avl_plugins.checkpoint.past_data import past_data_from_plain
from avl_plugins.checkpoint.running import interrupted_in, is_running
from avl_plugins.checkpoint.strategy_state import capture, restore
from avl_plugins.tasks.arguments import check_choice

__all__ = ["load_checkpoint", "save_checkpoint"]

log = logging.getLogger(__name__)
_told: weakref.WeakSet[Any] = weakref.WeakSet()
"""Strategies of which the log says that they train without checkpoints."""


def save_checkpoint(strategy: Any, path: str | os.PathLike[str], *, on_unsaveable: str = "raise") -> bool:
    """Write everything `strategy` needs to go on to one file.

    That is the model with its shape (which parameters are frozen, too), the optimizer's state by parameter name, the
    evaluator with its metrics, the clock, the state of the strategy, its criterion and its plugins, and the random
    states of torch, CUDA, NumPy and Python. Figures among the collected metrics are kept as pictures of them. No data
    are in the file: `Cumulative` finds its own in the stream again.

    A class that has state says so by `state_dict()` and `load_state_dict(state)`; see `UnsaveableError` for those that
    have not. Of Avalanche's own classes, these can be saved:

    - `Naive`, `Cumulative`, `JointTraining`, `EWC`, `SynapticIntelligence`, `MAS`, `LwF`, `LFL`, `GEM`, `GSS_greedy`,
      `CWRStar`, `FromScratchTraining`, `StreamingLDA`, `AETraining` and `VAETraining`, and the plugins that they use;
    - `RWalkPlugin`, `FeatureDistillationPlugin`, `MaskedCrossEntropy`, `LRSchedulerPlugin` and `EarlyStoppingPlugin`.

    These cannot, as they keep samples of the data, or networks that a file could not rebuild: `Replay`, `AGEM`,
    `GDumb`, `GenerativeReplay`, `ICaRL`, `BiC`, `CoPE`, `DER`, `ER_ACE`, `ER_AML`, `MER`, `MIR`, `RARPlugin`, `SCR`,
    `FeatureReplay`, `AR1`, `ExpertGateStrategy`, `LearningToPrompt`, `PNNStrategy` and `PackNet`.

    The file holds tensors and plain values, `torch.load(path, weights_only=True)` reads it, and a checksum is in it.
    It is written beside `path`, synchronised and renamed: a kill at any moment leaves the old file or the new one, and
    two writers do not mix theirs. The old file's permissions are kept, and the target of a link is written.

    Args:
        strategy: One that is not inside `train()` or `eval()`, an interrupted one, too; a `Resumable` one also at its
            safe points.
        path: The file. One that exists is replaced.
        on_unsaveable: "raise", or "warn" to go on without a file; the log then says so, once for a strategy.

    Returns:
        Whether the file has been written.

    Raises:
        UnsaveableError: If a plugin, metric, module or the strategy itself has state that cannot be saved; it is named.
        ValueError: If `strategy` is inside `train()` or `eval()`, or `path` is no regular file. In no case is a file
            written or changed.
        TypeError: If `strategy` is no strategy.
    """
    check_choice("on_unsaveable", on_unsaveable, ("raise", "warn"))
    _check_strategy(strategy)
    running = is_running(strategy)
    if running and not getattr(strategy, "at_safe_point", False):
        raise ValueError(
            "strategy: it is inside train() or eval(); save between the calls, or use CheckpointEvery and Resumable"
        )
    try:
        state = capture(strategy)
    except UnsaveableError as error:
        if on_unsaveable == "raise":
            raise
        go_on_without(strategy, error)
        return False
    if not running and (where := interrupted_in(strategy)) is not None:
        state["interrupted"] = where
        log.warning("saving what an interrupted strategy has learnt: it was left in %s", where)
    archive.write(path, state)
    return True


def go_on_without(strategy: Any, error: UnsaveableError) -> None:
    """Say that a strategy trains without checkpoints, once."""
    if strategy not in _told:
        _told.add(strategy)
        log.warning("training goes on without checkpoints: %s", error)


def load_checkpoint(
    strategy: Any, path: str | os.PathLike[str], *, map_location: torch.device | str | None = None
) -> int:
    """Fill a freshly built strategy from a file and return how many experiences it has completed.

    `strategy` is built as the saved one was: same classes and plugins, whatever the shape of the saved model was;
    classifiers, heads and models that grow are grown first. The global random states are set. A
    TensorBoard logger goes on in its folder, and what was logged there after the file was written is discarded
    (`purge_step`). Text and CSV loggers start anew. Nothing in the file is executed.

    If the file was written inside an experience (see `Resumable`), that one does not count, and the next
    `train()`, which has to be given the same experience, goes on inside it.

    Args:
        strategy: The strategy to fill, between `train()` and `eval()` calls.
        path: A file written by `save_checkpoint`.
        map_location: Device for the tensors of plugins, `strategy.device` by default. The model and the
            optimizer's state go to `strategy.device`, whichever device they were saved from.

    Returns:
        The number of experiences whose training is complete: go on with `stream[n:]`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, damaged, changed since, no checkpoint, or does not fit
            `strategy`. Whatever is raised, an interruption too, `strategy` is as it was before.
        TypeError: If `strategy` is no strategy.
    """
    _check_strategy(strategy)
    if is_running(strategy):
        raise ValueError("strategy: it is inside train() or eval(); load between the calls")
    try:
        device = None if map_location is None else torch.device(map_location)
    except RuntimeError as error:
        raise ValueError(f"map_location must be a device, or None for strategy.device, got {map_location!r}") from error
    state = archive.read(path)

    def finish() -> None:
        past_data_from_plain(strategy, state["past_data"])
        _leave(strategy)
        _reopen_tensorboard(strategy)

    restore(strategy, state, device, finish=finish)
    if (where := state.get("interrupted")) is not None:
        log.warning("%s was saved after an interruption in %s: its weights are those of that moment", path, where)
    return state["experiences"]


def _check_strategy(strategy: Any) -> None:
    if not isinstance(strategy, BaseTemplate):
        raise TypeError(f"strategy must be an Avalanche strategy, got a {type(strategy).__name__}")


def _leave(strategy: Any) -> None:
    """Put a strategy that an interruption has left inside `train()` or `eval()` between experiences."""
    if hasattr(strategy, "interrupted"):
        strategy.interrupted = None
    if strategy.experience is not None:
        strategy.is_training = False
        strategy._train_cleanup()
        strategy._eval_cleanup()


def _reopen_tensorboard(strategy: Any) -> None:
    loggers = [
        logger
        for logger in getattr(getattr(strategy, "evaluator", None), "loggers", ())
        if isinstance(logger, TensorboardLogger)
    ]
    _wait_for_later_name([Path(logger.writer.log_dir) for logger in loggers])
    for logger in loggers:
        old = logger.writer
        old.close()
        # Values of one step may lie on both sides of the moment of saving; logging them twice does no harm.
        step = strategy.clock.train_iterations + 1
        logger.writer = SummaryWriter(old.log_dir, purge_step=step, filename_suffix=old.filename_suffix)
        weakref.finalize(logger, SummaryWriter.close, logger.writer)


def _wait_for_later_name(folders: Sequence[Path]) -> None:
    """Wait until a new file comes last in the order of names, in which TensorBoard reads a folder.

    The names begin with a whole second. Were the new file not the last, its purge would discard nothing.
    """
    files = [file.name for folder in folders for file in folder.glob("events.out.tfevents.*")]
    if max((int(name.split(".")[3]) for name in files), default=0) == int(time.time()):
        time.sleep(1 - time.time() % 1)
