"""Files that are written whole or not at all: no reader, other writer or kill meets half of one. Needs no torch."""

from __future__ import annotations

import glob
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where what killed writers leave behind stays
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_writable", "regular_file", "temporary_beside", "write_atomically"]


def write_atomically(
    path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object], *, flush: bool = True
) -> None:
    """Write a file such that the old one or the whole new one is there at any moment.

    The content goes to a new file beside it, made under a name that nobody can foresee, which then takes its place. So
    writers do not get into each other's way, the last one to end wins, and no link that lies there is followed. A link
    at `path` itself is: its target is replaced. An old file's permissions are kept, a missing folder is made, and what
    writers that were killed have left beside the file is removed.

    Args:
        path: the file.
        content: all of it, or a function that writes it to a binary file.
        flush: wait until it is on the disk: what is there after a power failure is one of the two, too.

    Raises:
        ValueError: There is a folder, device, pipe or socket at `path`.
        OSError: The folder cannot be written to, or is full; nothing is left behind.
    """
    target, old = regular_file(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_overs(target)
    with temporary_beside(target) as (temporary, file):
        if old is not None:
            os.chmod(file.fileno() if os.chmod in os.supports_fd else temporary, stat.S_IMODE(old.st_mode))
        if callable(content):
            content(file)
        else:
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


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that `write_atomically` could not write to, before the work: it makes the folder, and tries.

    Raises:
        ValueError: It is no regular file, or no file can be made in its folder.
    """
    try:
        target, _ = regular_file(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_beside(target):
            pass
    except OSError as error:
        raise ValueError(f"path must be a file that can be written, got {os.fspath(path)!r}: {error}") from error


def regular_file(path: str | os.PathLike[str]) -> tuple[Path, os.stat_result | None]:
    """Return where a file is to be written, all links followed, and what is there now.

    Raises:
        ValueError: That is no regular file.
    """
    target = Path(os.path.realpath(path))
    try:
        old = target.lstat()
    except FileNotFoundError:
        return target, None
    if not stat.S_ISREG(old.st_mode):
        raise ValueError(f"path must be a regular file or a new one, got the {_kind(old.st_mode)} {os.fspath(path)!r}")
    return target, old


@contextmanager
def temporary_beside(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
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


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFLNK: "link"}
    return kinds.get(stat.S_IFMT(mode), "device")
