"""A folder, or what a file stands for, for one process at a time."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

NAME = ".lock"
POLL_SECONDS = 0.2


class Taken(Exception):
    """Another process has the folder; says which."""


@contextmanager
def sole_use(folders: Sequence[Path]) -> Iterator[None]:
    """Have folders to oneself; they are made where they are not there.

    The lock is the operating system's, on a file in the folder that says whose it is: a process that ends, in whatever
    way, lets go of it. Where there is no such lock a line in the log says so.

    Raises:
        Taken: Another process has one of them.
        OSError: The file cannot be made, or is a link.
    """
    with ExitStack() as stack:
        for folder in dict.fromkeys(folders):
            stack.enter_context(_held(folder / NAME))
        yield


@contextmanager
def turn(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Have what a file stands for to oneself, after the process that has it; `waiting` is called before the wait."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(_held(path))
                break
            except Taken:
                waiting()
                time.sleep(POLL_SECONDS)
        yield


@contextmanager
def _held(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _taken(path)
    try:
        file.truncate(0)
        own = {"process": os.getpid(), "host": socket.gethostname()}
        file.write(json.dumps(own | {"since": datetime.now().isoformat(sep=" ", timespec="seconds")}))
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still ours
        file.close()


def _taken(path: Path) -> TextIO:
    """Open the file and lock it."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644), "r+")
        try:
            if fcntl is None:
                raise OSError("no locks on this system")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                raise Taken(f"{path.parent} is in use by {_owner(file)}") from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): do not run two commands in this folder", path, error)
            return file
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # the one who had it has just removed it


def _owner(file: TextIO) -> str:
    """Who has the lock."""
    try:
        owner = json.loads(file.read())
        return f"process {owner['process']} on {owner['host']}, since {owner['since']}"
    except (KeyError, RecursionError, TypeError, ValueError):
        return "another process"  # which has yet to write its name
