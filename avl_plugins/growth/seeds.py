"""Random numbers of parts that are added one after the other: each has its own, whatever has been drawn before."""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import torch

__all__ = ["drawn_from"]


@contextmanager
def drawn_from(seed: int | None, part: str) -> Iterator[None]:
    """Have torch draw random numbers that a seed and a part's name determine; the global state is then as before.

    Nothing has to be kept in a state: what is drawn after a resumption is the same.

    Args:
        seed: an integer from 0 on; None leaves torch's global generator in use.
        part: what is drawn, in words.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(Random(f"{seed}: {part}").getrandbits(63))
        yield
