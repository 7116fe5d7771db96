"""Saving a strategy and going on from there, also in the middle of an experience."""

from typing import TYPE_CHECKING

from avl_plugins._lazy import lazily

if TYPE_CHECKING:
    from avl_plugins.checkpoint.file import load_checkpoint as load_checkpoint
    from avl_plugins.checkpoint.file import save_checkpoint as save_checkpoint
    from avl_plugins.checkpoint.known import UnsaveableError as UnsaveableError
    from avl_plugins.checkpoint.progress import Progress as Progress
    from avl_plugins.checkpoint.resume import CheckpointEvery as CheckpointEvery
    from avl_plugins.checkpoint.resume import Resumable as Resumable
    from avl_plugins.checkpoint.resume import phase as phase

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "file": ["load_checkpoint", "save_checkpoint"],
        "known": ["UnsaveableError"],
        "progress": ["Progress"],
        "resume": ["CheckpointEvery", "Resumable", "phase"],
    },
)
