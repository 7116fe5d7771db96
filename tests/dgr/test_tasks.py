"""What a task is: online streams, joint and cumulative training, labels that come back."""

import copy

import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.models import MTSimpleMLP
from avalanche.training.supervised import Cumulative, JointTraining, Naive
from checkpoint_cases import differences
from dgr_cases import Recorder, build, net, vae
from torch import nn

from avl_plugins import load_checkpoint, save_checkpoint
from avl_plugins.dgr.plugin import DGRPlugin
from avl_plugins.metrics import replay_metrics


class Watch(DGRPlugin):
    """Notes r at each step, and the real loss, the replayed and their sum."""

    def before_backward(self, strategy, **kwargs):
        real = float(strategy.loss.detach())
        super().before_backward(strategy, **kwargs)
        replayed = 0.0 if self.last_replay_loss is None else float(self.last_replay_loss)
        steps.append((self.ratio, real, replayed, float(strategy.loss.detach())))


steps: list = []


@pytest.fixture(autouse=True)
def _no_steps():
    steps.clear()


def inputs(experience):
    return torch.stack([sample[0] for sample in experience.dataset])


def rows(x):
    return sorted(map(tuple, x.tolist()))


def trained_with(strategy, plugin, stream, **options):
    trainer = build(strategy=strategy, plugins=[plugin], criterion=nn.CrossEntropyLoss(), **options)
    trainer.train(stream)
    return trainer


@pytest.mark.parametrize("size", [3, 7])  # 60 samples a task: where parts divide it, Avalanche marks none as last
def test_an_online_stream_with_known_boundaries_has_the_tasks_it_was_cut_from(digits_classes, size):
    whole = [copy.copy(experience) for experience in digits_classes.train_stream[:3]]
    for experience in whole:
        experience.dataset = experience.dataset.subset(range(60))
    parts = list(split_online_stream(whole, experience_size=size, access_task_boundaries=True))
    assert len(parts) == 3 * (20 if size == 3 else 9)
    generator = Recorder()
    strategy = build(strategy=Naive, plugins=[plugin := Watch(generator=generator, generator_iterations=4)])
    seen = []
    for part in parts:
        strategy.train(part)
        seen.append((part.origin_experience.current_experience, plugin.tasks, plugin.parts, len(generator.calls)))
    assert plugin.tasks == 3
    assert plugin.classes == sorted({int(c) for e in whole for c in e.classes_in_this_experience})
    for task in range(3):
        own = [(tasks, parts, calls) for number, tasks, parts, calls in seen if number == task]
        *before, last = own
        assert before == [(task, n + 1, 4 * task) for n in range(len(own) - 1)]
        assert last == (task + 1, 0, 4 * (task + 1)), "the generator trains once, at the end"
    assert {ratio for ratio, *_ in steps} == {1.0, 1 / 2, 1 / 3}
    for ratio, real, replayed, total in steps:
        assert total == pytest.approx(ratio * real + (1 - ratio) * replayed, rel=1e-5)
    drawn = [set(map(tuple, real.tolist())) for real, _, _ in generator.calls]
    for task, experience in enumerate(whole):
        of_task = set(map(tuple, inputs(experience).tolist()))
        assert all(some <= of_task for some in drawn[4 * task : 4 * task + 4]), "of the whole task"


def test_exact_replay_holds_the_whole_of_each_task_once(digits_classes):
    whole = digits_classes.train_stream[:2]
    strategy = build(strategy=Naive, plugins=[plugin := DGRPlugin(replay="exact")])
    strategy.train(split_online_stream(whole, experience_size=9, access_task_boundaries=True))
    assert [rows(part) for part in plugin.source.parts] == [rows(inputs(e)) for e in whole]


def test_where_boundaries_are_not_known_each_part_is_a_task(digits_classes):
    parts = list(split_online_stream(digits_classes.train_stream[:1], experience_size=30))
    strategy = build(strategy=Naive, plugins=[plugin := DGRPlugin(replay="exact")])
    strategy.train(parts)
    assert plugin.tasks == len(parts) >= 2


def test_joint_training_is_one_task(digits_classes):
    plugin = Watch(generator=Recorder(), generator_iterations=20)
    trained_with(JointTraining, plugin, digits_classes.train_stream[:3], metrics=replay_metrics(shape=(1, 8, 8)))
    assert (plugin.tasks, plugin.parts) == (1, 0)
    assert {ratio for ratio, *_ in steps} == {1.0}
    assert len(plugin.classes) == 6
    drawn = {row for real, _, _ in plugin.generator.calls for row in map(tuple, real.tolist())}
    for experience in digits_classes.train_stream[:3]:
        assert drawn & set(map(tuple, inputs(experience).tolist())), "of all experiences"
    memory = DGRPlugin(replay="exact")
    trained_with(JointTraining, memory, digits_classes.train_stream[:3])
    everything = torch.cat([inputs(e) for e in digits_classes.train_stream[:3]])
    assert rows(torch.cat(memory.source.parts)) == rows(everything)


def test_joint_training_looks_at_all_data_before(digits_classes):
    last = copy.copy(digits_classes.train_stream[2])
    last.dataset = last.dataset.eval().replace_current_transform_group((lambda x: x / 0, None)).train()
    plugin = DGRPlugin(replay="exact")
    with pytest.raises(ValueError, match="inputs of experience 2 have NaN or infinite values"):
        trained_with(JointTraining, plugin, [*digits_classes.train_stream[:2], last])


def test_cumulative_training_has_a_task_an_experience(digits_classes):
    """The task is the newest experience, whose inputs alone the generator has not learnt yet."""
    plugin = Watch(generator=Recorder(), generator_iterations=4)
    trained_with(Cumulative, plugin, digits_classes.train_stream[:3])
    assert plugin.tasks == 3
    assert {ratio for ratio, *_ in steps} == {1.0, 1 / 2, 1 / 3}
    for task in range(3):
        of_task = set(map(tuple, inputs(digits_classes.train_stream[task]).tolist()))
        for real, _, _ in plugin.generator.calls[4 * task : 4 * task + 4]:
            assert set(map(tuple, real.tolist())) <= of_task


def test_a_label_that_comes_back_is_another_task(digits_split):
    """Three visits are three tasks; there is one head for each label."""
    model = MTSimpleMLP(input_size=64, hidden_size=20)
    strategy = build(model, strategy=Naive, plugins=[plugin := Watch(generator=vae(), generator_iterations=2)])
    first, second = digits_split.train_stream[:2]
    strategy.train([first, second, first])
    assert plugin.tasks == 3
    assert plugin.task_labels == [0, 1]
    assert {ratio for ratio, *_ in steps} == {1.0, 1 / 2, 1 / 3}


def test_goes_on_inside_an_online_task(digits_classes, tmp_path):
    """After a load between parts all ends as it would have; a state from before parts were counted is taken, too."""
    parts = list(split_online_stream(digits_classes.train_stream[:2], experience_size=30, access_task_boundaries=True))
    assert len(parts) > 4
    ends = []
    for stop in (None, 1, 3):
        torch.manual_seed(3)
        strategy = build(net(), generator=vae(), generator_iterations=3)
        for number, part in enumerate(parts):
            strategy.train(part)
            if number == stop:
                save_checkpoint(strategy, tmp_path / "run.pt")
                strategy = build(net(), generator=vae(), generator_iterations=3)
                load_checkpoint(strategy, tmp_path / "run.pt")
        ends.append((strategy.dgr.tasks, strategy.dgr.parts, strategy.model.state_dict(), strategy.dgr.state_dict()))
    assert ends[0][:2] == (2, 0)
    assert differences(ends[0], ends[1]) == differences(ends[0], ends[2]) == []
    old = {name: value for name, value in ends[0][3].items() if name not in ("parts", "old_range", "shape")}
    fresh = build(net(), generator=vae())
    fresh.dgr.load_state_dict(old)
    assert (fresh.dgr.tasks, fresh.dgr.parts) == (2, 0)


def test_metrics_are_taken_at_the_end_of_tasks(digits_classes):
    parts = list(split_online_stream(digits_classes.train_stream[:3], experience_size=20, access_task_boundaries=True))
    metrics = replay_metrics(shape=(1, 8, 8), distance=True, samples=40)
    strategy = build(metrics=metrics, generator_iterations=6)
    strategy.train(parts)
    logged = strategy.evaluator.get_all_metrics()
    counts = {name.split("/")[1]: len(values) for name, (_, values) in logged.items() if name.startswith("dgr/")}
    once = ("ReplayImages", "ReplayImbalance", "ReplayDistance", "GeneratorLosses", "GeneratorLoss")
    assert {name: counts[name] for name in once} == dict.fromkeys(once, 3)
