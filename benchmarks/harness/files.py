"""A look whether files can be written before the work that they are for, and errors that name a file.

Needs nothing but Python.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avl_plugins._atomic import regular_file, temporary_beside, write_atomically

__all__ = ["blaming", "check_folder", "check_target", "remove_events", "write_atomically"]

PROBE = 2**20
"""Bytes written to see whether a folder has room: more than any result of a job takes."""


def check_target(path: Path, name: str) -> None:
    """Refuse a file that cannot be written, before the work; a ValueError names the option and says why.

    Args:
        path: The file.
        name: The option that gave it.
    """
    try:
        target, _ = regular_file(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    check_folder(target.parent, name)


def check_folder(folder: Path, name: str) -> None:
    """Refuse a folder that cannot be written to, before the work; a ValueError names the option and says why.

    It need not be there yet and is not made: the nearest folder above it that is there gets a file of a megabyte, which
    is removed again.

    Args:
        folder: The folder.
        name: The option that gave it.
    """
    nearest = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    try:
        if not nearest.is_dir():
            raise NotADirectoryError(None, f"{nearest} is no folder")
        with temporary_beside(nearest / "probe") as (_, file):
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ValueError(f"{name}: {folder} cannot be written to ({error.strerror}); choose another") from error


@contextmanager
def blaming(path: Path | None, what: str, fix: str) -> Iterator[None]:
    """Where a file is read: an error of one line that names it and says what to do, in place of any other.

    Args:
        path: The file.
        what: What is wrong with it.
        fix: What to do.

    Raises:
        ValueError: Where anything is raised.
    """
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{path} {what} ({kind}{' '.join(str(error).split())}); {fix}") from error


def remove_events(logdir: Path) -> None:
    """Remove the logs in a TensorBoard folder, over which it would draw the next one's; nothing else that is there."""
    for old in logdir.glob("events.out.tfevents.*"):
        old.unlink(missing_ok=True)
