"""What constructors refuse: kinds, ranges, numbers that are none, positional arguments."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from rl_cases import Counting, actor_critic, dqn, make, mlp, quiet, recognition, two_tasks
from torch import nn

from avl_plugins.metrics import return_metrics, rollout_metrics
from avl_plugins.metrics.rl import normalised_score
from avl_plugins.rl import (
    DQN,
    ActorCritic,
    AtariEnv,
    TaskGains,
    TaskRecognition,
    TaskRecognitionPlugin,
    human_normalised,
    rl_benchmark,
)
from avl_plugins.rl.environments import Environments
from avl_plugins.rl.frame_stacks import FrameStacks
from avl_plugins.rl.recognition import observation_levels
from avl_plugins.rl.replay_buffer import ReplayBuffer
from avl_plugins.rl.states import RecentStates
from avl_plugins.rl.stream import RLExperience

NOT_COUNTS = (1.5, 2.0, True, math.nan, math.inf, "2", -1)
NOT_NUMBERS = (math.nan, math.inf, -math.inf, True, "1", [1.0], 10**400)
NOT_FLAGS = (1, 0, "yes", None)


def atari(**kwargs):
    pytest.importorskip("ale_py")
    return AtariEnv(**({"game": "pong"} | kwargs))


def plugin(**kwargs):
    return TaskRecognitionPlugin(**({"recognition": TaskRecognition(shape=(2,))} | kwargs))


def model_of_tasks(**kwargs):
    return TaskRecognition(**({"shape": (2,)} | kwargs))


def benchmark(**kwargs):
    return rl_benchmark(**({"tasks": {"a": make(Counting), "b": make(Counting)}, "steps": 8} | kwargs))


def experience(**kwargs):
    like = two_tasks().train_stream[0]
    given = {"name": "a", "make_env": make(Counting), "task_label": 0, "steps": 8}
    given |= {"observation_space": like.observation_space, "action_space": like.action_space}
    return RLExperience(**(given | kwargs))


CASES = [
    # What makes it, the argument, what it refuses.
    *((agent, name, (*NOT_COUNTS, 0)) for agent in (actor_critic, dqn) for name in ("num_envs", "eval_episodes")),
    *((agent, name, (*NOT_COUNTS, 0)) for agent in (actor_critic, dqn) for name in ("eval_envs", "eval_max_steps")),
    *((agent, name, (*NOT_COUNTS, 0)) for agent in (actor_critic, dqn) for name in ("fisher_states", "acting_threads")),
    *((agent, "epoch_steps", (*NOT_COUNTS, 0, 1)) for agent in (actor_critic, dqn)),
    *((agent, "seed", (*NOT_COUNTS, 2**63)) for agent in (actor_critic, dqn)),
    *((agent, "gamma", (*NOT_NUMBERS, -0.1, 1.1, None)) for agent in (actor_critic, dqn)),
    *(
        (agent, name, (*NOT_NUMBERS, 0, -1))
        for agent in (actor_critic, dqn)
        for name in ("reward_clip", "max_grad_norm")
    ),
    *((agent, "channels_last", NOT_FLAGS) for agent in (actor_critic, dqn)),
    *((agent, "plugins", (5, plugin())) for agent in (actor_critic, dqn)),
    *((agent, "evaluator", (5, "quiet")) for agent in (actor_critic, dqn)),
    *((agent, "eval_every", (1.5, True, math.nan, "1", -2)) for agent in (actor_critic, dqn)),
    *((agent, "peval_mode", ("epochs", 1, None)) for agent in (actor_critic, dqn)),
    *((agent, name, (1,)) for agent in (actor_critic, dqn) for name in ("train_mb_size", "train_epochs")),
    *((agent, name, (1,)) for agent in (actor_critic, dqn) for name in ("eval_mb_size", "criterion")),
    *((actor_critic, name, (*NOT_COUNTS, 0, None)) for name in ("rollout", "minibatches")),
    (actor_critic, "minibatches", (13,)),
    (actor_critic, "gae_lambda", (*NOT_NUMBERS, -0.1, 1.1, None)),
    *((actor_critic, name, (*NOT_NUMBERS, -0.1, None)) for name in ("value_weight", "entropy_weight")),
    (actor_critic, "clip_ratio", (*NOT_NUMBERS, 0, 0.0, 1, 1.0)),
    *((actor_critic, name, NOT_FLAGS) for name in ("normalise_advantages", "eval_greedy")),
    *((dqn, name, (*NOT_COUNTS, 0, None)) for name in ("buffer_size", "batch_size", "train_every", "target_every")),
    *((dqn, name, (*NOT_COUNTS, None)) for name in ("epsilon_wait", "epsilon_steps", "learning_starts")),
    (dqn, "train_every", (3,)),
    (dqn, "buffer_size", (3,)),
    (dqn, "learning_starts", (0, 3, 41)),
    (dqn, "epsilon_steps", (0,)),
    (dqn, "epsilon_end", (*NOT_NUMBERS, -0.1, 1.1, None)),
    (dqn, "stacked", NOT_FLAGS),
    (atari, "game", (5, None, "chess_of_kings")),
    *((atari, name, NOT_FLAGS) for name in ("full_actions", "fire_reset")),
    *((atari, name, (*NOT_COUNTS, None)) for name in ("noop_max", "threads")),
    *((atari, name, (*NOT_COUNTS, 0, None)) for name in ("frameskip", "max_frames")),
    (atari, "sticky_actions", (*NOT_NUMBERS, -0.1, 1.1, None)),
    (atari, "first_core", (*NOT_COUNTS, 0)),  # 0: without threads
    (benchmark, "steps", (*NOT_COUNTS, 0, None, {"a": 8}, {"a": 8, "b": 8, "c": 8})),
    (benchmark, "tasks", ({}, [make(Counting)], None, {"a": 5}, {"a": Counting(1)})),
    (benchmark, "schedule", ("ab", 5, [], ["c"], ["a", 1])),
    (experience, "name", (5, None)),
    (experience, "make_env", (5, None)),
    *((experience, name, NOT_COUNTS) for name in ("task_label", "steps")),
    (model_of_tasks, "shape", (5, (), None)),
    (model_of_tasks, "levels", (*NOT_COUNTS, 1, None)),
    *((model_of_tasks, name, (*NOT_COUNTS, 0)) for name in ("window", "max_contexts")),
    (model_of_tasks, "concentration", (*NOT_NUMBERS, 0.0, 1e10, None)),
    (plugin, "recognition", (None, 5)),
    *((plugin, name, (*NOT_COUNTS, 0, None)) for name in ("every", "agreeing")),
    (plugin, "least_held", (*NOT_COUNTS, None)),
    (plugin, "levels", (5, "levels")),
    (lambda **kwargs: ReplayBuffer(**({"capacity": 8, "number": 2} | kwargs)), "capacity", (*NOT_COUNTS, 3)),
    (lambda **kwargs: ReplayBuffer(**({"capacity": 8, "number": 2} | kwargs)), "number", (*NOT_COUNTS, 0)),
    (lambda **kwargs: ReplayBuffer(8, 2, **kwargs), "stacked", NOT_FLAGS),
    (FrameStacks, "rows", (*NOT_COUNTS, 0)),
    (lambda **kwargs: RecentStates(**({"capacity": 2} | kwargs)), "capacity", (*NOT_COUNTS, 0)),
    (lambda **kwargs: RecentStates(2, **kwargs), "tasks", (*NOT_COUNTS, 0)),
    (lambda **kwargs: Environments(two_tasks().train_stream[0], **kwargs), "number", (*NOT_COUNTS, 0)),
    (TaskGains, "layers", (nn.Linear(2, 2), [nn.Linear(2, 2)], None, nn.Sequential(), nn.Sequential(nn.ReLU()))),
    *((return_metrics, name, NOT_FLAGS) for name in ("returns", "lengths", "speed")),
    (return_metrics, "references", (5, [("a", (0, 1))])),
    *((rollout_metrics, name, (*NOT_COUNTS, 0)) for name in ("frames", "every", "scale")),
    (lambda **kwargs: human_normalised("pong", **kwargs), "score", NOT_NUMBERS),
    (lambda **kwargs: human_normalised(score=1.0, **kwargs), "game", ("tetris", 5, None)),
    (lambda **kwargs: normalised_score(1.0, **kwargs), "reference", (5, (1, 0), (1, 1), (0, math.inf), (0, 1, 2))),
    (lambda **kwargs: observation_levels(torch.zeros(1, 2, 2, dtype=torch.uint8), **kwargs), "levels", NOT_COUNTS),
    (lambda **kwargs: observation_levels(torch.zeros(1, 2, 2, dtype=torch.uint8), **kwargs), "downscale", NOT_COUNTS),
    (lambda **kwargs: actor_critic().request_label(**kwargs), "label", NOT_COUNTS),
]


@pytest.mark.parametrize(
    ("making", "name", "value"),
    [pytest.param(making, name, value) for making, name, values in CASES for value in values],
)
def test_an_argument_is_refused_by_its_name(making, name, value):
    with pytest.raises((TypeError, ValueError), match=rf"(^|\b(in|of) ){name}\b"):
        making(**{name: value})


def test_numbers_of_numpy_are_taken_and_kept_as_pythons(tmp_path):
    own = {"num_envs": np.int64(4), "seed": np.int32(3), "gamma": np.float32(0.5), "epoch_steps": np.int64(24)}
    runs = []
    for given in (own, {"num_envs": 4, "seed": 3, "gamma": 0.5, "epoch_steps": 24}):
        torch.manual_seed(0)
        strategy = actor_critic(**given)
        strategy.train(two_tasks(steps=np.int64(48)).train_stream[0])
        runs.append(strategy)
    assert all(torch.equal(a, b) for a, b in zip(*(s.model.state_dict().values() for s in runs), strict=True))
    state = runs[0].state_dict()
    assert {type(state[name]) for name in ("steps", "seed", "held", "label")} == {int}
    assert state["steps"] == 48


@pytest.mark.parametrize("kind", [ActorCritic, DQN])
def test_positional_arguments_are_refused(kind):
    model = mlp(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for args in ((model,), (model, optimizer), (model, optimizer, nn.CrossEntropyLoss())):
        with pytest.raises(TypeError, match=f"^{kind.__name__} takes keyword arguments only"):
            kind(*args)

    class Own(kind):
        pass

    with pytest.raises(TypeError, match="Own takes keyword arguments only"):
        Own(model, optimizer=optimizer)
    names = list(inspect.signature(kind).parameters)
    assert names[:2] == ["model", "optimizer"]
    assert names == list(inspect.signature(Own).parameters)


@pytest.mark.parametrize("kind", [AtariEnv, TaskRecognition, RLExperience])
def test_other_constructors_refuse_them_too(kind):
    with pytest.raises(TypeError, match=f"^{kind.__name__} takes keyword arguments only"):
        kind("pong")


def test_a_strategy_with_positional_arguments_of_its_own_keeps_them():
    class Own(ActorCritic):
        def __init__(self, width, **kwargs):
            model = mlp(width)
            super().__init__(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **kwargs)

    with pytest.warns(UserWarning, match="positional"):  # Avalanche's own
        assert Own(3, evaluator=quiet()).model[2].out_features == 3


def test_refused_layers_keep_their_biases():
    linear = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="layer 1 is a BatchNorm1d"):
        TaskGains(nn.Sequential(linear, nn.BatchNorm1d(2)))
    assert linear.bias is not None


def test_a_layer_that_comes_twice_is_applied_twice():
    relu, linear = nn.ReLU(), nn.Linear(3, 3)
    network = TaskGains(nn.Sequential(linear, relu, nn.Linear(3, 2), relu, nn.Linear(2, 3), linear))
    network.add_task(0)
    x = torch.randn(5, 3)
    first, second, third = (network.layers[k].weight for k in (0, 2, 4))
    plain = (((x @ first.T).relu() @ second.T).relu() @ third.T) @ first.T
    torch.testing.assert_close(network(x, 0), plain)
    assert sorted(network.gains["0"]) == ["0", "2", "4", "5"]


@pytest.mark.parametrize("shared", ["plugin", "recognition"])
def test_a_recognition_serves_one_strategy(shared):
    first = recognition()
    second = first if shared == "plugin" else TaskRecognitionPlugin(first.recognition, levels=first.levels)
    one, other = dqn(plugins=[first]), dqn(plugins=[second])
    visit = two_tasks(steps=24).train_stream[0]
    one.train(visit)
    before = first.state_dict()
    for use in (lambda: other.train(visit), lambda: other.eval(two_tasks().test_stream)):
        with pytest.raises(ValueError, match=f"{shared}: another strategy has trained it"):
            use()
    assert other.steps == 0
    after = first.state_dict()
    assert torch.equal(after["recognition"].pop("counts"), before["recognition"].pop("counts"))
    assert after["steps"] == before["steps"] == 12
    one.train(visit)
    dqn(plugins=[copy.deepcopy(second)]).train(visit)
    del one
    second = second if shared == "plugin" else TaskRecognitionPlugin(first.recognition, levels=first.levels)
    other.plugins[0] = second  # what it has met stays in it when its strategy is gone
    with pytest.raises(ValueError, match=f"{shared}: another strategy has trained it"):
        other.train(visit)
