"""What lies beside the checkpoint of an unfinished job: the seconds that it took, and how it was begun.

A job that goes on keeps the threads that it was begun with, as sums over threads differ in their last bits.
"""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.files import blaming, write_atomically


@dataclass(frozen=True)
class Begun:
    """How a job was begun.

    Attributes:
        threads: torch's.
        device: its name for the record.
    """

    threads: int
    device: str

    def write(self, path: Path) -> None:
        """Put it beside the checkpoint."""
        write_atomically(path, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, path: Path) -> Begun | None:
        """Read it, None where there is none; a ValueError names a damaged file and says what to do."""
        if not path.exists():
            return None
        fix = "remove it and give the --threads of then, or start the job again with --overwrite"
        with blaming(path, "does not say how its job was begun", fix):
            begun = cls(**json.loads(path.read_text()))
            if type(begun.threads) is not int or begun.threads < 1 or type(begun.device) is not str:
                raise ValueError(f"threads {begun.threads!r}, device {begun.device!r}")
        return begun

    def check_device(self, device: str) -> None:
        """Raise a ValueError if a job that was begun on a CPU is to go on on a GPU, or the other way round."""
        if (self.device == "cpu") != (device == "cpu"):
            raise ValueError(
                f"the job was begun on {self.device} and would go on on {device}; give the --device that it was begun "
                "on, or start it again with --overwrite"
            )


def read_seconds(path: Path) -> float:
    """Seconds an interrupted job had taken (0 where it was killed before it could say).

    Raises:
        ValueError: The file is damaged; names it and says what to do.
    """
    if not path.exists():
        return 0.0
    with blaming(path, "does not hold the seconds that its job has taken", "remove it, and they are counted from here"):
        seconds = float(path.read_text())
        if not 0 <= seconds < math.inf:
            raise ValueError(f"{seconds} seconds")
    return seconds


def readable(checkpoint: Path | None) -> AbstractContextManager[None]:
    """Where a job reads its checkpoint: an error that names the file and says what to do, in place of any other."""
    return blaming(checkpoint, "does not fit its job", "remove it, and its job starts again with --resume")


def read_found(checkpoint: Path) -> dict[str, Any]:
    """What a job that keeps its findings as JSON had found; a ValueError names a damaged file."""
    with readable(checkpoint):
        found = json.loads(checkpoint.read_text())
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    return found
