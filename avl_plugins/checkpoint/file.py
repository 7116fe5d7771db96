"""Saving a strategy to a file, and loading it, without pickle.

    start = load_checkpoint(strategy, path) if path.exists() else 0
    for experience in benchmark.train_stream[start:]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        save_checkpoint(strategy, path)

The resumed run ends with the weights and metrics of an uninterrupted one, bit for bit on the CPU.
"""

import hashlib
import os
import time
import weakref
from pathlib import Path
from typing import Any

import torch
from avalanche.logging import TensorboardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from avl_plugins.checkpoint.strategy_state import capture, restore, restore_past_data

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "avl_plugins checkpoint 1"


def save_checkpoint(strategy: Any, path: str | os.PathLike[str]) -> None:
    """Write everything `strategy` needs to go on to one file.

    That is the model with its shape (which parameters are frozen, too), the optimizer's state by parameter name, the
    `state_dict()` of plugins that have one, Avalanche's clock, evaluator, metrics, periodic evaluation, early stopping
    and learning-rate scheduler, and the random states of torch, CUDA, NumPy and Python. Plugins without anything
    that can change need nothing. The data are not in the file: `Cumulative` finds them in the stream again.
    Figures among the collected metrics are kept as pictures of them.

    The file holds tensors and plain values, `torch.load(path, weights_only=True)` reads it, and a checksum is in it.
    It is written beside `path`, synchronised and renamed: a kill at any moment leaves the old file or the new one.

    Args:
        strategy: Any Avalanche strategy between `train()` and `eval()`; a `Resumable` one also at its safe points.
        path: The file. One that exists is replaced.

    Raises:
        ValueError: If a plugin, metric, module or the strategy itself has state that cannot be saved (it is named),
            or `strategy` is inside `train()` or `eval()`. No file is written or changed.
    """
    if strategy.experience is not None and not getattr(strategy, "at_safe_point", False):
        raise ValueError(
            "strategy: it is inside train() or eval(); save between the calls, or use CheckpointEvery and Resumable"
        )
    state = capture(strategy)
    _write(Path(path), {"format": _FORMAT, "sha256": _digest(state), "state": state})


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
            `strategy`, which is then as it was before.
    """
    if strategy.experience is not None:
        raise ValueError("strategy: it is inside train() or eval(); load between calls")
    state = _read(Path(path))
    restore(strategy, state, None if map_location is None else torch.device(map_location))
    restore_past_data(strategy, state)
    for logger in getattr(getattr(strategy, "evaluator", None), "loggers", ()):
        if isinstance(logger, TensorboardLogger):
            # Values of one step may lie on both sides of the moment of saving; logging them twice does no harm.
            _reopen(logger, purge_step=strategy.clock.train_iterations + 1)
    return state["experiences"]


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")  # one left by a kill is overwritten by the next save
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name is durable once the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            known = isinstance(content, dict) and content.get("format") == _FORMAT
            intact = known and content.get("sha256") == _digest(content.get("state"))
        except Exception as error:
            raise ValueError(
                f"path: {path} is truncated, damaged or not a checkpoint of this package; nothing in it was executed "
                f"({type(error).__name__})"
            ) from error
    if not known:
        found = content.get("format") if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"path: {path} is not a checkpoint of this package: expected {_FORMAT!r}, found {found!r}")
    if not intact:
        raise ValueError(f"path: {path} has been changed since it was written; its checksum differs")
    return content["state"]


def _digest(state: Any) -> str:
    """SHA-256 of a tree of plain values: structure, numbers to the last bit, and tensors with dtype and shape."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            digest.update(f"dict {len(value)}".encode())
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, (list, tuple)):
            digest.update(f"{type(value).__name__} {len(value)}".encode())
            for item in value:
                add(item)
        else:
            digest.update(f"{type(value).__name__} {value!r};".encode())

    add(state)
    return digest.hexdigest()


def _reopen(logger: TensorboardLogger, *, purge_step: int) -> None:
    old = logger.writer
    old.close()
    # TensorBoard reads a folder's files in the order of their names, which begin with a whole second: the new file has
    # to come last, or its purge would discard nothing.
    stamps = [int(f.name.split(".")[3]) for f in Path(old.log_dir).glob("events.out.tfevents.*")]
    if max(stamps, default=0) == int(time.time()):
        time.sleep(1 - time.time() % 1)
    logger.writer = SummaryWriter(old.log_dir, purge_step=purge_step, filename_suffix=old.filename_suffix)
    weakref.finalize(logger, SummaryWriter.close, logger.writer)
