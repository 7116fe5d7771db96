"""Networks that do not fit the task: refused by its name at the first use, before the work."""

import pytest
import torch
from rl_cases import Counting, actor_critic, dqn, make, mlp, two_tasks
from torch import nn

from avl_plugins.rl import TaskGains, rl_benchmark


@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_an_actor_critic_needs_the_actions_and_the_value(outputs):
    strategy = actor_critic(mlp(outputs))
    said = rf"model must have outputs \(4, 3\) .* of task 'a', one for each action and the value, got \(4, {outputs}\)"
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=said):
        strategy.train(two_tasks().train_stream[0])
    assert strategy.steps == 0
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="model must have outputs"):
        strategy.eval(two_tasks().test_stream)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_dqn_needs_an_output_for_each_action_from_the_first_step_on(outputs):
    strategy = dqn(mlp(outputs), learning_starts=40, epsilon_wait=1000)  # it would act at random for long
    with pytest.raises(ValueError, match=rf"for 2 states of task 'a', one for each action, got \(2, {outputs}\)"):
        strategy.train(two_tasks(steps=96).train_stream[0])
    assert strategy.steps == 0


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.policy, self.value = nn.Linear(3, 2), nn.Linear(3, 1)

    def forward(self, x):
        return self.policy(x), self.value(x)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Pair(), "model must have outputs .* got a tuple"),
        (nn.Sequential(nn.Linear(3, 3), nn.Flatten(0)), r"got \((12|9),\)"),
        (
            mlp(3, inputs=5),
            r"model must take the observations of task 'a', \([34], 3\) torch.float32, got RuntimeError",
        ),
        (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)), "model must take the observations of task 'a'"),
    ],
)
def test_other_networks_are_refused_with_the_tasks_name(model, said):
    for use in (lambda s: s.train(two_tasks().train_stream[0]), lambda s: s.eval(two_tasks().test_stream)):
        strategy = actor_critic(model)
        with pytest.raises(ValueError, match=said):
            use(strategy)
        assert strategy.steps == 0


def test_a_task_with_more_actions_is_refused_as_it_begins():
    tasks = {"two": make(Counting), "three": make(Counting, actions=3)}
    benchmark = rl_benchmark(tasks, steps=24)
    strategy = actor_critic(TaskGains(mlp(3)))
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(ValueError, match=r"model must have outputs \(4, 4\) for 4 states of task 'three'"):
        strategy.train(benchmark.train_stream[1])
    assert strategy.steps == 24


def test_the_first_look_at_the_network_leaves_no_trace():
    modes = []

    class Seeing(nn.Sequential):
        def forward(self, x):
            modes.append((self.training, torch.is_grad_enabled()))
            torch.rand(())
            x.mul_(1)
            return super().forward(x)

    model = Seeing(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    strategy = actor_critic(model)
    strategy.experience = two_tasks().train_stream[0]
    observations, state = torch.randn(4, 3), torch.get_rng_state()
    strategy.try_network(observations)
    assert modes == [(False, False)]
    assert [module.training for module in model] == [True, False, True, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
