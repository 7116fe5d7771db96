"""Calling a task's environment factory, and the checks of what it returns."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

__all__ = ["EnvFactory", "EnvironmentFailedError", "close_environments", "failures_named", "make_environments"]

log = logging.getLogger(__name__)

EnvFactory = Callable[[int], VectorEnv]
"""Makes so many copies of an environment, as one vectorised environment of gymnasium."""

Spaces = tuple[spaces.Space[Any], spaces.Discrete]
"""Of the observations and the actions of one environment."""

_in_use: weakref.WeakSet[VectorEnv] = weakref.WeakSet()


class EnvironmentFailedError(RuntimeError):
    """An environment or its factory has crashed, or an environment has returned something that it must not."""


@contextmanager
def failures_named(where: str) -> Iterator[None]:
    """Have exceptions say where they come from.

    Raises:
        EnvironmentFailedError: in place of any `Exception`.
    """
    try:
        yield
    except Exception as error:
        raise EnvironmentFailedError(f"{where}: {type(error).__name__}: {error}") from error


def make_environments(name: str, make_env: EnvFactory, number: int, like: Spaces | None = None) -> VectorEnv:
    """Make a task's environments, to be closed by `close_environments`.

    Args:
        name: the task's.
        make_env: its factory.
        number: how many to make.
        like: spaces that they must have, those of the first ones that the factory made.

    Raises:
        EnvironmentFailedError: the factory raises an exception.
        ValueError: it returns something else than so many environments with such spaces, or some that are in use; if
            observations are no arrays of numbers or actions are not discrete; if environments do not reset themselves
            as gymnasium's vectorised ones do by default (`AutoresetMode.NEXT_STEP`).
    """
    with failures_named(f"task {name!r}: its factory has failed to make {number} environments"):
        env = make_env(number)
    if isinstance(env, VectorEnv) and env.unwrapped in _in_use:
        raise ValueError(
            f"task {name!r}: its factory has returned environments that are in use; it has to make new ones each time"
        )
    try:
        _check(f"task {name!r}", env, number, like)
    except BaseException:
        with suppress(Exception):  # what it has returned may be anything
            env.close()
        raise
    _in_use.add(env.unwrapped)
    return env


def close_environments(name: str, env: VectorEnv) -> None:
    """Give environments' resources back; where that fails, what has been learnt does not suffer from it."""
    _in_use.discard(env.unwrapped)
    try:
        env.close()
    except Exception as error:
        log.warning("task %r: its environments could not be closed: %s: %s", name, type(error).__name__, error)


def check_spaces(task: str, observations: Any, actions: Any) -> None:
    """Refuse spaces that agents cannot act in, with a ValueError."""
    shape, dtype = getattr(observations, "shape", None), getattr(observations, "dtype", None)
    if shape is None or dtype is None or dtype.kind not in "biuf":
        raise ValueError(
            f"{task}: observations must be arrays of numbers, and the observation space is {observations}; wrap the "
            "environments, for example in gymnasium.wrappers.vector.FlattenObservation"
        )
    if not isinstance(actions, spaces.Discrete) or actions.start != 0:
        raise ValueError(f"{task}: expected discrete actions from 0 on, and the action space is {actions}")


def _check(task: str, env: Any, number: int, like: Spaces | None) -> None:
    if not isinstance(env, VectorEnv):
        raise ValueError(
            f"{task}: its factory has returned a {type(env).__name__}; it has to take a number n and return n "
            "environments as one gymnasium.vector.VectorEnv, for example lambda n: gymnasium.make_vec(id, n)"
        )
    if (found := getattr(env, "num_envs", None)) != number:
        raise ValueError(f"{task}: its factory has been asked for {number} environments and has returned {found}")
    own = getattr(env, "single_observation_space", None), getattr(env, "single_action_space", None)
    check_spaces(task, *own)
    if like is not None and _form(*own) != _form(*like):
        raise ValueError(
            f"{task}: its factory has returned environments of {_form(*own)}, and those that it made before are of "
            f"{_form(*like)}"
        )
    mode = (env.metadata or {}).get("autoreset_mode", AutoresetMode.NEXT_STEP)
    if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.NEXT_STEP.value):
        raise ValueError(
            f"{task}: its environments reset themselves in the mode {mode}; make them with "
            "autoreset_mode=AutoresetMode.NEXT_STEP, gymnasium's default"
        )


def _form(observations: Any, actions: Any) -> str:
    return f"observations {observations.shape} {observations.dtype} and {actions.n} actions"
