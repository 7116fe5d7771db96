"""What ActorCritic and DQN compute: advantages, losses, targets, epsilon, buffers."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from rl_cases import Bandit, Counting, Failing, Recorder, actor_critic, dqn, make, mlp, played, two_tasks
from torch import nn

from avl_plugins.rl import (
    DQN,
    ActorCritic,
    EnvironmentFailedError,
    TaskGains,
    rl_benchmark,
)
from avl_plugins.rl.actor_critic import advantages
from avl_plugins.rl.environments import Environments


def slow_advantages(rewards, values, terminated, truncated, gamma, gae_lambda):
    """The definition: a sum over what follows, for each step by itself."""
    steps, envs = rewards.shape
    found = torch.zeros(steps, envs, dtype=rewards.dtype)
    for env in range(envs):
        for t in range(steps):
            for k in range(steps - t):
                s = t + k
                bootstrap = 0.0 if terminated[s, env] else gamma * values[s + 1, env]
                delta = rewards[s, env] + bootstrap - values[s, env]
                found[t, env] += (gamma * gae_lambda) ** k * delta
                if terminated[s, env] or truncated[s, env]:
                    break
    return found


@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
def test_advantages_are_their_definition(gae_lambda):
    rewards, values = torch.randn(7, 5, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    ends = torch.rand(7, 5)
    terminated, truncated = ends < 0.2, ends > 0.8
    found = advantages(rewards, values, terminated, truncated, gamma=0.9, gae_lambda=gae_lambda)
    torch.testing.assert_close(found, slow_advantages(rewards, values, terminated, truncated, 0.9, gae_lambda))


def test_with_lambda_1_the_return_is_the_discounted_sum_of_rewards():
    rewards, values = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[5.0], [6.0], [7.0], [8.0]])
    no = torch.zeros(3, 1, dtype=torch.bool)
    returns = advantages(rewards, values, no, no, gamma=0.5) + values[:-1]
    assert returns.flatten().tolist() == [1 + 1 + 0.75 + 1, 2 + 1.5 + 2, 3 + 4]


def test_the_loss_is_that_of_the_paper_over_valid_states():
    recorder = Recorder()
    strategy = actor_critic(plugins=[recorder], value_weight=0.25, entropy_weight=0.1, gamma=0.9, rollout=5)
    strategy.train(two_tasks().train_stream[0])
    assert len(recorder.batches) == 2 * 2  # epochs of 6 steps of 4 environments: rollouts of 5 and 1
    for (x, actions, returns, advantage, weights, _, labels), outputs, loss in recorder.batches:
        total, count = 0.0, 0
        for b in range(len(x)):
            begins = not weights[b]
            count += not begins
            logits, value = outputs[b, :2], outputs[b, 2]
            p = logits.softmax(0)
            entropy = -(p * p.log()).sum()
            each = -p[actions[b]].log() * advantage[b] + 0.25 * (returns[b] - value) ** 2 - 0.1 * entropy
            total += 0.0 if begins else float(each)
        assert count < len(x) or len(x) == 4
        assert float(loss.detach()) == pytest.approx(total / count, abs=1e-5)
        assert torch.equal(labels, torch.zeros(len(x), dtype=torch.long))


def test_a_rollout_holds_what_was_seen_and_its_values():
    recorder = Recorder()
    strategy = actor_critic(plugins=[recorder], gamma=0.9, rollout=6, reward_clip=0.5)
    benchmark = rl_benchmark({"a": make(Counting, length=20)}, steps=24)
    strategy.train(benchmark.train_stream)
    (x, actions, returns, advantage, weights, acted, _), outputs, _ = recorder.batches[0]
    shaped = x.view(6, 4, 3)
    assert torch.equal(shaped[:, :, 1], torch.arange(6.0)[:, None].expand(6, 4))
    assert torch.equal(shaped[1:, :, 2], actions.view(6, 4)[:-1].float())
    assert weights.all()
    clipped = (actions.view(6, 4) * 1.0).clamp(-0.5, 0.5)
    first = sum(0.9**t * clipped[t] for t in range(6))
    tail = returns.view(6, 4)[0] - first  # gamma^6 V(s_6), before the update
    torch.testing.assert_close(returns - advantage, outputs[:, 2])  # the network has not changed since
    probability = outputs[:, :2].softmax(1)
    torch.testing.assert_close(acted.exp(), torch.where(actions == 1, probability[:, 1], probability[:, 0]))
    assert (tail.abs() < 0.9**6 * 3).all()


def test_mini_batches_share_out_a_rollout():
    recorders = Recorder(), Recorder()
    for recorder, minibatches in zip(recorders, (1, 6), strict=True):
        torch.manual_seed(0)
        model = mlp(3)
        strategy = actor_critic(model, plugins=[recorder], rollout=5, minibatches=minibatches, epoch_steps=36)
        benchmark = rl_benchmark({"a": make(Counting, length=20)}, steps=36)
        strategy.train(benchmark.train_stream)
        assert strategy.updates == strategy.updates_in(36) == len(recorder.batches)
    (whole, outputs, _), (rest, _, _), *none = recorders[0].batches
    assert not none
    assert len(rest[0]) == 16, "4 steps of 4 environments"
    first, following = recorders[1].batches[:6], recorders[1].batches[6:]
    assert [len(columns[0]) for columns, _, _ in first] == [4, 4, 3, 3, 3, 3]
    assert [len(columns[0]) for columns, _, _ in following] == [3, 3, 3, 3, 2, 2]
    shared = [torch.cat(columns) for columns in zip(*(columns for columns, _, _ in first), strict=True)]
    where = [int((whole[0] == state).all(1).nonzero()) for state in shared[0]]
    assert sorted(where) == list(range(20))
    assert where != list(range(20)), "drawn at random"
    assert all(torch.equal(column[where], found) for column, found in zip(whole, shared, strict=True))
    latest = first[0][1]
    torch.testing.assert_close(latest, outputs[where[:4]])  # before the first update
    assert not torch.allclose(first[-1][1], outputs[where[-3:]]), "each mini-batch is an update"


def test_the_policy_does_not_move_further_than_the_ratio_allows():
    strategy = actor_critic(clip_ratio=0.2, value_weight=0.0, entropy_weight=0.0)
    ratios, advantage = torch.tensor([1.0, 1.1, 1.3, 1.3, 0.7, 0.7]), torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0, -2.0])
    outputs = torch.randn(6, 3, requires_grad=True)
    actions = torch.tensor([0, 1, 0, 1, 0, 1])
    now = outputs[:, :2].softmax(1).gather(1, actions[:, None]).squeeze(1).detach()
    zeros, labels = torch.zeros(6), torch.zeros(6, dtype=torch.long)
    strategy.mbatch = [None, actions, zeros, advantage, torch.ones(6), (now / ratios).log(), labels]
    strategy.mb_output = outputs
    loss = strategy.training_loss()
    assert float(loss.detach()) == pytest.approx(-sum([2.0, -2.2, 2.4, -2.6, 1.4, -1.6]) / 6, abs=1e-5)
    loss.backward()
    assert (outputs.grad[:, :2].abs().sum(1) > 1e-4).tolist() == [True, True, False, True, True, False]
    strategy.clip_ratio, plain = None, outputs.detach().clone().requires_grad_()
    strategy.mb_output = plain
    strategy.training_loss().backward()
    torch.testing.assert_close(outputs.grad[0], plain.grad[0])  # where the two networks are the same


def test_a_rollout_too_short_for_its_mini_batches_has_one_a_state():
    strategy = actor_critic(rollout=5, minibatches=10, epoch_steps=24)
    assert strategy.updates_in(24) == 10 + 4
    strategy.train(rl_benchmark({"a": make(Counting, length=20)}, steps=24).train_stream)
    assert strategy.updates == 14


@pytest.mark.parametrize("best", [0, 1])
@pytest.mark.parametrize("make_strategy", [actor_critic, dqn])
def test_it_learns_which_arm_is_best(make_strategy, best):
    benchmark = rl_benchmark({"bandit": make(Bandit, best=best)}, steps=1200)
    more = {"epoch_steps": 600, "eval_episodes": 40}
    more |= {"epsilon_steps": 400, "gamma": 0.0} if make_strategy is dqn else {"entropy_weight": 0.0}
    strategy = make_strategy(**more)
    strategy.train(benchmark.train_stream)
    assert sum(e.total for e in played(strategy, benchmark)) / 40 > 0.9


def test_each_task_has_its_own_epsilon_schedule():
    strategy = dqn(epsilon_wait=10, epsilon_steps=100, epsilon_end=0.1)
    found = []
    for steps in (0, 10, 60, 110, 500):
        strategy.steps_of[0] = steps
        found.append(strategy.epsilon)
    assert found == pytest.approx([1, 1, 0.55, 0.1, 0.1])
    strategy.label = 1
    assert strategy.epsilon == 1


def test_targets_are_those_of_double_q_learning():
    recorder = Recorder()
    strategy = dqn(plugins=[recorder], gamma=0.9, target_every=1000)
    strategy.train(two_tasks(steps=24).train_stream[0])
    first = dict(strategy.target.state_dict())
    torch.manual_seed(5)
    _, actions, targets, _ = strategy._minibatch(strategy.buffers[0])
    torch.manual_seed(5)
    drawn = strategy.buffers[0].sample(6)
    assert all(torch.equal(first[k], v) for k, v in strategy.target.state_dict().items())  # not copied since
    online, frozen = strategy.model, strategy.target
    with torch.no_grad():
        for b in range(6):
            best = online(drawn.following[b : b + 1]).argmax()
            bootstrap = 0.0 if drawn.terminated[b] else 0.9 * float(frozen(drawn.following[b : b + 1])[0, best])
            assert float(targets[b]) == pytest.approx(float(drawn.rewards[b].clamp(-1, 1)) + bootstrap, abs=1e-6)
    (_, actions, targets, _), outputs, loss = recorder.batches[0]
    error = outputs.gather(1, actions[:, None]).squeeze(1) - targets
    huber = torch.where(error.abs() < 1, 0.5 * error**2, error.abs() - 0.5).mean()
    assert float(loss.detach()) == pytest.approx(float(huber), abs=1e-6)
    assert len(recorder.batches) == strategy.updates == (24 - 8) // 4 + 1


def test_each_task_has_its_own_buffer_and_the_target_is_copied_on_time():
    strategy = dqn()
    copies = []
    whole = strategy.refresh_target
    strategy.refresh_target = lambda: (copies.append(strategy.updates), whole())
    strategy.train(two_tasks(steps=48, schedule=["a", "b", "a"]).train_stream)
    assert {label: len(buffer) for label, buffer in strategy.buffers.items()} == {0: 40, 1: 40}
    assert strategy.steps_of == {0: 96, 1: 48}
    assert strategy.steps == 144
    regular = {k for k in range(strategy.updates) if k % 3 == 0}
    assert regular <= set(copies)
    tasks = strategy.buffers[1].sample(200).states  # episodes of "b" are longer by one
    assert tasks[:, 1].max() == 4


def test_the_target_takes_over_what_is_new_at_a_switch_and_nothing_else():
    network = TaskGains(mlp(2))
    found = []

    class Switches:
        def observed(self, strategy, observations):
            if strategy.is_training and strategy.steps in (30, 40, 60):
                found.append((dict(strategy.model.state_dict()), dict(strategy.target.state_dict())))
                strategy.request_label({30: 1, 40: 0, 60: 1}[strategy.steps])

    strategy = dqn(network, plugins=[Switches()], target_every=1000, num_envs=2)
    copies = []
    whole = strategy.refresh_target
    strategy.refresh_target = lambda: (copies.append(strategy.updates), whole())
    strategy.train(two_tasks(steps=72).train_stream[0])
    assert len(copies) == 2, "for the first update, and where task 1 was met"
    target = strategy.target.state_dict()
    (q, old), *_, (latest, _) = found
    assert any(not torch.equal(old[name], q[name]) for name in old if name != "_extra_state")
    assert all(torch.equal(target[name], old[name]) for name in old if name != "_extra_state")
    new = [name for name in target if ".1." in name and name.startswith(("gains", "biases"))]
    assert sorted(new) == sorted(target.keys() - old.keys())
    assert all((target[name] == name.startswith("gains")).all() for name in new), "as a task begins, not as learnt"
    assert any(not torch.equal(latest[name], target[name]) for name in new)
    strategy.train(two_tasks(steps=24).train_stream[0])
    assert len(copies) == 2, "nor at a visit's beginning"


def test_a_network_is_given_bytes_as_fractions():
    class Bytes(Counting):
        def __init__(self, num_envs):
            super().__init__(num_envs)
            self.single_observation_space = gym.spaces.Box(0, 255, (3,), np.uint8)

        def seen(self):
            return (super().seen() * 51).astype("uint8")

    seen = []
    model = mlp(3)
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    strategy = actor_critic(model)
    strategy.train(rl_benchmark({"a": make(Bytes)}, steps=24).train_stream)
    assert {x.dtype for x in seen} == {torch.float32}
    assert sorted(set(torch.cat(seen)[:, 0].tolist())) == pytest.approx([0, 0.2, 0.4, 0.6])
    assert strategy.states.of(0).dtype == torch.uint8


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mini_batches_of_images_have_the_format_asked_for(channels_last, dtype):
    formats = set()

    class Seeing(nn.Sequential):
        def forward(self, x):
            assert x.dtype == torch.float32
            formats.add((self.training and torch.is_grad_enabled(), x.stride()[1] == 1))
            return super().forward(x)

    class Images(Counting):
        def __init__(self, num_envs):
            super().__init__(num_envs)
            self.single_observation_space = gym.spaces.Box(0, 255, (2, 6, 6), dtype)

        def seen(self):
            first = np.arange(self.num_envs * 72).reshape(self.num_envs, 2, 6, 6)
            return (first + self.at[:, None, None, None]).astype(dtype)

    torch.manual_seed(0)
    model = Seeing(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    torch.manual_seed(1)
    strategy = actor_critic(model, channels_last=channels_last)
    benchmark = rl_benchmark({"images": make(Images)}, steps=24)
    strategy.train(benchmark.train_stream)
    strategy.eval(benchmark.test_stream)
    assert formats == {(True, channels_last), (False, False)}, "acting and evaluation keep theirs"


def test_mini_batches_share_their_memory_and_hold_their_own_states():
    places, batches = set(), []

    class Looking(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            places.add(strategy.mb_x.data_ptr())
            batches.append(strategy.mb_x.clone())

    fresh = []
    torch.manual_seed(0)
    strategy = actor_critic(mlp(3), plugins=[Looking()])
    rollout = strategy._rollout
    strategy._rollout = lambda *args: fresh.append((found := rollout(*args))[0].clone()) or found
    strategy.train(rl_benchmark({"a": make(Counting)}, steps=48).train_stream)
    assert len(batches) == len(fresh) > 1
    assert len(places) == 1
    assert all(torch.equal(x, y.float()) for x, y in zip(batches, fresh, strict=True))


@pytest.mark.parametrize("acting_threads", [1, 2, None])
def test_torch_has_other_threads_while_the_agent_acts(acting_threads):
    acting, learning = set(), set()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = mlp(3)
        model.register_forward_pre_hook(
            lambda *_: (learning if torch.is_grad_enabled() else acting).add(torch.get_num_threads())
        )
        strategy = actor_critic(model, acting_threads=acting_threads)
        strategy.train(rl_benchmark({"a": make(Counting)}, steps=48).train_stream)
        assert acting == {acting_threads or 2}
        assert learning == {2}
        with pytest.raises(EnvironmentFailedError):
            strategy.train(rl_benchmark({"a": make(Failing)}, steps=48).train_stream)
        assert torch.get_num_threads() == 2, "also after a crash while acting"
    finally:
        torch.set_num_threads(before)


def test_both_are_strategies_of_avalanches_template():
    from avalanche.training.templates import SupervisedTemplate

    assert issubclass(ActorCritic, SupervisedTemplate)
    assert issubclass(DQN, SupervisedTemplate)
    envs = Environments(two_tasks().train_stream[0], 2)
    envs.close()
