"""Moved to `avl_plugins.checkpoint.resume`; this path is there for one more release."""

import warnings

from avl_plugins.checkpoint.resume import CheckpointEvery, Resumable, phase

__all__ = ["CheckpointEvery", "Resumable", "phase"]

warnings.warn("avl_plugins.resume has moved to avl_plugins.checkpoint.resume", DeprecationWarning, stacklevel=2)
