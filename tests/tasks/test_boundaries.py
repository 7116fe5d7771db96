"""What a task is: experiences, the parts of an online stream, joint training, labels that come back."""

import pytest
import torch
from avalanche.benchmarks import split_online_stream, with_task_labels
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Cumulative, JointTraining, Naive
from silent import Silent
from torch import nn

from avl_plugins.tasks.boundaries import Task, current_task, finished_task, is_part, parts_so_far
from benchmarks.data.arrays import permuted

pytestmark = pytest.mark.filterwarnings("ignore:stream generators will be converted to a list")


class Note(SupervisedPlugin):
    """Notes the task that training is on, and those that have ended."""

    def __init__(self):
        super().__init__()
        self.parts, self.current, self.finished = 0, [], []

    def before_training_exp(self, strategy, **kwargs):
        self.current.append(current_task(strategy))

    def after_training_exp(self, strategy, **kwargs):
        self.parts = parts_so_far(strategy.experience, self.parts)
        if (task := finished_task(strategy, self.parts)) is not None:
            self.finished.append(task)


def run(stream, cls=Naive, each=False):
    note, net = Note(), nn.Linear(64, 10)
    strategy = cls(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=50,
        plugins=[note],
        evaluator=EvaluationPlugin(loggers=[Silent()]),
    )
    for experiences in stream if each else [stream]:
        strategy.train(experiences)
    return note


def sizes(tasks):
    return [len(task.dataset) for task in tasks]


def test_each_experience_is_a_task(digits_split):
    note = run(digits_split.train_stream)
    assert sizes(note.finished) == sizes(note.current) == [len(e.dataset) for e in digits_split.train_stream]
    assert [task.labels for task in note.finished] == [[0], [1], [2], [3], [4]]
    assert [task.classes for task in note.finished] == [[0, 1]] * 5


def test_a_label_that_comes_back_is_another_task(digits_permuted, digits_split):
    note = run(digits_permuted.train_stream)
    assert [task.labels for task in note.finished] == [[0]] * 3
    first = digits_split.train_stream[0]
    assert sizes(run([first, first]).finished) == [len(first.dataset)] * 2
    assert sizes(run([first, first], each=True).finished) == [len(first.dataset)] * 2


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(
    ("size", "drop_last", "parts"),
    [(20, False, 5), (27, False, 4), (27, True, 3), (80, False, 2), (80, True, 1), (82, False, 1), (500, False, 1)],
)
def test_the_parts_of_an_experience_are_one_task(digits_arrays, size, drop_last, parts, each):
    """Also where the parts' size divides the whole's, so that Avalanche marks no part as the last one."""
    stream = list(permuted(digits_arrays, 3, seed=0, task_labels=True).train_stream)
    for experience in stream:
        experience.dataset = experience.dataset.subset(list(range(100 if size == 20 else 82)))
    known = {"experience_size": size, "drop_last": drop_last, "access_task_boundaries": True}
    note = run(with_task_labels(split_online_stream(stream, **known)), each=each)
    assert len(note.current) == 3 * parts
    assert sizes(note.current) == [len(stream[0].dataset)] * 3 * parts, "the whole, not the part"
    assert sizes(note.finished) == [len(stream[0].dataset)] * 3
    assert [task.labels for task in note.finished] == [[0], [1], [2]]
    assert [task.experiences for task in note.finished] == [(experience,) for experience in stream]


def test_parts_without_known_boundaries_are_tasks(digits_split):
    stream = list(with_task_labels(split_online_stream(digits_split.train_stream, 30)))
    assert not any(map(is_part, stream))
    assert sizes(run(stream).finished) == [len(experience.dataset) for experience in stream]


def test_joint_training_is_one_task(digits_split):
    note = run(digits_split.train_stream, JointTraining)
    (task,) = note.finished
    assert len(task.dataset) == sum(len(e.dataset) for e in digits_split.train_stream) == 400
    assert task.labels == [0, 1, 2, 3, 4]
    assert task.classes == [0, 1]


def test_a_cumulative_strategys_task_is_the_newest(digits_split):
    note = run(digits_split.train_stream[:3], Cumulative)
    assert sizes(note.finished) == [len(e.dataset) for e in digits_split.train_stream[:3]]


def test_classes_of_several_experiences(digits_classes):
    assert Task(tuple(digits_classes.train_stream[:2])).classes == sorted(
        {c for e in digits_classes.train_stream[:2] for c in e.classes_in_this_experience}
    )
    assert Task(tuple(digits_classes.train_stream[:2])).labels == [0]
