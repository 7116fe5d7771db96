"""Variants of CartPole for continual reinforcement learning: the same task with other actions, physics or senses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

SCALE = np.array([2.4, 2.0, 0.2, 2.0], dtype=np.float32)
"""Position and angle at which an episode ends, about, and velocities that are usual."""


@dataclass(frozen=True)
class CartPole:
    """Makes vectorised CartPoles (gymnasium's, 500 steps at most) that differ from the usual one.

    Args:
        swapped: Action 0 pushes to the right and 1 to the left.
        order: Which of position, velocity, angle and angular velocity each observation is.
        gravity: Metres per second squared.
        length: Half the pole's length, metres.
        force: Of a push, newtons.
    """

    swapped: bool = False
    order: tuple[int, int, int, int] = (0, 1, 2, 3)
    gravity: float = 9.8
    length: float = 0.5
    force: float = 10.0

    def seen(self, observations: np.ndarray) -> np.ndarray:
        """Return observations (N, 4) as the agent sees them: each of order 1, and in the variant's order."""
        return (observations / SCALE)[:, self.order]

    def __call__(self, num_envs: int) -> VectorEnv:
        """Make so many."""
        from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
        from gymnasium.vector import VectorWrapper

        variant = self

        class Variant(VectorWrapper):
            def reset(self, **kwargs: Any) -> Any:
                observations, info = self.env.reset(**kwargs)
                return variant.seen(observations), info

            def step(self, actions: Any) -> Any:
                observations, *others = self.env.step(1 - actions if variant.swapped else actions)
                return variant.seen(observations), *others

        env: Any = CartPoleVectorEnv(num_envs=num_envs)
        env.gravity, env.length, env.force_mag = self.gravity, self.length, self.force
        env.polemass_length = env.masspole * env.length
        return Variant(env)


VARIANTS = {
    "cartpole": CartPole(),
    "swapped": CartPole(swapped=True, order=(2, 0, 3, 1)),
    "long": CartPole(order=(3, 2, 1, 0), length=1.0, gravity=15.0),
}
