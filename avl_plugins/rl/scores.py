"""Scores of random play and of people in Atari games, by which those of agents are compared between games.

The numbers are those that papers have shared since Wang et al. 2016 (arXiv:1511.06581) with random no-ops at the start,
as google-deepmind/dqn_zoo has them in dqn_zoo/atari_data.py. Neither Kirkpatrick et al. 2017 nor Rusu et al. 2016
print theirs.
"""

from __future__ import annotations

from typing import NamedTuple

from avl_plugins.metrics.rl import normalised_score
from avl_plugins.tasks.arguments import check_choice

__all__ = ["ATARI_SCORES", "AtariScore", "human_normalised"]


class AtariScore(NamedTuple):
    """Mean scores of an episode."""

    random: float
    human: float


ATARI_SCORES = {
    # The pool of Kirkpatrick et al. 2017.
    "asterix": AtariScore(210.0, 8503.3),
    "boxing": AtariScore(0.1, 12.1),
    "breakout": AtariScore(1.7, 30.5),
    "crazy_climber": AtariScore(10780.5, 35829.4),
    "defender": AtariScore(2874.5, 18688.9),
    "demon_attack": AtariScore(152.1, 1971.0),
    "enduro": AtariScore(0.0, 860.5),
    "fishing_derby": AtariScore(-91.7, -38.7),
    "freeway": AtariScore(0.0, 29.6),
    "gopher": AtariScore(257.6, 2412.5),
    "jamesbond": AtariScore(29.0, 302.8),
    "kangaroo": AtariScore(52.0, 3035.0),
    "krull": AtariScore(1598.0, 2665.5),
    "kung_fu_master": AtariScore(258.5, 22736.3),
    "pong": AtariScore(-20.7, 14.6),
    "riverraid": AtariScore(1338.5, 17118.0),
    "road_runner": AtariScore(11.5, 7845.0),
    "space_invaders": AtariScore(148.0, 1668.7),
    "star_gunner": AtariScore(664.0, 10250.0),
    # What Rusu et al. 2016 have besides.
    "alien": AtariScore(227.8, 7127.7),
    "centipede": AtariScore(2090.9, 12017.0),
    "hero": AtariScore(1027.0, 30826.4),
    "robotank": AtariScore(2.2, 11.9),
    "seaquest": AtariScore(68.4, 42054.7),
    "wizard_of_wor": AtariScore(563.5, 4756.5),
}
"""By the game's name in ALE."""


def human_normalised(game: str, score: float, *, clip: bool = True) -> float:
    """Return (score - random) / (human - random): 0 is random play, 1 a person's.

    Args:
        game: its name in ALE.
        score: of an episode, rewards not clipped.
        clip: count more than 1 as 1, as Kirkpatrick et al. 2017 do (sec. 2.2); below 0 nothing is clipped.

    Raises:
        TypeError: the score is no number.
        ValueError: `ATARI_SCORES` does not have the game, or the score is not finite.
    """
    check_choice("game", game, sorted(ATARI_SCORES))
    return normalised_score(score, ATARI_SCORES[game], clip=clip)
