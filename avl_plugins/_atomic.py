"""Writing a file so that a reader, another writer or a kill never meets half of it. Needs no torch."""

import os
import secrets
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["check_writable", "write_atomically"]

_ABANDONED_AFTER = 3600.0
"""Seconds without a write after which a temporary file belongs to a writer that was killed."""


def write_atomically(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object]) -> None:
    """Replace a file by a new one, or make it: whoever opens it finds the old content or the new one, whole.

    It is written under a fresh, unpredictable name in the same folder, which must not exist yet, synchronised and
    renamed. A failure removes the new file; those that kills have left behind for an hour are removed, too. The old
    file's permissions are kept, and a new one has those of the umask. Missing folders are made.

    Args:
        path: The file. Of a link, the file that it leads to is replaced.
        content: The bytes, or a function that writes them to a binary file.

    Raises:
        ValueError: If `path` is a folder, a device, a pipe or anything else that is no regular file.
        OSError: If it cannot be written; the old file is as it was.
    """
    target, mode = _target_and_mode(path)
    partial = _fresh_name(target)
    # Exclusively: a file or link planted under this name is neither followed nor written to.
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    descriptor = os.open(partial, flags, 0o666 if mode is None else mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                os.chmod(partial, mode)  # the umask does not apply
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _synchronise(target.parent)
    _remove_abandoned(target)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that `write_atomically` could not write to, before the work: it makes the folder, and tries.

    Raises:
        ValueError: If it is no regular file, or no file can be made in its folder.
    """
    try:
        partial = _fresh_name(_target_and_mode(path)[0])
        partial.open("xb").close()
        partial.unlink()
    except OSError as error:
        raise ValueError(f"path must be a file that can be written, got {os.fspath(path)!r}: {error}") from error


def _target_and_mode(path: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """Return where a file is to be written, all links followed, and the permissions of the one that is there."""
    target = Path(os.path.realpath(path))
    try:
        old = target.stat().st_mode
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        return target, None
    if not stat.S_ISREG(old):
        raise ValueError(f"path must be a regular file or a new one, got the {_kind(old)} {os.fspath(path)!r}")
    return target, stat.S_IMODE(old)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFLNK: "link"}
    return kinds.get(stat.S_IFMT(mode), "device")


def _fresh_name(target: Path) -> Path:
    return target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}.tmp")


def _prefix(target: Path) -> str:
    # A file system takes names of up to 255 bytes.
    return f".{os.fsdecode(os.fsencode(target.name)[:200])}."


def _synchronise(folder: Path) -> None:
    """Make a rename durable."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_abandoned(target: Path) -> None:
    prefix = _prefix(target)
    for entry in os.scandir(target.parent):
        if entry.name.startswith(prefix) and entry.name.endswith(".tmp"):
            with suppress(OSError):  # another writer may have removed it
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED_AFTER:
                    os.unlink(entry.path)
