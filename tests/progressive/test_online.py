"""Online streams: the parts of an experience are one task where boundaries are known, and refused elsewhere."""

import pytest
import torch
from avalanche.benchmarks import split_online_stream, with_task_labels
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from progressive_runs import OPTIMIZERS, build, column

from avl_plugins import InMemoryLoaderPlugin, ProgressiveNetwork, ProgressivePlugin
from benchmarks.data.arrays import split

pytestmark = pytest.mark.filterwarnings("ignore:stream generators will be converted to a list")


class Note(SupervisedPlugin):
    """Columns, what is being trained on, and the optimizer's parameters with state, by part."""

    def __init__(self):
        super().__init__()
        self.columns, self.open, self.state = [], [], []

    def before_training_exp(self, strategy, **kwargs):
        self.columns.append(len(strategy.model.columns))
        self.open.append(strategy.model.training_on)
        self.state.append(len(strategy.optimizer.state))


def online(stream, size, known=True, **options):
    return list(with_task_labels(split_online_stream(stream, size, access_task_boundaries=known, seed=0, **options)))


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("size", [20, 23])
def test_a_column_for_each_task_not_for_each_part(digits_arrays, size, groups, each):
    """Tasks of 60 samples, in parts that divide them or not: momentum goes on from part to part."""
    stream = list(split(digits_arrays, 5, seed=0).train_stream)[:3]
    for experience in stream:
        experience.dataset = experience.dataset.subset(list(range(60)))
    parts = online(stream, size)
    note, net = Note(), ProgressiveNetwork(column())

    def by_layer(model):
        first, *rest = model.parameters()
        return torch.optim.SGD([{"params": [first]}, {"params": rest}], 0.05, 0.9)

    options = {"make_optimizer": by_layer} if groups else {}
    strategy = build(net, plugins=[note], **options)
    closed = []
    for experience in parts if each else [parts]:
        strategy.train(experience)
        closed.append(strategy.model.training_on)
    assert len(parts) == 9
    assert note.columns == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert note.open == [(0, 0)] * 3 + [(1, 1)] * 3 + [(2, 2)] * 3
    assert closed == ([(0, 0)] * 2 + [None] + [(1, 1)] * 2 + [None] + [(2, 2)] * 2 + [None] if each else [None])
    trained = len(list(net.columns[0].parameters()))
    assert note.state[1:3] == [trained] * 2, "it has not been emptied between parts"
    assert net.labels == [0, 1, 2]
    assert [c.frozen for c in net.columns] == [True, True, False]
    with pytest.raises(ValueError, match="task 2 has a column, which has been trained"):
        strategy.train(parts[6])


def test_one_part_is_as_the_whole(digits_split):
    """A stream cut into parts as large as its experiences trains as that does, bit for bit."""
    whole = list(digits_split.train_stream[:3])
    ends = []
    for stream in (whole, online(whole, 500, shuffle=False)):
        strategy = build(plugins=[InMemoryLoaderPlugin()])
        torch.manual_seed(1)
        strategy.train(stream)
        ends.append(list(strategy.model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_task_that_has_not_ended_is_gone_on_with(digits_split):
    parts = online(digits_split.train_stream[:2], 20)
    strategy = build()
    strategy.train(parts[0])
    strategy.train(parts[0])  # its first part again
    assert strategy.model.labels == [0]
    assert strategy.progressive.state_dict() == {"parts": 1}
    strategy.train(parts[1])
    assert strategy.progressive.state_dict() == {"parts": 2}
    fresh = build()
    fresh.progressive.load_state_dict(strategy.progressive.state_dict())
    fresh.model.load_state_dict(strategy.model.state_dict())
    assert fresh.model.training_on == (0, 0)
    for part in parts[2:]:
        if part.origin_experience.current_experience == 0:
            fresh.train(part)
    assert fresh.model.training_on is None
    assert fresh.model.labels == [0]


@pytest.mark.parametrize("strategy", [None, Naive])
def test_parts_that_cannot_be_told_from_tasks_are_refused_at_once(digits_split, strategy):
    options = {} if strategy is None else {"strategy": strategy, "plugins": [ProgressivePlugin()]}
    made = build(**options)
    with pytest.raises(ValueError, match="cannot be told from tasks: make it with access_task_boundaries=True, or the"):
        made.train(online(digits_split.train_stream, 20, known=False))
    for known in (True, False):
        stream = split_online_stream(digits_split.train_stream, 20, access_task_boundaries=known)
        with pytest.raises(ValueError, match=r"have no task labels: wrap it, with_task_labels\(split_online_stream"):
            made.train(stream)
    assert made.model.labels == []


def test_retraining_goes_on_with_a_labels_column(digits_split):
    """Without known boundaries each part counts as a task, and a task label says whose column it trains."""
    for optimizer in OPTIMIZERS:
        strategy = build(ProgressiveNetwork(column(), retrain=True), optimizer)
        strategy.train(online(digits_split.train_stream[:2], 40, known=False))
        assert strategy.model.labels == [0, 1]
        assert [c.frozen for c in strategy.model.columns] == [True, False]
