"""Files that are written whole or not at all, and a look whether they can be before the work that they are for.

Needs nothing but Python.
"""

from __future__ import annotations

import glob
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where what killed writers leave behind stays
    fcntl = None  # type: ignore[assignment]

PROBE = 2**20
"""Bytes written to see whether a folder has room: more than any result of a job takes."""


def write_atomically(path: Path, content: bytes, *, flush: bool = True) -> None:
    """Write a file such that the old one or the whole new one is there at any moment.

    The content goes to a new file beside it, made under a name that nobody can foresee, which then takes its place. So
    writers do not get into each other's way, the last one to end wins, and no link that lies there is followed. A link
    at `path` itself is: its target is replaced. An old file's permissions are kept, a missing folder is made, and what
    writers that were killed have left beside the file is removed.

    Args:
        path: The file.
        content: All of it.
        flush: Wait until it is on the disk: what is there after a power failure is one of the two, too.

    Raises:
        ValueError: There is a folder, device, pipe or socket at `path`.
        OSError: The folder cannot be written to, or is full; nothing is left behind.
    """
    target, old = _target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_overs(target)
    with _temporary(target) as (temporary, file):
        if old is not None:
            os.chmod(file.fileno() if os.chmod in os.supports_fd else temporary, stat.S_IMODE(old.st_mode))
        file.write(content)
        file.flush()
        if flush:
            os.fsync(file.fileno())
        if fcntl is None:
            file.close()  # Windows renames no file that is open
        os.replace(temporary, target)
    if flush and os.name == "posix":  # the new name is on the disk once the folder is
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_target(path: Path, name: str) -> None:
    """Refuse a file that cannot be written, before the work; a ValueError names the option and says why.

    Args:
        path: The file.
        name: The option that gave it.
    """
    try:
        target, _ = _target(path)
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
        with _temporary(nearest / "probe") as (_, file):
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


def _target(path: Path) -> tuple[Path, os.stat_result | None]:
    """What is to be written where there may be a link, and what is there now; a ValueError if that is no plain file."""
    target = Path(os.path.realpath(path))
    try:
        old = target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return target, None
    if not stat.S_ISREG(old.st_mode):
        raise ValueError(f"{path} must be a file or not be there, got a folder, a device, a pipe or the like")
    return target, old


@contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Make a new file beside another, locked against `_remove_left_overs`, and remove it unless it is moved away."""
    while True:
        path = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}.tmp")
        file = path.open("xb")  # fails where there is anything, a link as well
        try:
            if _locked(file.fileno(), wait=True) and not os.fstat(file.fileno()).st_nlink:
                continue  # taken for a left-over before it was locked
            yield path, file
            return
        finally:
            file.close()
            path.unlink(missing_ok=True)


def _remove_left_overs(target: Path) -> None:
    """Remove the temporary files of writers that are no more: those that nobody holds the lock of."""
    for path in target.parent.glob(f"{glob.escape(_prefix(target))}{'[0-9a-f]' * 16}.tmp"):
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                if _locked(file, wait=False):
                    path.unlink()
            finally:
                os.close(file)


def _prefix(target: Path) -> str:
    return f".{target.name[:50]}."  # a name may have 255 bytes, and a letter four


def _locked(file: int, *, wait: bool) -> bool:
    """Lock a file for as long as it is open, and say whether that was done."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # another process has the lock, or the file system has none
        return False
    return True
