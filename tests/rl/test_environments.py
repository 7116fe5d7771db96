"""Environment factories of Atari, Pong's variants and MinAtar, and scores as people's and random play's."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from gymnasium.vector import AutoresetMode

from avl_plugins.rl.atari import AtariEnv
from avl_plugins.rl.scores import ATARI_SCORES, human_normalised
from benchmarks.envs.minatar import GAMES, MinAtarEnv
from benchmarks.envs.pong_variants import BACKGROUND, VARIANTS, PongEnv, noise_image, zoom

FIELD = (slice(14, 77), slice(12, 72))
"""Where in Pong's frames the ball is alone: between the walls and the paddles."""


def play(env, steps, *, seed=0, actions=None):
    """Observations, rewards and ends of a run with random actions."""
    rng = np.random.default_rng(seed)
    seen, rewards, ends = [env.reset(seed=seed)[0].copy()], [], []
    for step in range(steps):
        chosen = rng.integers(env.single_action_space.n, size=env.num_envs) if actions is None else actions[step]
        observations, reward, terminated, truncated, _ = env.step(chosen)
        seen.append(observations.copy())
        rewards.append(reward.copy())
        ends.append(terminated | truncated)
    return np.array(seen), np.array(rewards), np.array(ends)


@pytest.fixture(scope="module")
def pong():
    pytest.importorskip("ale_py")
    return play(AtariEnv(game="pong", full_actions=False, threads=1)(2), 60)[0]


@pytest.fixture(scope="module")
def frames(pong):
    """Stacks (N, 4, 84, 84) of which all frames are of the game."""
    return pong[5:].reshape(-1, 4, 84, 84)


# Atari


def test_atari_has_stacked_grey_frames_and_all_actions(pong):
    env = AtariEnv(game="pong", threads=1)(1)
    assert env.single_observation_space.shape == (4, 84, 84)
    assert env.single_action_space.n == 18
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert pong.shape == (61, 2, 4, 84, 84)
    assert pong.dtype == np.uint8
    assert not pong[0, :, :3].any()
    np.testing.assert_array_equal(pong[1:, :, :3], pong[:-1, :, 1:])
    assert np.bincount(pong[0, 0, 3].ravel()).argmax() == BACKGROUND


def test_the_same_seed_gives_the_same_run_whatever_the_threads(pong):
    again = play(AtariEnv(game="pong", full_actions=False, threads=2)(2), 60)[0]
    np.testing.assert_array_equal(again, pong)
    sticky = AtariEnv(game="pong", full_actions=False, sticky_actions=0.25, threads=1)
    one, two = (play(sticky(1), 60)[0] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert (one[:, 0] != pong[:, 0]).any()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux says of threads")
def test_threads_are_bound_to_cores_and_yield_to_who_called(pong):
    pytest.importorskip("ale_py")
    core = min(os.sched_getaffinity(0))
    tasks, own = Path("/proc/self/task"), os.sched_getscheduler(0)
    before = set(tasks.iterdir())
    env = AtariEnv(game="pong", full_actions=False, threads=1, first_core=core)(2)
    (thread,) = set(tasks.iterdir()) - before
    assert os.sched_getaffinity(int(thread.name)) == {core}
    assert os.sched_getscheduler(int(thread.name)) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == own
    np.testing.assert_array_equal(play(env, 60)[0], pong)
    env.close()


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="another system's threads")
def test_threads_are_bound_where_the_system_refuses_another_scheduler(monkeypatch, pong):
    pytest.importorskip("ale_py")

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    env = AtariEnv(game="pong", full_actions=False, threads=1, first_core=min(os.sched_getaffinity(0)))(2)
    np.testing.assert_array_equal(play(env, 60)[0], pong)
    env.close()


def test_an_episode_ends_with_its_last_observation_and_the_next_step_begins_another():
    pytest.importorskip("ale_py")
    make = AtariEnv(game="breakout", max_frames=40, noop_max=0, threads=1)
    runs = []
    for ignored in (0, 3):  # breakout's fire would start the ball, its right would move the paddle
        actions = np.full((14, 1), 3)
        actions[10] = ignored
        runs.append(play(make(1), 14, actions=actions))
    for seen, rewards, ends in runs:
        assert ends[:, 0].nonzero()[0].tolist() == [9]  # 40 frames are 10 steps
        np.testing.assert_array_equal(seen[10][:, :3], seen[9][:, 1:])
        assert not seen[11][:, :3].any()
        assert rewards[10] == 0
    np.testing.assert_array_equal(runs[0][0], runs[1][0])


def test_a_lost_game_of_pong_ends_with_its_21st_point():
    pytest.importorskip("ale_py")
    env = AtariEnv(game="pong", full_actions=False, frameskip=20, noop_max=0, threads=1)(1)
    env.reset(seed=0)
    total, terminated = 0, [False]
    while not terminated[0]:
        _, rewards, terminated, truncated, _ = env.step([0])
        total += rewards[0]
        assert not truncated[0]
    assert (total, rewards[0]) == (-21, -1)  # the last point is given with the end
    _, rewards, terminated, truncated, info = env.step([0])
    assert (rewards[0], terminated[0], truncated[0]) == (0, False, False)
    assert info["episode_frame_number"][0] == 1


def test_rewards_are_the_games_own():
    pytest.importorskip("ale_py")
    _, rewards, _ = play(AtariEnv(game="riverraid", threads=1)(1), 120, actions=np.full((120, 1), 1))
    assert rewards.dtype == np.int32
    assert rewards.max() >= 30


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"game": "MsPacman"}, "game: there is no 'MsPacman' that ALE can play; did you mean 'ms_pacman'"),
        ({"game": "ALE/Pong-v5"}, "did you mean 'pong'"),
        ({"game": "combat"}, "it has adventure, air_raid"),  # a file without rules, on which ALE ends the process
        ({"noop_max": -1}, "noop_max must be an integer >= 0, got -1"),
        ({"frameskip": 0}, "frameskip must be an integer >= 1, got 0"),
        ({"max_frames": 0}, "max_frames must be an integer >= 1, got 0"),
        ({"threads": -1}, "threads must be an integer >= 0, got -1"),
        ({"first_core": 0}, "first_core: pass threads, too, how many cores from 0 on; it is 0"),
        (
            {"first_core": -1, "threads": 1},
            "first_core must be an integer >= 0, or None for the system's choice, got -1",
        ),
        ({"first_core": 0, "threads": 4096}, "first_core: 4096 threads from core 0 on"),
        ({"sticky_actions": 1.5}, "sticky_actions must be a number >= 0 and <= 1, got 1.5"),
    ],
)
def test_atari_says_what_is_wrong(arguments, said):
    pytest.importorskip("ale_py")
    with pytest.raises(ValueError, match=said):
        AtariEnv(**{"game": "pong", **arguments})(1)


def test_wrong_actions_and_seeds_are_refused_before_ale_sees_them():
    pytest.importorskip("ale_py")
    make = AtariEnv(game="pong", full_actions=False, threads=1)
    with pytest.raises(ValueError, match="num_envs must be an integer >= 1, got 0"):
        make(0)
    env = make(1)
    for seed in (-1, 2**31):
        with pytest.raises(ValueError, match=r"seed must be from 0 to 2\*\*31 - 1"):
            env.reset(seed=seed)
    for actions, said in (([6], "from 0 to 5"), ([-1], "from 0 to 5"), ([0, 0], "1 integers"), ([0.0], "1 integers")):
        with pytest.raises(ValueError, match=said):
            env.step(actions)


def test_what_to_install_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    monkeypatch.setitem(sys.modules, "minatar", None)
    with pytest.raises(ImportError, match=r'pip install "avl-plugins\[rl\]"'):
        AtariEnv(game="pong")
    with pytest.raises(ImportError, match=r'pip install "avl-plugins\[minatar\]"'):
        MinAtarEnv(game="breakout")(1)


def test_factories_are_values():
    pytest.importorskip("ale_py")
    for make in (AtariEnv(game="pong"), PongEnv(variant="zoom"), MinAtarEnv(game="breakout")):
        assert pickle.loads(pickle.dumps(make)) == make
        assert make.name in repr(make)
        assert hash(make) == hash(pickle.loads(pickle.dumps(make)))


# Variants of Pong


@pytest.mark.parametrize(("variant", "axes"), [("h-flip", (3,)), ("v-flip", (2,)), ("hv-flip", (2, 3))])
def test_flips_mirror_the_image_and_undo_themselves(frames, variant, axes):
    flip = PongEnv(variant=variant).transformation()
    once = flip(frames)
    np.testing.assert_array_equal(once, np.flip(frames, axes))
    assert (once != frames).any()
    assert once.flags.c_contiguous
    np.testing.assert_array_equal(flip(once), frames)


def test_noise_is_one_image_in_all_frames_and_environments(frames):
    seen = PongEnv(variant="noisy", noise_std=30.0, noise_seed=3).transformation()(frames)
    noise = noise_image(seed=3, std=30.0)
    expected = frames.astype(int) + noise
    np.testing.assert_array_equal(seen, expected.clip(0, 255))
    field = (..., *FIELD)
    plain = frames[field] == BACKGROUND
    added = (seen.astype(int) - frames)[field]
    assert np.ptp(np.where(plain, added, noise[FIELD]), axis=(0, 1)).max() == 0
    assert noise.std() == pytest.approx(30.0, rel=0.02)
    assert abs(noise.mean()) < 1.5
    assert (noise_image(seed=4, std=30.0) != noise).mean() > 0.9
    np.testing.assert_array_equal(PongEnv(variant="noisy", noise_std=0.0).transformation()(frames), frames)


@pytest.mark.parametrize(("variant", "ground", "ball", "agent"), [("black", 0, 236, 147), ("white", 255, 19, 108)])
def test_black_and_white_change_the_background_and_keep_what_moves(frames, variant, ground, ball, agent):
    seen = PongEnv(variant=variant).transformation()(frames)
    assert set(np.unique(seen[frames == BACKGROUND])) == {ground}
    assert set(np.unique(seen[frames == 236])) == {ball}
    assert set(np.unique(seen[frames == 147])) == {agent}
    field = (..., *FIELD)
    brightest = frames[field].max(axis=(2, 3))
    contrast = np.abs(seen[field].astype(int) - ground).max(axis=(2, 3))
    with_ball = brightest > 160  # most of it is in the field
    assert with_ball.sum() > 20
    assert contrast[with_ball].min() > 160
    assert contrast[brightest == BACKGROUND].max() == 0


def test_zoom_is_the_mean_of_areas_and_keeps_the_ball(frames):
    offset = (4, 17)
    seen = PongEnv(variant="zoom", zoom_offset=offset).transformation()(frames)
    inside = seen[..., 4:67, 17:80]
    edges = np.arange(64) * 4 / 3
    pixels = np.arange(84)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = overlap.clip(0) * 3 / 4
    assert np.abs(inside - weights @ frames @ weights.T).max() <= 0.5 + 1e-9
    outside = np.ones((84, 84), dtype=bool)
    outside[4:67, 17:80] = False
    assert set(np.unique(seen[..., outside])) == {BACKGROUND}
    brightest = frames[(..., *FIELD)].max(axis=(2, 3))
    pixels = (inside[..., 11:57, 9:54] > BACKGROUND + 20).sum(axis=(2, 3))  # the same field
    assert pixels[brightest > 160].min() >= 1
    assert pixels[brightest == BACKGROUND].max() == 0
    np.testing.assert_array_equal(zoom(frames[:1], offset), seen[:1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variants_environment_shows_what_pongs_does_and_plays_the_same(pong, variant):
    make = PongEnv(variant=variant, threads=1)
    env = make(1)
    assert env.observation_space.shape == (1, 4, 84, 84)
    assert env.single_action_space.n == 6
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, _ = env.reset(seed=1)  # environment 1 of seed 0
    rng = np.random.default_rng(0)
    for step in range(8):
        np.testing.assert_array_equal(observations[0], make.transformation()(pong[step, 1]))
        assert observations.dtype == np.uint8
        observations = env.step(rng.integers(6, size=2)[1:])[0]
    assert env.observation_space.contains(observations)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"variant": "grey"}, "variant must be one of pong, noisy, black"),
        ({"noise_std": -1.0}, "noise_std must not be negative"),
        ({"zoom_offset": (0, 22)}, "zoom_offset must be rows and columns from 0 to 21"),
    ],
)
def test_variants_say_what_is_wrong(arguments, said):
    with pytest.raises(ValueError, match=said):
        PongEnv(**arguments)


# MinAtar


@pytest.mark.parametrize(
    ("game", "channels"), [("asterix", 4), ("breakout", 4), ("freeway", 7), ("seaquest", 10), ("space_invaders", 6)]
)
def test_minatar_games_look_alike_and_repeat_themselves(game, channels):
    pytest.importorskip("minatar")
    make = MinAtarEnv(game=game)
    env = make(3)
    assert env.single_observation_space.shape == (10, 10, 10)
    assert env.single_action_space.n == 6
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    seen, rewards, ends = play(env, 120)
    assert seen.shape == (121, 3, 10, 10, 10)
    assert seen.dtype == np.float32
    assert set(np.unique(seen)) == {0.0, 1.0}
    assert not seen[:, :, channels:].any()
    assert all(seen[:, :, channel].any() for channel in range(min(channels, 4)))
    for again in (play(env, 120), play(make(3), 120)):
        for found, expected in zip(again, (seen, rewards, ends), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert (play(make(3), 120, seed=1)[0] != seen).any()
    planes = play(MinAtarEnv(game=game, dtype="bool")(3), 20)[0]
    assert planes.dtype == bool
    np.testing.assert_array_equal(planes, seen[:21].astype(bool))


def test_minatar_begins_again_at_the_step_after_an_end():
    pytest.importorskip("minatar")
    env = MinAtarEnv(game="breakout", sticky_actions=0.0)(2)
    seen, rewards, ends = play(env, 60, actions=np.zeros((60, 2), dtype=int))
    assert ends[:, 0].nonzero()[0][0] == 5  # the ball falls past the paddle, a row a step
    assert seen[6, 0, 1, 9].sum() == 1  # the ball is in the last row
    assert seen[7, 0, 1, 3].sum() == 1  # and at its start
    assert not rewards[1:][ends[:-1]].any()
    left = np.zeros((7, 2), dtype=int)
    left[6] = 1
    np.testing.assert_array_equal(play(env, 7, actions=left)[0][:, 0], seen[:8, 0])  # the action was ignored


def test_minatar_cuts_long_episodes_off():
    pytest.importorskip("minatar")
    env = MinAtarEnv(game="freeway", max_steps=5)(1)
    env.reset(seed=0)
    ends = [tuple(int(end[0]) for end in env.step([0])[2:4]) for _ in range(8)]
    assert ends == [(0, 0)] * 4 + [(0, 1)] + [(0, 0)] * 3
    env = MinAtarEnv(game="freeway", max_steps=2501)(1)
    env.reset(seed=0)
    ends = [tuple(int(end[0]) for end in env.step([0])[2:4]) for _ in range(2501)]
    assert ends[-1] == (1, 0)  # its own end counts
    assert sum(map(sum, ends)) == 1


def test_minatars_sticky_actions_repeat_the_one_before():
    pytest.importorskip("minatar")
    env = MinAtarEnv(game="seaquest", sticky_actions=1.0)(1)
    seen = play(env, 15, actions=np.full((15, 1), 2))[0]
    np.testing.assert_array_equal(seen[:, 0, 0], np.repeat(seen[:1, 0, 0], 16, axis=0))  # it never moves
    env.envs[0].game.last_action = 2
    still = play(env, 3, actions=np.full((3, 1), 2))[0]
    np.testing.assert_array_equal(still, seen[:4])  # and nothing is left over from the episode before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"game": "pong"}, f"game must be one of {', '.join(GAMES)}, got 'pong'"),
        ({"sticky_actions": -0.1}, "sticky_actions must be a probability"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"dtype": "uint8"}, "dtype must be float32 or bool"),
    ],
)
def test_minatar_says_what_is_wrong(arguments, said):
    with pytest.raises(ValueError, match=said):
        MinAtarEnv(**{"game": "breakout", **arguments})


def test_minatar_refuses_wrong_numbers():
    pytest.importorskip("minatar")
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        MinAtarEnv(game="breakout")(0)
    env = MinAtarEnv(game="breakout")(1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions must be from 0 to 5, got 6"):
        env.step([6])


# Scores


def test_scores_are_0_for_random_play_and_1_for_people():
    assert len(ATARI_SCORES) == 25
    for game, (random, human) in ATARI_SCORES.items():
        assert human_normalised(game, random) == 0
        assert human_normalised(game, human) == pytest.approx(1)
    assert human_normalised("pong", 20.0) == 1.0
    assert human_normalised("pong", 20.0, clip=False) == pytest.approx(40.7 / 35.3)
    assert human_normalised("fishing_derby", -197.7) == pytest.approx(-2.0)  # nothing is clipped below
    with pytest.raises(ValueError, match="game must be 'alien', 'asterix'"):
        human_normalised("tetris", 1.0)


def test_scores_of_the_papers_figure_add_up():
    """Kirkpatrick et al. 2017, fig. 4, EWC: ten games' sum of clipped scores is about 7.3, as in fig. 3B."""
    ewc = {
        "crazy_climber": 101_400, "riverraid": 7_380, "jamesbond": 305, "breakout": 56, "gopher": 4_170,
        "kangaroo": 1_610, "kung_fu_master": 21_200, "fishing_derby": 3.6, "enduro": 817, "pong": 16.1,
        "star_gunner": 1_150, "demon_attack": 1_050, "boxing": 90.7, "asterix": 2_280, "road_runner": 34_000,
        "defender": 3_090, "freeway": 28.7, "krull": 8_780, "space_invaders": 556,
    }  # fmt: skip
    assert 10 * np.mean([human_normalised(game, score) for game, score in ewc.items()]) == pytest.approx(7.3, abs=0.05)
