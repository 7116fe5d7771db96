"""Runs of agents: evaluations, what is logged, resuming, failures and bad use."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from avalanche.logging import TensorboardLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from PIL.Image import Image
from rl_cases import Counting, Failing, Requests, actor_critic, dqn, make, mlp, played, quiet, recognition, two_tasks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from avl_plugins import (
    CheckpointEvery,
    EWCPlugin,
    ProgressiveNetwork,
    ProgressivePlugin,
    load_checkpoint,
    save_checkpoint,
)
from avl_plugins.metrics import return_metrics, rollout_metrics
from avl_plugins.rl import (
    EnvironmentFailedError,
    TaskGains,
    policy,
    rl_benchmark,
)


def test_an_evaluation_plays_as_many_episodes_as_asked_the_same_ones_each_time():
    benchmark = two_tasks()
    strategy = actor_critic(eval_episodes=5, eval_envs=3)
    state = torch.get_rng_state()
    one = played(strategy, benchmark)
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(e.env for e in one) == [0, 0, 1, 1, 2]
    assert one == played(strategy, benchmark)
    assert strategy.steps == 0


def test_an_evaluation_in_training_changes_nothing_in_it():
    models = []
    for eval_every in (-1, 1):
        torch.manual_seed(0)
        strategy = actor_critic(eval_every=eval_every)
        strategy.train(two_tasks().train_stream[0], eval_streams=[two_tasks().test_stream])
        models.append(strategy.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(models[0].values(), models[1].values(), strict=True))


def test_returns_are_logged_over_agent_steps():
    metrics = return_metrics(references={"a": (0.0, 2.0), "b": (0.0, 100.0)})
    strategy = actor_critic(evaluator=quiet(*metrics[3:]), epoch_steps=24)
    strategy.train(two_tasks().train_stream[0])
    found = strategy.eval(two_tasks().test_stream)
    name = "Return/train_phase/train_stream/Task000"
    steps, values = strategy.evaluator.get_all_metrics()[name]
    assert steps == [24, 48]
    assert values[-1] == sum(e.total for e in strategy.episodes) / len(strategy.episodes)
    a, b = (found[f"Return/eval_phase/test_stream/Task00{k}/Exp00{k}"] for k in (0, 1))
    length = found["EpisodeLength/eval_phase/test_stream/Task000/Exp000"]
    assert length == (3 + 4 + 5) / 3
    assert found["NormalisedReturn/eval_phase/test_stream/Task000/Exp000"] == min(1, a / 2)
    assert found["TotalScore/eval_phase/test_stream"] == pytest.approx(min(1, a / 2) + b / 100)
    with pytest.raises(ValueError, match="references: there is none for 'b'; those given are"):
        actor_critic(evaluator=quiet(*return_metrics(references={"a": (0, 1)})[3:])).eval(two_tasks().test_stream)
    with pytest.raises(ValueError, match=r"references\['a'\] must be \(low, high\) with high > low"):
        return_metrics(references={"a": (1.0, 1.0)})


def test_a_picture_of_the_rollout_shows_frames_in_order():
    (metric,) = rollout_metrics(frames=9, every=2, scale=2)

    class Seen:
        pass

    for step in range(40):
        Seen.mb_x = torch.full((2, 4, 3, 5), step / 100)
        metric.after_eval_iteration(Seen)
    picture = metric.result()
    assert picture.shape == (1, 2 * 3 * 2, 8 * 5 * 2)
    assert picture[0, 0, ::10].tolist() == pytest.approx([k / 50 for k in range(8)])
    assert picture[0, 6, 0].item() == pytest.approx(16 / 100)
    assert picture[0, 6, 10:].max() == 0


def test_the_picture_is_logged_as_an_image(tmp_path):
    class Seeing(Counting):
        def __init__(self, num_envs):
            super().__init__(num_envs)
            self.single_observation_space = gym.spaces.Box(0, 255, (2, 3, 5), np.uint8)

        def seen(self):
            return (np.full((2, 3, 5), 100) + self.at[:, None, None, None]).astype(np.uint8)

    logger = TensorboardLogger(str(tmp_path))
    evaluator = EvaluationPlugin(*rollout_metrics(frames=2, every=1), loggers=[logger])
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 3))
    actor_critic(model, evaluator=evaluator).eval(rl_benchmark({"a": make(Seeing)}, steps=8).test_stream)
    logger.writer.flush()
    image = evaluator.get_last_metrics()["Rollout/eval_phase/test_stream/Task000/Exp000"]
    assert isinstance(image, Image)
    assert np.asarray(image).tolist() == [[100] * 5 + [101] * 5] * 3
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    (shown,) = events.Images("Rollout/eval_phase/test_stream/Task000/Exp000")
    assert (shown.width, shown.height) == (10, 3)


STRATEGIES = {
    "actor-critic": lambda: actor_critic(plugins=[EWCPlugin(ewc_lambda=1.0, likelihood=policy)]),
    "mini-batches": lambda: actor_critic(minibatches=4, normalise_advantages=True, clip_ratio=0.1),
    "gains": lambda: actor_critic(
        TaskGains(mlp(3)), plugins=[EWCPlugin(ewc_lambda=1.0, likelihood=policy, revisits="replace")]
    ),
    "progressive": lambda: actor_critic(
        ProgressiveNetwork(nn.Sequential(nn.Linear(3, 8), nn.Tanh())), plugins=[ProgressivePlugin()]
    ),
    "recognition": lambda: dqn(
        TaskGains(mlp(2)),
        plugins=[recognition(), EWCPlugin(ewc_lambda=1.0, likelihood="gaussian", revisits="replace")],
        learning_starts=4,
    ),
    "dqn": lambda: dqn(TaskGains(mlp(2)), plugins=[EWCPlugin(ewc_lambda=1.0, likelihood="categorical")]),
    # Labels that are requested in an epoch's last rollout, and taken up in the next epoch's first.
    "requested": lambda: actor_critic(
        TaskGains(mlp(3)),
        plugins=[Requests({12: 1, 84: 0}), EWCPlugin(ewc_lambda=1.0, likelihood=policy, revisits="replace")],
    ),
    "requested of dqn": lambda: dqn(TaskGains(mlp(2)), plugins=[Requests({24: 1, 96: 0})]),
}


class Stop(Exception):
    pass


class StopAt:
    """Stops at the n-th safe point."""

    def __init__(self, number):
        self.left = number

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def safe_point(self, strategy):
        self.left -= 1
        if not self.left:
            raise Stop


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_resumed_run_equals_one_that_was_not_interrupted(name, stop, tmp_path):
    def strategy(number):
        torch.manual_seed(0)
        made = STRATEGIES[name]()
        made.plugins[:0] = [CheckpointEvery(tmp_path / "file"), StopAt(number)]
        return made

    def finish(made, start=0):
        benchmark = two_tasks(steps=72)
        for visit in benchmark.train_stream[start:]:
            made.train(visit)
            made.eval(benchmark.test_stream[:1])
            save_checkpoint(made, tmp_path / "file")

    whole = strategy(1000)
    finish(whole)
    interrupted = strategy(stop)
    with pytest.raises(Stop):
        finish(interrupted)
    torch.manual_seed(99)
    resumed = strategy(1000)
    torch.randn(7)
    finish(resumed, load_checkpoint(resumed, tmp_path / "file"))
    one, other = whole.model.state_dict(), resumed.model.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one if k != "_extra_state")
    assert whole.steps == resumed.steps == 144
    assert whole.steps_of == resumed.steps_of
    if name.startswith("requested"):
        assert whole.steps_of == {0: 24 + 48, 1: 48 + 24}
    mine, theirs = whole.evaluator.get_all_metrics(), resumed.evaluator.get_all_metrics()
    assert mine == theirs
    assert any("eval_phase" in key for key in mine)


@pytest.mark.parametrize("make_strategy", [actor_critic, dqn])
def test_after_a_failed_environment_nothing_is_lost(make_strategy, tmp_path):
    tasks = {"good": make(Counting), "bad": make(Failing, at=8, length=9)}
    benchmark = rl_benchmark(tasks, steps=48)
    strategy = make_strategy()
    strategy.train(benchmark.train_stream[0])
    updates = strategy.updates
    with pytest.raises(EnvironmentFailedError, match="bad: the environment has failed in step after 7 steps"):
        strategy.train(benchmark.train_stream[1])
    assert strategy.updates > updates
    save_checkpoint(strategy, tmp_path / "file")
    fresh = make_strategy()
    assert load_checkpoint(fresh, tmp_path / "file") == 1
    assert fresh.updates == strategy.updates
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream[:1])
    with pytest.raises(EnvironmentFailedError, match="bad: the environment has failed in step"):
        strategy.eval(benchmark.test_stream)
    save_checkpoint(strategy, tmp_path / "file")
    strategy.train(benchmark.train_stream[0])


def test_checkpoints_after_iterations_are_refused():
    strategy = actor_critic(plugins=[CheckpointEvery("file", epochs=None, iterations=1)])
    with pytest.raises(ValueError, match="CheckpointEvery: iterations: reinforcement learning is resumed"):
        strategy.train(two_tasks().train_stream[0])


def test_data_are_no_environments(digits_split):
    for strategy in (actor_critic(), dqn()):
        with pytest.raises(TypeError, match="make the benchmark with rl_benchmark"):
            strategy.train(digits_split.train_stream[0])
        with pytest.raises(TypeError, match="make the benchmark with rl_benchmark"):
            strategy.eval(digits_split.test_stream)
        strategy.train(two_tasks().train_stream[0])


@pytest.mark.parametrize("use", ["train", "eval"])
def test_environments_are_no_data(use):
    model = mlp(2)
    strategy = Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), evaluator=quiet())
    with pytest.raises(
        AttributeError, match="task 'a' has environments and no data set: ActorCritic and DQN act in them"
    ):
        getattr(strategy, use)(two_tasks().train_stream[0])
    assert not hasattr(two_tasks().train_stream[0], "dataset")


def test_a_loss_that_is_not_finite_is_an_error():
    strategy = actor_critic()
    with torch.no_grad():
        strategy.model[2].bias[2] = math.nan
    with pytest.raises(ValueError, match="a: the loss is nan at update 0: lower the learning rate"):
        strategy.train(two_tasks().train_stream[0])
