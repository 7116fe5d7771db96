"""What the experiments of reinforcement learning compute: schedules, scores, and one pass over real Atari games."""

import dataclasses
from itertools import pairwise
from types import SimpleNamespace

import numpy
import pytest
import torch

pytest.importorskip("ale_py")
pytest.importorskip("minatar")

from benchmarks.envs.minatar import MinAtarEnv
from benchmarks.ewc import _game_scores as game_scores
from benchmarks.ewc import atari as ewc_atari
from benchmarks.harness.experiment import Context, Run, check_extras, plain_settings
from benchmarks.rl import classic as rl_classic
from benchmarks.training.agents import make_network, random_return
from benchmarks.training.models import dqn_rmsprop


def test_every_round_has_every_game_and_none_comes_twice_in_a_row():
    names = ["a", "b", "c"]
    orders = set()
    for seed in range(50):
        schedule = ewc_atari.make_schedule(names, 4, seed)
        rounds = [schedule[k : k + 3] for k in range(0, 12, 3)]
        assert all(sorted(order) == names for order in rounds)
        assert all(one != other for one, other in pairwise(schedule))
        orders |= {tuple(order) for order in rounds}
    assert len(orders) == 6
    assert ewc_atari.make_schedule(["a"], 2, 0) == ["a", "a"]


def run(arm, returns, seed=0, random=None, printed=None):
    measurements = {"returns": returns, "random": random or dict.fromkeys(returns, 1.0), "contexts": 2, "purity": 1.0}
    measurements["printed"] = printed or {}
    return Run("ewc-atari", "cpu", arm, seed, {"data": "minatar"}, "minatar", {}, "cpu", 1, 60.0, "", "", measurements)


def test_scores_are_relative_to_random_play_and_separate_agents_and_clipped_above():
    separate = run("separate", {"a": [0, 3.0, 5.0], "b": [1, 1.0, 3.0]})
    assert game_scores.references([separate]) == {"a": (1.0, 4.0), "b": (1.0, 2.0)}  # the last two of three visits
    own = run("oracle", {"a": [1.0, 4.0, 100.0], "b": [0.0, 1.5, 2.0]})
    assert game_scores.scores(own, game_scores.references([separate])) == [-0.5, 0.75, 1.0]
    assert game_scores.final_score(own, game_scores.references([separate])) == 0.875
    useless = run("separate", {"a": [0, 0.0, 1.0], "b": [1, 1.0, 3.0]})
    assert game_scores.references([useless]) == {"b": (1.0, 2.0)}
    rows = game_scores.game_rows([separate, own])
    assert next(r.mean for r in rows if (r.arm, r.metric) == ("oracle", "score a game at the end")) == 0.875
    printed = run("oracle", {"pong": [1.0]}, printed={"pong": [-20.7, 14.6]})
    assert game_scores.references([printed]) == {"pong": (-20.7, 14.6)}


def test_what_is_not_installed_is_said_before_anything_runs(monkeypatch):
    check_extras(ewc_atari.EXPERIMENT)
    monkeypatch.setattr("benchmarks.harness.experiment.find_spec", lambda name: None if name == "minatar" else name)
    check_extras(rl_classic.EXPERIMENT)
    with pytest.raises(ValueError, match=r'ewc-atari needs minatar: pip install -e ".\[bench,rl,minatar\]"'):
        check_extras(ewc_atari.EXPERIMENT)


def test_kept_and_forgetting_of_the_classic_stream():
    one = dataclasses.replace(run("ewc", {"a": [100.0, 90.0, 80.0], "b": [0.0, 50.0, 60.0], "c": [0.0, 0.0, 30.0]}))
    assert rl_classic.kept(one) == 0.8
    assert rl_classic.own_return(one) == 60
    assert rl_classic.final_return(one) == pytest.approx(170 / 3)
    assert rl_classic.forgetting(one) == pytest.approx(60 - 170 / 3)
    assert [rl_classic.own_return_on(one, task) for task in "abc"] == [100, 50, 30]
    other = run("finetune", {"a": [100.0, 10.0, 10.0], "b": [0.0, 80.0, 9.0], "c": [0.0, 0.0, 90.0]})
    searched = [run(f"ewc/lambda={v:g}", {"a": [1.0, v], "b": [0.0, 1.0]}, 1000 + k) for v in (1, 5) for k in (0, 1)]
    rows = {(row.arm, row.metric): row for row in rl_classic.rows([one, other, *searched])}
    assert rows["ewc - finetune", "return after own visit, b"].mean == -30
    assert rows["ewc - finetune", "return after own visit, c"].mean == -60
    assert rows["ewc", "return after own visit, c"].mean == 30
    assert rows["ewc", "first task kept"].note == "lambda 5, searched: 1, 5 (edge of the search)"
    jobs = rl_classic.search(rl_classic.EXPERIMENT.scales["cpu"])
    assert {seed for _, seed in jobs} == {1000, 1001}
    assert len(jobs) == 2 * len(rl_classic.EXPERIMENT.scales["cpu"].ewc_lambdas)


def test_random_play_is_the_same_for_a_seed_and_what_it_should_be():
    from avl_plugins.rl import rl_benchmark
    from benchmarks.envs.cartpole import CartPole

    (task,) = rl_benchmark({"cartpole": CartPole()}, steps=1).test_stream
    found = random_return(task, 200, 3)
    assert found == random_return(task, 200, 3)
    assert 20 < found < 25  # gymnasium's CartPole under random play: about 22


def test_a_variant_of_cartpole_is_the_same_game_in_other_words():
    from benchmarks.envs.cartpole import SCALE, CartPole

    usual, other = CartPole()(3), CartPole(swapped=True, order=(2, 0, 3, 1))(3)
    first, _ = usual.reset(seed=4)
    second, _ = other.reset(seed=4)
    for step in range(30):
        assert (second == first[:, [2, 0, 3, 1]]).all()
        actions = torch.tensor([step % 2, step % 3 % 2, 1]).numpy()
        first, rewards, ends, *_ = usual.step(actions)
        second, others, ends_too, *_ = other.step(1 - actions)
        assert (rewards == others).all()
        assert (ends == ends_too).all()
    assert SCALE.shape == (4,)
    assert CartPole(gravity=15.0, length=1.0)(1).unwrapped.length == 1.0


def test_rmsprop_never_steps_by_more_than_the_largest_rate():
    for lr, max_lr, total in ((2.5e-4, 2.5e-3, 1e-4), (2.5e-4, 2.5e-2, 1e-4), (2.5e-4, 2.5e-3, 100.0)):
        layer = torch.nn.Linear(1, 1, bias=False).double()
        before = layer.weight.item()
        optimizer = dqn_rmsprop(layer, lr=lr, max_lr=max_lr, batch_size=32)
        layer.weight.grad = torch.full((1, 1), total / 32, dtype=torch.float64)
        optimizer.step()
        moved = before - layer.weight.item()
        assert moved == pytest.approx(lr * total / (0.05**0.5 * total + lr / max_lr), rel=1e-6), "as with the sum"
        assert moved < max_lr * total
        assert total > 1 or moved > 0.98 * max_lr * total
    assert dqn_rmsprop(layer, lr=2.5e-4).defaults["eps"] == pytest.approx(0.1 / 32)


def test_there_is_a_network_for_each_arm():
    body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
    assert make_network("single", body, 4, 3).adapter is None
    with pytest.raises(ValueError, match="arm 'x': expected one of"):
        make_network("x", body, 4, 3)


def test_an_agent_on_ale_is_the_same_with_its_frames_kept_once(tmp_path):
    from rl_cases import quiet

    from avl_plugins import load_checkpoint, save_checkpoint
    from avl_plugins.rl import DQN, AtariEnv, rl_benchmark

    visits = rl_benchmark({"pong": AtariEnv(game="pong", max_frames=100, threads=1)}, steps=80, schedule=["pong"] * 2)
    found = []
    for stacked in (False, True):

        def agent(stacked=stacked):
            torch.manual_seed(0)
            layers = torch.nn.Conv2d(4, 4, 8, stride=8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(400, 18)
            model = torch.nn.Sequential(*layers)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            sizes = {"num_envs": 2, "train_every": 2, "buffer_size": 60, "learning_starts": 8, "batch_size": 8}
            return DQN(model=model, optimizer=optimizer, stacked=stacked, **sizes, seed=0, evaluator=quiet())

        first, second = agent(), agent()
        first.train(visits.train_stream[0])
        save_checkpoint(first, tmp_path / "file")
        load_checkpoint(second, tmp_path / "file")
        second.train(visits.train_stream[1])
        found.append(torch.cat([p.detach().flatten() for p in second.model.parameters()]))
    assert torch.equal(*found)


@pytest.fixture(scope="module")
def minatar_frames():
    """Observations (steps, planes, 10, 10) of two visits to each of three games, random play."""
    found = {}
    for number, game in enumerate(ewc_atari.Settings().games):
        for visit in range(2):
            env = MinAtarEnv(game=game, dtype="bool")(1)
            seen = [env.reset(seed=10 * visit + number)[0]]
            rng = numpy.random.default_rng(10 * visit + number)
            seen += [env.step(rng.integers(6, size=1))[0].copy() for _ in range(2999)]
            found[game, visit] = torch.from_numpy(numpy.stack(seen))
    return found


@pytest.mark.parametrize("first", [["space_invaders", "breakout"], ["breakout", "space_invaders"]])
def test_three_games_of_minatar_are_told_apart_in_both_orders(minatar_frames, first):
    settings = ewc_atari.EXPERIMENT.scales["cpu"]
    plugin = ewc_atari.make_recognition(settings)
    requested = []

    class Strategy:
        is_training = True

        def request_label(self, label):
            if self.step > 2 * settings.observe_every * settings.window:  # a window has frames of the game before
                requested.append((self.game, label))

    strategy = Strategy()
    for visit in range(2):
        for number, strategy.game in enumerate([*first, settings.games[2]]):
            strategy.experience = SimpleNamespace(task_label=number)
            for step, frames in enumerate(minatar_frames[strategy.game, visit]):
                strategy.step = step
                plugin.observed(strategy, frames)
    games = {label: {game for game, other in requested if other == label} for _, label in requested}
    assert all(len(own) == 1 for own in games.values()), "no label is of two games"
    assert {game for own in games.values() for game in own} == set(settings.games)
    assert 3 <= plugin.recognition.contexts <= 5
    assert sum(one != other for (_, one), (_, other) in pairwise(requested)) <= 6
    assert len(requested) > 0.8 * 6 * 3000 / settings.observe_every / settings.window
    assert plugin.purity > 0.95
    assert settings.protect_after == 0.8 * settings.steps
    assert ewc_atari.EXPERIMENT.scales["paper"].window == 4


@pytest.mark.parametrize("arm", ["inferred", "oracle", "none", "separate"])
def test_the_papers_agent_runs_on_ale(arm, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from avl_plugins.rl import human_normalised

    settings = dataclasses.replace(
        ewc_atari.EXPERIMENT.scales["paper"],
        games=("pong", "breakout"),
        drawn=2,
        visits=1,
        steps=16,
        epoch_steps=16,
        num_envs=2,
        buffer_size=16,
        learning_starts=8,
        protect_after=8,
        fisher_states=32,
        observe_every=1,
        agreeing=1,
        least_held=4,
        eval_episodes=1,
        max_steps=8,
    )
    found = ewc_atari.measure(settings, arm, 0, Context(logdir=tmp_path))
    assert found["returns"].keys() == {"pong", "breakout"}
    assert all(len(values) == 2 for values in found["returns"].values())
    logged = EventAccumulator(str(tmp_path))
    logged.Reload()
    last = {tag.split("/")[0]: logged.Scalars(tag)[-1].value for tag in logged.Tags()["scalars"] if "eval" in tag}
    score = sum(human_normalised(game, values[-1]) for game, values in found["returns"].items())
    assert last["TotalScore"] == pytest.approx(score, abs=1e-5)
    assert found["contexts"] == (2 if arm == "inferred" else None)
    assert plain_settings(settings)["data"] == "ale"
