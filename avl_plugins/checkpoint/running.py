"""Whether a strategy is inside train() or eval(), or has been left there by an interruption."""

import sys
from types import FrameType
from typing import Any

from avalanche.training.supervised import JointTraining

__all__ = ["interrupted_in", "is_running", "place_of"]


def is_running(strategy: Any) -> bool:
    """Tell whether some thread is in the strategy's `train()` or `eval()`.

    Avalanche resets `strategy.experience` only where these return, and not where they end by an exception or Ctrl-C.
    The calls that are going on are those on the stacks.
    """
    for thread in list(sys._current_frames().values()):
        frame: FrameType | None = thread
        while frame is not None:
            code = frame.f_code
            is_method = code.co_name in ("train", "eval") and code.co_argcount > 0
            if is_method and frame.f_locals.get(code.co_varnames[0]) is strategy:
                return True
            frame = frame.f_back
    return False


def interrupted_in(strategy: Any) -> str | None:
    """Say where an exception or Ctrl-C has left a strategy that does not run; None where it is between calls."""
    if hasattr(strategy, "interrupted"):  # a Resumable one, which has tidied up
        return strategy.interrupted
    # JointTraining does not tidy up where its only train() has been completed either.
    completed = isinstance(strategy, JointTraining) and strategy.is_training and strategy._is_fitted
    return None if completed or strategy.experience is None else place_of(strategy)


def place_of(strategy: Any) -> str:
    """Say which call a strategy is in, and on which experience."""
    call = "train()" if strategy.is_training else "eval()"
    if strategy.experience is None:
        return call
    return f"{call} on experience {getattr(strategy.experience, 'current_experience', None)}"
