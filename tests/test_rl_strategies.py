"""ActorCritic and DQN: their numbers, plugins in them, interruptions and errors."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from rl_cases import Bandit, Counting, Failing, actor_critic, dqn, make, mlp, quiet, two_tasks
from torch import nn

from avl_plugins import (
    CheckpointEvery,
    EWCPlugin,
    ProgressiveNetwork,
    ProgressivePlugin,
    diagonal_fisher,
    load_checkpoint,
    save_checkpoint,
)
from avl_plugins.metrics import return_metrics, rollout_metrics
from avl_plugins.rl import (
    DQN,
    ActorCritic,
    EnvironmentFailedError,
    TaskGains,
    TaskRecognition,
    TaskRecognitionPlugin,
    policy,
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


class Recorder:
    """Keeps every mini-batch with its outputs and loss."""

    def __init__(self):
        self.batches = []

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def before_backward(self, strategy, **kwargs):
        self.batches.append(([c.clone() for c in strategy.mbatch], strategy.mb_output.detach().clone(), strategy.loss))


def test_the_loss_is_that_of_the_paper_over_valid_states():
    recorder = Recorder()
    strategy = actor_critic(plugins=[recorder], value_weight=0.25, entropy_weight=0.1, gamma=0.9, rollout=5)
    strategy.train(two_tasks().train_stream[0])
    assert len(recorder.batches) == 2 * 2  # epochs of 6 steps of 4 environments: rollouts of 5 and 1
    for (x, actions, returns, advantage, weights, labels), outputs, loss in recorder.batches:
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
    (x, actions, returns, advantage, weights, _), outputs, _ = recorder.batches[0]
    shaped = x.view(6, 4, 3)
    assert torch.equal(shaped[:, :, 1], torch.arange(6.0)[:, None].expand(6, 4))
    assert torch.equal(shaped[1:, :, 2], actions.view(6, 4)[:-1].float())
    assert weights.all()
    clipped = (actions.view(6, 4) * 1.0).clamp(-0.5, 0.5)
    first = sum(0.9**t * clipped[t] for t in range(6))
    tail = returns.view(6, 4)[0] - first  # gamma^6 V(s_6), before the update
    torch.testing.assert_close(returns - advantage, outputs[:, 2])  # the network has not changed since
    assert (tail.abs() < 0.9**6 * 3).all()


@pytest.mark.parametrize("best", [0, 1])
@pytest.mark.parametrize("make_strategy", [actor_critic, dqn])
def test_it_learns_which_arm_is_best(make_strategy, best):
    benchmark = rl_benchmark({"bandit": make(Bandit, best=best)}, steps=1200)
    more = {"epoch_steps": 600, "eval_episodes": 40}
    more |= {"epsilon_steps": 400, "gamma": 0.0} if make_strategy is dqn else {"entropy_weight": 0.0}
    strategy = make_strategy(**more)
    strategy.train(benchmark.train_stream)
    assert sum(e.total for e in played(strategy, benchmark)) / 40 > 0.9


def played(strategy, benchmark):
    """The episodes of an evaluation."""

    class Keep:
        def after_eval_exp(self, strategy, **kwargs):
            self.episodes = list(strategy.episodes)

    keep = Keep()
    strategy.plugins.insert(0, keep)
    strategy.eval(benchmark.test_stream)
    strategy.plugins.remove(keep)
    return keep.episodes


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
    with pytest.raises(ValueError, match="references: expected \\(low, high\\)"):
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


def test_epsilon_falls_by_the_tasks_own_timer():
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


@pytest.mark.parametrize("make_strategy", [actor_critic, dqn])
def test_ewc_protects_the_policy_of_the_tasks_own_states(make_strategy):
    likelihood = policy if make_strategy is actor_critic else "gaussian"
    ewc = EWCPlugin(ewc_lambda=2.0, likelihood=likelihood, seed=0)
    strategy = make_strategy(plugins=[ewc])
    benchmark = two_tasks()
    rng = {}

    class Before:
        def after_training_exp(self, strategy, **kwargs):
            rng["state"] = torch.get_rng_state()

    strategy.plugins.insert(0, Before())
    strategy.train(benchmark.train_stream[0])
    strategy.label = 0
    torch.set_rng_state(rng["state"])
    states = torch.cat([x for x, _, _ in strategy.fisher_batches()])
    assert len(states) == (48 // 4 // 3 * 4 if make_strategy is actor_critic else 12)
    if make_strategy is actor_critic:  # the Fisher of a network without the value
        alone = mlp(2)
        alone.load_state_dict({k: v[:2] if k.startswith("2") else v for k, v in strategy.model.state_dict().items()})
        reference = diagonal_fisher(alone, [(states, torch.zeros(len(states)))])
        for name, found in ewc.importances.items():
            torch.testing.assert_close(found[:2] if name.startswith("2") else found, reference[name])
            assert not name.startswith("2") or not found[2].any()
    else:
        reference = diagonal_fisher(strategy.model, [(states, torch.zeros(len(states)))], likelihood="gaussian")
        for name, found in ewc.importances.items():
            torch.testing.assert_close(found, reference[name])
    fisher = dict(ewc.importances)
    anchors = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}
    here: list[tuple[float, float]] = []

    class Compare:
        def before_backward(self, strategy, **kwargs):
            now = {n: p.detach() for n, p in strategy.model.named_parameters()}
            here.append((sum(float((f * (now[n] - anchors[n]).square()).sum()) for n, f in fisher.items()), 0.0))

        def after_backward(self, strategy, **kwargs):
            here[-1] = (here[-1][0], float(ewc.last_penalty))

    strategy.plugins.insert(0, Compare())
    strategy.train(benchmark.train_stream[1])
    assert here[-1][0] > 0
    assert [found for _, found in here] == pytest.approx([expected for expected, _ in here], rel=1e-4, abs=1e-9)


def test_a_revisit_replaces_the_tasks_term_and_protect_decides_whether_there_is_one():
    ewc = EWCPlugin(
        ewc_lambda=3.0,
        likelihood=policy,
        revisits="replace",
        protect=lambda strategy: strategy.steps_of[strategy.label] >= 48,
    )
    strategy = actor_critic(plugins=[ewc])
    visits = two_tasks(steps=24, schedule=["a", "b", "a", "b", "a"]).train_stream
    terms = {}
    for k, visit in enumerate(visits):
        strategy.train(visit)
        if k < 2:
            assert not ewc.penalty.precision  # protected from the second visit on
            continue
        terms[k % 2] = (ewc.importances, {n: p.detach().clone() for n, p in strategy.model.named_parameters()})
    moved = {n: p.detach() + 0.1 for n, p in strategy.model.named_parameters()}
    expected = sum(
        1.5 * float((f[n].double() * (moved[n] - anchor[n]).double().square()).sum())
        for f, anchor in terms.values()
        for n in f
    )
    assert float(ewc.penalty.value(moved)) == pytest.approx(expected, rel=1e-4)
    other = EWCPlugin(ewc_lambda=3.0, likelihood=policy, revisits="replace")
    other.load_state_dict(ewc.state_dict())
    assert float(other.penalty.value(moved)) == float(ewc.penalty.value(moved))
    assert other._terms.keys() == {0, 1}
    with pytest.raises(ValueError, match="revisits='replace' needs mode='separate'"):
        EWCPlugin(ewc_lambda=1.0, mode="online", revisits="replace")


def test_progressive_columns_hold_policy_and_value_and_never_change():
    network = ProgressiveNetwork(nn.Sequential(nn.Linear(3, 8), nn.Tanh()))
    strategy = actor_critic(network, plugins=[ProgressivePlugin()])
    benchmark = two_tasks()
    with pytest.warns(UserWarning, match="has not been trained on yet"):
        strategy.eval(benchmark.test_stream)
    strategy.train(benchmark.train_stream[0])
    x = torch.randn(5, 3)
    before = network.eval()(x, 0)
    assert before.shape == (5, 3)
    strategy.train(benchmark.train_stream[1])
    assert torch.equal(network.eval()(x, 0), before)
    assert network.labels == [0, 1]


def test_a_network_is_given_bytes_as_fractions():
    class Bytes(Counting):
        def __init__(self, num_envs):
            super().__init__(num_envs)

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


def recognition():
    """A plugin that tells the tasks of `two_tasks` apart by the second number, which goes up to 3 in "a"."""
    return TaskRecognitionPlugin(
        TaskRecognition(shape=(8,), levels=2, window=4),
        every=1,
        levels=lambda seen: (seen[:, 1:2] > 3).long().expand(-1, 8),
    )


STRATEGIES = {
    "actor-critic": lambda: actor_critic(plugins=[EWCPlugin(ewc_lambda=1.0, likelihood=policy)]),
    "gains": lambda: actor_critic(
        TaskGains(mlp(3)), plugins=[EWCPlugin(ewc_lambda=1.0, likelihood=policy, revisits="replace")]
    ),
    "progressive": lambda: actor_critic(
        ProgressiveNetwork(nn.Sequential(nn.Linear(3, 8), nn.Tanh())), plugins=[ProgressivePlugin()]
    ),
    "recognition": lambda: dqn(
        TaskGains(mlp(2)), plugins=[recognition(), EWCPlugin(ewc_lambda=1.0, revisits="replace")], learning_starts=4
    ),
    "dqn": lambda: dqn(TaskGains(mlp(2)), plugins=[EWCPlugin(ewc_lambda=1.0)]),
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
    mine, theirs = whole.evaluator.get_all_metrics(), resumed.evaluator.get_all_metrics()
    assert mine == theirs
    assert any("eval_phase" in key for key in mine)


class Shifted(Counting):
    """Observes its numbers plus 100."""

    def seen(self):
        return super().seen() + 100


@pytest.mark.parametrize("make_strategy", [actor_critic, dqn])
def test_recognised_tasks_take_the_place_of_labels(make_strategy):
    model = TaskRecognition(shape=(4, 4), levels=2, window=2)
    plugin = TaskRecognitionPlugin(model, every=2, levels=lambda seen: (seen[:, :1, None] > 50).long().expand(-1, 4, 4))
    ewc = EWCPlugin(
        ewc_lambda=1.0, likelihood=policy if make_strategy is actor_critic else "gaussian", revisits="replace"
    )
    labels = []

    class Labels:
        def before_update(self, strategy, **kwargs):
            labels.append((strategy.experience.name, strategy.label))

    network = TaskGains(mlp(3 if make_strategy is actor_critic else 2))
    strategy = make_strategy(network, plugins=[plugin, ewc, Labels()])
    tasks = {"z": make(Shifted), "a": make(Counting)}
    benchmark = rl_benchmark(tasks, steps=96, schedule=["a", "z", "a"])
    for visit in benchmark.train_stream:
        strategy.train(visit)
    assert model.contexts == 2
    assert network.labels == [0, 1]  # "a", which was met first, has the label 1 in the stream
    assert sum((name, label) in {("a", 0), ("z", 1)} for name, label in labels) / len(labels) > 0.8
    assert sum(strategy.steps_of.values()) == strategy.steps == 288
    assert ewc._terms.keys() == {0, 1}
    if make_strategy is dqn:
        assert strategy.buffers.keys() == {0, 1}
        shifted = [(strategy.buffers[label].sample_states(100)[:, 0] > 50).float().mean() for label in (0, 1)]
        assert shifted[0] < 0.2
        assert shifted[1] > 0.7
    assert plugin.purity > 0.8
    before = plugin.state_dict()["recognition"]["counts"].clone()
    seen = []

    class Seen:
        def after_eval_iteration(self, strategy, **kwargs):
            seen.append((strategy.experience.name, strategy.label))

    strategy.plugins.append(Seen())
    strategy.eval(benchmark.test_stream)
    assert torch.equal(plugin.state_dict()["recognition"]["counts"], before)
    assert [label for name, label in seen if name == "z"][4:] == [1] * (sum(name == "z" for name, _ in seen) - 4)
    assert [label for name, label in seen if name == "a"][4:] == [0] * (sum(name == "a" for name, _ in seen) - 4)
    assert network.labels == [0, 1]


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


def test_bad_use_is_refused_with_the_argument_named():
    for arguments, said in (
        ({"num_envs": 0}, "num_envs: expected at least 1"),
        ({"rollout": 0}, "rollout: expected at least 1"),
        ({"epoch_steps": 3}, "epoch_steps: expected at least a step of the 4 environments"),
        ({"gamma": 1.5}, "gamma: expected a number from 0 to 1"),
        ({"gae_lambda": -1}, "gae_lambda"),
        ({"reward_clip": 0.0}, "reward_clip: expected a positive number"),
        ({"entropy_weight": -1}, "entropy_weight: expected at least 0"),
        ({"eval_episodes": 0}, "eval_episodes"),
        ({"seed": -1}, "seed: expected at least 0"),
    ):
        with pytest.raises(ValueError, match=said):
            actor_critic(**arguments)
    for arguments, said in (
        ({"train_every": 3}, "train_every: expected a multiple of num_envs, 2"),
        ({"learning_starts": 41}, "learning_starts: expected .* at most buffer_size, 40"),
        ({"epsilon_end": 2.0}, "epsilon_end: expected a probability"),
        ({"epsilon_wait": -1}, "epsilon_wait"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=said):
            dqn(**arguments)
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


def test_recognition_needs_an_agent(digits_split):
    from avalanche.training import Naive

    with pytest.raises(ValueError, match="every: expected at least 1, got 0"):
        TaskRecognitionPlugin(TaskRecognition(shape=(1,)), every=0)
    model = nn.Linear(64, 2)
    strategy = Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), plugins=[recognition()], evaluator=quiet()
    )
    with pytest.raises(TypeError, match="TaskRecognitionPlugin needs a strategy that acts"):
        strategy.train(digits_split.train_stream[0])


def test_a_loss_that_is_not_finite_is_an_error():
    strategy = actor_critic()
    with torch.no_grad():
        strategy.model[2].bias[2] = math.nan
    with pytest.raises(ValueError, match="a: the loss is nan at update 0: lower the learning rate"):
        strategy.train(two_tasks().train_stream[0])


def test_both_are_strategies_of_avalanches_template():
    from avalanche.training.templates import SupervisedTemplate

    assert issubclass(ActorCritic, SupervisedTemplate)
    assert issubclass(DQN, SupervisedTemplate)
    envs = Environments(two_tasks().train_stream[0], 2)
    envs.close()


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
