"""Atari games as vectorised environments."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from avl_plugins.tasks.arguments import check_count, check_flag, check_kind, check_number
from avl_plugins.tasks.keywords import keywords_only

__all__ = ["AtariEnv", "usable_cores"]


@keywords_only
@dataclass(frozen=True, kw_only=True)
class AtariEnv:
    """Makes vectorised copies of an Atari game, ALE's own (`ale_py.vector_env.AtariVectorEnv`).

        env = AtariEnv(game="pong")(8)

    Observations are (N, 4, 84, 84) uint8: luminance of the last four agent steps, newest last, each the maximum of the
    last two of `frameskip` frames. At an episode's beginning the three before the first are 0. Rewards are int32, the
    game's own: not clipped, so that their sum is the score. Losing a life does not end an episode.

    Episodes begin as gymnasium's vectorised environments do by default (`AutoresetMode.NEXT_STEP`): the observation at
    an episode's end is its last one; the step after it takes no action, returns the first one of the next episode and
    reward 0. `reset(seed=s)` seeds environment i with s + i; the same seed and actions give the same observations, bit
    for bit, whatever the number of threads.

    Args:
        game: as ALE names its file, "space_invaders" for example.
        full_actions: all 18 actions in each game, in the same order (Kirkpatrick et al. 2017, app. 4.2); else only
            those that the game distinguishes.
        noop_max: an episode begins with a random number of frames without action, fewer than this (30, the paper's
            table 2); 0 and 1 are none.
        frameskip: frames that an action is repeated for. The paper's is 4.
        sticky_actions: probability that a frame repeats the action before it. The papers have none.
        fire_reset: press fire for a frame at an episode's beginning, in place of one of those without action if there
            are any. Games that wait for it, as Breakout does, do so again after a life is lost. The papers do not say.
        max_frames: an episode is truncated after so many, those without action at its beginning not counted; 108,000
            are half an hour.
        threads: how many step the environments; 0 leaves the number to ALE.
        first_core: bind each thread to a core, from this one on, and have it wait at waking for who called it
            (SCHED_BATCH), both where the system can; None: leave it to the system. Linux otherwise lets the first
            thread that is woken take the caller's core before the caller has woken the second, where the caller has
            worked since the step before, as agents do: on two cores that costs a fifth of an agent's time on Pong. Runs
            beside each other need cores of their own.

    Raises:
        ImportError: the package ale-py is not installed.
        TypeError: an argument is of another kind, or positional.
        ValueError: there is no such game, or a number is out of range. From the call, there are not enough cores from
            `first_core` on. The environments raise it, too: from `step`, if there is an action that the game does not
            have or not one for each environment, and from `reset`, if the seed is out of range. Without that check,
            ALE would wait for ever.
    """

    game: str
    full_actions: bool = True
    noop_max: int = 30
    frameskip: int = 4
    sticky_actions: float = 0.0
    fire_reset: bool = True
    max_frames: int = 108_000
    threads: int = 0
    first_core: int | None = None

    def __post_init__(self) -> None:
        check_kind("game", self.game, str, "a string")
        check_flag("full_actions", self.full_actions)
        check_flag("fire_reset", self.fire_reset)
        check_count("noop_max", self.noop_max, low=0)
        check_count("frameskip", self.frameskip)
        check_count("max_frames", self.max_frames)
        check_count("threads", self.threads, low=0)
        check_number("sticky_actions", self.sticky_actions, low=0, high=1)
        check_count("first_core", self.first_core, low=0, none="the system's choice")
        if self.first_core is not None and not self.threads:
            raise ValueError(f"first_core: pass threads, too, how many cores from {self.first_core} on; it is 0")
        _check_game(self.game)

    @property
    def name(self) -> str:
        """The game."""
        return self.game

    def __call__(self, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """Make so many.

        Raises:
            TypeError: that is no integer.
            ValueError: that is below 1.
        """
        check_count("num_envs", num_envs)
        if self.first_core is not None:
            _check_cores(self.first_core, self.threads)
        from ale_py.vector_env import AtariVectorEnv

        with _threads_wait_for_callers() if self.first_core is not None else nullcontext():
            env = AtariVectorEnv(
                self.game,
                int(num_envs),  # ALE takes Python's own numbers only
                num_threads=int(self.threads),
                thread_affinity_offset=-1 if self.first_core is None else int(self.first_core),
                full_action_space=self.full_actions,
                noop_max=int(self.noop_max),
                frameskip=int(self.frameskip),
                repeat_action_probability=float(self.sticky_actions),
                use_fire_reset=self.fire_reset,
                max_num_frames_per_episode=int(self.max_frames),
                reward_clipping=False,
                episodic_life=False,
            )
        return _Checked(env)


class _Checked(VectorWrapper):
    """Refuses actions on which ALE's threads would end without a word, and seeds that it takes for none."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            seed = int(seed)
            if not 0 <= seed <= 2**31 - self.num_envs:
                raise ValueError(f"seed must be from 0 to 2**31 - {self.num_envs}, got {seed}")
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        actions = np.asarray(actions)
        number = self.single_action_space.n  # type: ignore[attr-defined]
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(
                f"actions must be {self.num_envs} integers, one per environment, got {actions.shape} {actions.dtype}"
            )
        if actions.min() < 0 or actions.max() >= number:
            raise ValueError(f"actions must be from 0 to {number - 1}, got {actions.tolist()}")
        return self.env.step(actions.astype(np.int64, copy=False))


def usable_cores() -> set[int]:
    """Return the cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _check_cores(first: int, threads: int) -> None:
    cores = usable_cores()
    if not cores.issuperset(range(first, first + threads)):
        raise ValueError(
            f"first_core: {threads} threads from core {first} on, and this process may use the cores {sorted(cores)}"
        )


@contextmanager
def _threads_wait_for_callers() -> Iterator[None]:
    """Threads that are started inherit SCHED_BATCH: at waking they take no core from a thread that is running."""
    try:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError):  # not Linux, or not allowed
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def _check_game(game: str) -> None:
    try:
        from ale_py import ALEInterface, roms
    except ImportError as error:
        raise ImportError(
            'AtariEnv needs the package ale-py, which is an extra: pip install "avl-plugins[rl]"'
        ) from error

    def playable(name: str) -> bool:  # ALE ends the process on the few files that it has no rules for
        path = roms.get_rom_path(name)
        return path is not None and bool(ALEInterface.isSupportedROM(path))

    names = roms.get_all_rom_ids()
    if game in names and playable(game):
        return
    plain = re.sub(r"^ale/|(noframeskip|deterministic)?(-v\d+)?$", "", str(game).lower())
    close = [name for name in difflib.get_close_matches(plain, names, n=4, cutoff=0.6) if playable(name)]
    hint = (
        f"did you mean {' or '.join(map(repr, close))}?"
        if close
        else f"it has {', '.join(filter(playable, sorted(names)))}"
    )
    raise ValueError(f"game: there is no {game!r} that ALE can play; {hint}")
