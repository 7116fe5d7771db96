"""How long a call takes."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any


def timed(run: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    started = perf_counter()
    run()
    return perf_counter() - started
