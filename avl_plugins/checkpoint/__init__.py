"""Saving a strategy and going on from there, also in the middle of an experience."""

from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.checkpoint.known import UnsaveableError
from avl_plugins.checkpoint.progress import Progress
from avl_plugins.checkpoint.resume import CheckpointEvery, Resumable, phase

__all__ = [
    "CheckpointEvery",
    "Progress",
    "Resumable",
    "UnsaveableError",
    "load_checkpoint",
    "phase",
    "save_checkpoint",
]
