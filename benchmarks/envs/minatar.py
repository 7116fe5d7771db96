"""MinAtar's games (Young and Tian 2019, arXiv:1903.03176) as environment factories that are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
CHANNELS = 10
"""Of the game that has most, Seaquest; the others have 4 to 7."""
ACTIONS = 6
"""Nothing, left, up, right, down, fire; in each game, though none but Seaquest tells all of them apart."""


@dataclass(frozen=True, kw_only=True)
class MinAtarEnv:
    """Makes vectorised copies of a MinAtar game.

    Observations are planes (N, 10, 10, 10) of 0 and 1: channel, row, column. A game's own channels come first and the
    rest are 0, so that one network takes all games. Actions are the same 6 in each. Rewards are float64, the game's.

    Episodes begin as gymnasium's vectorised environments do by default (`AutoresetMode.NEXT_STEP`): the observation at
    an episode's end is its last one; the step after it takes no action, returns the first one of the next episode and
    reward 0. `reset(seed=s)` seeds environment i with s + i; the same seed and actions give the same run.

    Args:
        game: One of `GAMES`.
        sticky_actions: Probability that a step repeats the action before it; MinAtar's is 0.1.
        ramping: The game becomes harder as an episode goes on, as MinAtar's do (Asterix, Seaquest, Space Invaders).
        max_steps: An episode is truncated after so many, as some games have no end for a good player. MinAtar has no
            such limit. Freeway ends by itself after 2501.
        dtype: "float32", or "bool", which takes a quarter of the memory in a replay buffer.

    Raises:
        ImportError: When environments are made, if the package minatar is not installed.
        ValueError: If there is no such game, or a number or `dtype` is out of range.
    """

    game: str
    sticky_actions: float = 0.1
    ramping: bool = True
    max_steps: int = 5_000
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.game not in GAMES:
            raise ValueError(f"game must be one of {', '.join(GAMES)}, got {self.game!r}")
        if not 0 <= self.sticky_actions <= 1:
            raise ValueError(f"sticky_actions must be a probability, from 0 to 1, got {self.sticky_actions}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if self.dtype not in ("float32", "bool"):
            raise ValueError(f"dtype must be float32 or bool, got {self.dtype!r}")

    @property
    def name(self) -> str:
        """The game."""
        return self.game

    def __call__(self, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """Make so many.

        Raises:
            ValueError: If that is not at least 1.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        try:
            from minatar import Environment
        except ImportError as error:
            raise ImportError(
                'MinAtarEnv needs the package minatar, which is an extra: pip install "avl-plugins[minatar]"'
            ) from error
        from gymnasium import Env, spaces
        from gymnasium.vector import SyncVectorEnv

        settings, dtype = self, np.dtype(self.dtype).type

        class Game(Env):
            def __init__(self) -> None:
                self.observation_space = spaces.Box(0, 1, (CHANNELS, 10, 10), dtype)
                self.action_space = spaces.Discrete(ACTIONS)
                self.game = Environment(settings.game, settings.sticky_actions, settings.ramping)

            def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
                self.game.seed(seed)  # None goes on with the same numbers
                self.game.last_action = 0  # MinAtar would repeat one of the episode before
                self.game.reset()
                self.steps = 0
                return self.planes(), {}

            def step(self, action: Any) -> Any:
                if not 0 <= action < ACTIONS:
                    raise ValueError(f"actions must be from 0 to {ACTIONS - 1}, got {action}")
                reward, terminated = self.game.act(action)
                self.steps += 1
                truncated = not terminated and self.steps >= settings.max_steps
                return self.planes(), float(reward), terminated, truncated, {}

            def planes(self) -> np.ndarray:
                own = self.game.state().transpose(2, 0, 1)
                planes = np.zeros((CHANNELS, 10, 10), dtype)
                planes[: len(own)] = own
                return planes

        return SyncVectorEnv([Game] * num_envs)
