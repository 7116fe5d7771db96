"""Pong Soup: the eight variants of Atari's Pong of Rusu et al. 2016 (sec. 5.2), as environment factories.

A variant is a function of observations (N, 4, 84, 84) uint8, as `AtariEnv` makes them. Only what is seen differs: the
actions, the game and its scores are Pong's. Background is 87 in Pong's frames, the left paddle 124, the right one (the
agent's) 147, the ball and the lower wall 236; where the frame was made smaller, edges lie between these and 87.

| variant | what is seen |
| --- | --- |
| pong | the game |
| noisy | one frozen Gaussian noise image is added to each frame, and the sum clipped to 0 to 255 |
| black | background 0; from 124 on, grey levels are kept |
| white | the negative of black: background 255, left paddle 131, right one 108, ball and wall 19 |
| zoom | scaled to 75 % by area and moved; background around it |
| h-flip, v-flip, hv-flip | mirrored left-right, upside down, both |

The paper gives neither the noise's standard deviation, nor the zoom's offset, nor what becomes of paddles and ball on
black and white. Kept at 236, the ball would be 19 grey levels from a white background: hence the negative. A stack's
frames before an episode's first, which are 0, are treated as others: they are background in black and white.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

VARIANTS = ("pong", "noisy", "black", "white", "zoom", "h-flip", "v-flip", "hv-flip")
BACKGROUND = 87
CONTRAST = 40
"""Grey levels that are 1 for a net: the left paddle is 37 above the background, the right one 60, the ball 149."""
LEFT_PADDLE = 124
"""Grey level of the darkest thing that moves."""
SIDE = 84
ZOOMED = 63
FLIPPED_AXES = {"h-flip": (-1,), "v-flip": (-2,), "hv-flip": (-2, -1)}

Observations = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class PongEnv:
    """Makes vectorised environments of a variant of Pong.

    Args:
        variant: One of `VARIANTS`.
        noise_std: Standard deviation of the noise image, in grey levels: the ball is 149 above the background, the
            paddles are 60 and 37.
        noise_seed: Of the noise image.
        zoom_offset: Rows and columns above and left of the zoomed image, from 0 to 21 each.
        full_actions: All 18 actions of Atari's, not only the 6 that Pong distinguishes.
        sticky_actions: Probability that a frame repeats the action before it.
        max_frames: An episode is truncated after so many; see `AtariEnv`.
        threads: That step the environments; 0 leaves the number to ALE.

    Raises:
        ImportError: When environments are made, if the package ale-py is not installed.
        ValueError: If there is no such variant, or a number is out of range.
    """

    variant: str = "pong"
    noise_std: float = 20.0
    noise_seed: int = 0
    zoom_offset: tuple[int, int] = (SIDE - ZOOMED, SIDE - ZOOMED)
    full_actions: bool = False
    sticky_actions: float = 0.0
    max_frames: int = 108_000
    threads: int = 0

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
        if self.noise_std < 0:
            raise ValueError(f"noise_std must not be negative, got {self.noise_std}")
        if len(self.zoom_offset) != 2 or not all(0 <= offset <= SIDE - ZOOMED for offset in self.zoom_offset):
            raise ValueError(f"zoom_offset must be rows and columns from 0 to {SIDE - ZOOMED}, got {self.zoom_offset}")

    @property
    def name(self) -> str:
        """The variant."""
        return self.variant

    def __call__(self, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """Make so many."""
        from gymnasium.vector import VectorObservationWrapper

        from avl_plugins.rl.atari import AtariEnv

        seen = self.transformation()

        class Variant(VectorObservationWrapper):
            def observations(self, observations: Observations) -> Observations:
                return seen(observations)

        game = AtariEnv(
            game="pong",
            full_actions=self.full_actions,
            sticky_actions=self.sticky_actions,
            max_frames=self.max_frames,
            threads=self.threads,
        )
        return Variant(game(num_envs))

    def transformation(self) -> Callable[[Observations], Observations]:
        """Return the function of observations (..., 84, 84) uint8 that makes them the variant's, without changing them.

        "pong" returns what it is given, the others a new array.
        """
        if self.variant == "pong":
            return lambda observations: observations
        if self.variant == "noisy":
            noise = noise_image(seed=self.noise_seed, std=self.noise_std)
            return lambda observations: np.clip(observations + noise, 0, 255).astype(np.uint8)
        if self.variant in ("black", "white"):
            greys = grey_levels(self.variant)
            return lambda observations: np.take(greys, observations)
        if self.variant == "zoom":
            return lambda observations: zoom(observations, self.zoom_offset)
        axes = FLIPPED_AXES[self.variant]
        return lambda observations: np.ascontiguousarray(np.flip(observations, axes))


def noise_image(*, seed: int, std: float) -> NDArray[np.int16]:
    """Draw Gaussian noise (84, 84) in whole grey levels, at most 255 up or down."""
    drawn = np.random.default_rng(seed).normal(0, std, (SIDE, SIDE))
    return drawn.round().clip(-255, 255).astype(np.int16)


def grey_levels(background: str) -> NDArray[np.uint8]:
    """Return what each of Pong's grey levels becomes on black or white, (256,).

    Between background and left paddle they are stretched, so that edges stay soft and nothing has a halo.
    """
    black = np.interp(np.arange(256), [BACKGROUND, LEFT_PADDLE, 255], [0, LEFT_PADDLE, 255]).round().astype(np.uint8)
    return black if background == "black" else 255 - black


def zoom(observations: Observations, offset: tuple[int, int]) -> Observations:
    """Scale images (..., 84, 84) to 63 x 63, each pixel the mean of its 4/3 x 4/3 area, on background (..., 84, 84)."""
    *batch, height, width = observations.shape
    rows = observations.astype(np.uint16).reshape(*batch, height // 4, 4, width)
    small = np.stack(_three_of_four(*np.moveaxis(rows, -2, 0)), axis=-2).reshape(*batch, ZOOMED, width // 4, 4)
    small = np.stack(_three_of_four(*np.moveaxis(small, -1, 0)), axis=-1).reshape(*batch, ZOOMED, ZOOMED)
    out = np.full_like(observations, BACKGROUND)
    top, left = offset
    out[..., top : top + ZOOMED, left : left + ZOOMED] = (small + 8) // 16
    return out


def _three_of_four(a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Any, Any]:
    """Share four lines among three, by area and times 4."""
    return 3 * a + b, 2 * (b + c), c + 3 * d
