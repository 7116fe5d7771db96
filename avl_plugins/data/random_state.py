"""Whether something draws random numbers."""

import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["random_state_kept"]


@contextmanager
def random_state_kept() -> Iterator[Callable[[], bool]]:
    """Put the global random states of Python, NumPy and torch (with CUDA, where it is in use) back at the end.

    Yields:
        A function that says whether a random number has been drawn from one of them. That shows what is random even
        where it seldom makes a difference: a flip with a probability of .02 draws each time.
    """
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002 - what transforms draw from
    cpu, devices = torch.get_rng_state(), _devices()
    before = _now()
    try:
        yield lambda: _now() != before
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        for device, state in enumerate(devices):
            torch.cuda.set_rng_state(state, device)


def _devices() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _now() -> tuple[bytes, ...]:
    """Return all states in a form that can be compared."""
    own = pickle.dumps((random.getstate(), np.random.get_state(legacy=False)))  # noqa: NPY002
    return own, *(state.numpy().tobytes() for state in (torch.get_rng_state(), *_devices()))
