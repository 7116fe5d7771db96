"""EWC, progressive columns and task recognition in agents."""

import pytest
import torch
from rl_cases import Counting, Requests, actor_critic, dqn, make, mlp, quiet, recognition, two_tasks
from torch import nn

from avl_plugins import (
    EWCPlugin,
    ProgressiveNetwork,
    ProgressivePlugin,
    diagonal_fisher,
)
from avl_plugins.rl import (
    TaskGains,
    TaskRecognition,
    TaskRecognitionPlugin,
    policy,
    rl_benchmark,
)
from avl_plugins.rl.template import RLTemplate


class Shifted(Counting):
    """Observes its numbers plus 100."""

    def seen(self):
        return super().seen() + 100


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
        reference = diagonal_fisher(alone, [(states, None)])
        for name, found in ewc.importances.items():
            torch.testing.assert_close(found[:2] if name.startswith("2") else found, reference[name])
            assert not name.startswith("2") or not found[2].any()
    else:
        reference = diagonal_fisher(strategy.model, [(states, None)], likelihood="gaussian")
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
    with pytest.raises(ValueError, match="saved with revisits='replace', this plugin has revisits='add'"):
        EWCPlugin(ewc_lambda=3.0, likelihood=policy).load_state_dict(ewc.state_dict())
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


@pytest.mark.parametrize("make_strategy", [actor_critic, dqn])
def test_recognised_tasks_take_the_place_of_labels(make_strategy):
    model = TaskRecognition(shape=(4, 4), levels=2, window=2)
    plugin = TaskRecognitionPlugin(
        model, every=2, agreeing=1, least_held=8, levels=lambda seen: (seen[:, :1, None] > 50).long().expand(-1, 4, 4)
    )
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


@pytest.mark.parametrize(("requested", "steps_of"), [(48, {0: 48}), (46, {0: 46, 1: 2})])
@pytest.mark.parametrize("protect", [None, lambda strategy: strategy.steps_of[strategy.label] >= 2])
def test_a_task_that_begins_as_the_visit_ends_is_left_alone(requested, steps_of, protect):
    ewc = EWCPlugin(ewc_lambda=1.0, likelihood="gaussian", revisits="replace", protect=protect)
    strategy = dqn(plugins=[Requests({requested: 1}), ewc])
    strategy.train(two_tasks(steps=48).train_stream[0])
    assert strategy.steps_of == steps_of
    assert ewc._terms.keys() == {0}
    assert strategy.steps_of[7] == 0
    strategy.train(two_tasks(steps=48).train_stream[1])
    assert ewc._terms.keys() == {0, 1}


class Scripted:
    """Stands in for a `TaskRecognition`: one observation a window, and the contexts of a list, the last ones again."""

    levels, window, contexts = 2, 1, 2

    def __init__(self, contexts):
        self.left = list(contexts)

    def observe(self, observation):
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]

    def match(self, window):
        return 0

    def state_dict(self):
        return {"left": self.left}

    def load_state_dict(self, state):
        self.left = list(state["left"])


@pytest.mark.parametrize("stray", [1, 2, 5])
@pytest.mark.parametrize("agreeing", [1, 2])
def test_a_stray_window_does_not_move_what_ewc_protects_of_another_game(stray, agreeing):
    from benchmarks.envs.cartpole import VARIANTS

    visit, windows = 400, 50  # agent steps; windows of 4 steps of 2 environments
    script = [*[0] * windows, *[1] * 25, *[0] * stray, *[1] * 100]
    plugin = TaskRecognitionPlugin(
        Scripted(script), every=4, agreeing=agreeing, least_held=100, levels=lambda seen: seen[:, :1].long()
    )
    ewc = EWCPlugin(ewc_lambda=10.0, likelihood="gaussian", revisits="replace")
    labels = []

    class Labels:
        def before_update(self, strategy, **kwargs):
            labels.append(strategy.label)

    strategy = dqn(TaskGains(mlp(2, inputs=4)), plugins=[plugin, ewc, Labels()], epoch_steps=visit)
    benchmark = rl_benchmark({name: VARIANTS[name] for name in ("cartpole", "swapped")}, steps=visit)
    strategy.train(benchmark.train_stream[0])
    ends = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}
    fisher = ewc._terms[0].precision
    labels.clear()
    strategy.train(benchmark.train_stream[1])
    met = labels.index(1)
    assert (0 in labels[met:]) == (stray >= agreeing)
    assert met * 4 < 100, "the visit begins under the label before"
    assert ewc._terms.keys() == {0, 1}
    centre = ewc._terms[0].centre
    assert all(torch.equal(centre[name], ends[name].to(centre[name].dtype)) for name in centre)
    assert all(torch.equal(ewc._terms[0].precision[name], f) for name, f in fisher.items())
    now = dict(strategy.model.named_parameters())
    assert any(not torch.equal(now[name], ends[name]) for name in centre)


def test_recognition_counts_windows_in_a_row_over_a_checkpoint_and_a_visit():
    requested = []

    class Strategy(RLTemplate):
        def __init__(self):
            self.is_training, self.experience, self.label = True, two_tasks().train_stream[0], None

        def request_label(self, label):
            requested.append(label)

    def make_plugin(script):
        return TaskRecognitionPlugin(Scripted(script), every=1, agreeing=3, levels=lambda seen: seen)

    strategy, plugin = Strategy(), make_plugin([0, 1, 1, 0, 1, 1])
    for _ in range(6):
        plugin.observed(strategy, torch.zeros(1, 1))
    assert requested == []
    resumed = make_plugin([1, 0])
    resumed.load_state_dict(plugin.state_dict() | {"recognition": {"left": [1, 0]}})
    resumed.observed(strategy, torch.zeros(1, 1))
    assert requested == [1]
    resumed.observed(strategy, torch.zeros(1, 1))
    assert requested == [1]
    resumed.before_train_dataset_adaptation(strategy)
    assert (strategy.label, strategy.least_held) == (1, 1000), "what was requested last, not what was seen last"


def test_recognition_needs_an_agent(digits_split):
    from avalanche.training import Naive

    for arguments, said in (
        ({"every": 0}, "every must be an integer >= 1, got 0"),
        ({"agreeing": 0}, "agreeing must be an integer >= 1, got 0"),
        ({"least_held": -1}, "least_held must be an integer >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=said):
            TaskRecognitionPlugin(TaskRecognition(shape=(1,)), **arguments)
    model = nn.Linear(64, 2)
    strategy = Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), plugins=[recognition()], evaluator=quiet()
    )
    with pytest.raises(TypeError, match="TaskRecognitionPlugin needs a strategy that acts"):
        strategy.train(digits_split.train_stream[0])
