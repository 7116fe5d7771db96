"""Progressive networks inside Avalanche: evaluation at any time, freezing, labels, the optimizer, cached features."""

import copy

import pytest
import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    dataset_benchmark,
    nc_benchmark,
    task_incremental_benchmark,
)
from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as tensor_dataset
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import forgetting_metrics, forward_transfer_metrics
from avalanche.training import JointTraining, Naive
from progressive_runs import OPTIMIZERS, UNSEEN, build, column
from torch import nn

from avl_plugins import Progressive, ProgressiveNetwork, ProgressivePlugin
from avl_plugins.metrics import chaudhry_forgetting_metrics
from benchmarks.data.arrays import permuted


class KeepRandom(SupervisedPlugin):
    """Puts the random state back after an evaluation, whose loaders draw from it."""

    def before_eval(self, strategy, **kwargs):
        self.state = torch.get_rng_state()

    def after_eval(self, strategy, **kwargs):
        torch.set_rng_state(self.state)


class ByHook(SupervisedPlugin):
    """Weights of every column at the start of each task, to see that frozen ones do not move."""

    def __init__(self):
        super().__init__()
        self.columns = []

    def after_training_exp(self, strategy, **kwargs):
        self.columns.append(copy.deepcopy(strategy.model.columns[-1].state_dict()))


@pytest.mark.filterwarnings(UNSEEN)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("eval_every", [-1, 0, 1])
def test_evaluating_everything_at_any_time_is_as_not_evaluating(digits_split, optimizer, eval_every):
    """Same columns, weights and optimizer state as training alone; the test stream holds four unseen tasks at first."""
    alone = build(optimizer=optimizer)
    seen = build(optimizer=optimizer, eval_every=eval_every, plugins=[KeepRandom()])
    for experience in digits_split.train_stream:
        random = torch.get_rng_state()
        alone.train(experience)
        torch.set_rng_state(random)
        if eval_every >= 0:
            seen.train(experience, eval_streams=[digits_split.test_stream])
        else:
            seen.train(experience)
            seen.eval(digits_split.test_stream)
        assert len(seen.model.columns) == experience.current_experience + 1
        assert [c.frozen for c in seen.model.columns] == [True] * experience.current_experience + [False]
    for (name, a), (_, b) in zip(alone.model.state_dict().items(), seen.model.state_dict().items(), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name
    assert [len(g["params"]) for g in seen.optimizer.param_groups] == [len(list(seen.model.columns[-1].parameters()))]
    assert set(seen.optimizer.state) == set(seen.model.columns[-1].parameters())


@pytest.mark.filterwarnings(UNSEEN)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_is_forgotten(digits_split, optimizer):
    """Avalanche's forgetting and ours are exactly 0; every logit of every old task keeps its bits."""
    metrics = [forgetting_metrics(experience=True), chaudhry_forgetting_metrics(experience=True, stream=True)]
    hook = ByHook()
    strategy = build(optimizer=optimizer, metrics=metrics, plugins=[hook], train_epochs=8)
    x = [torch.stack([sample[0] for sample in experience.dataset]) for experience in digits_split.test_stream]
    logits = []
    for k, experience in enumerate(digits_split.train_stream):
        strategy.train(experience)
        strategy.eval(digits_split.test_stream)
        strategy.model.eval()
        with torch.no_grad():
            logits.append(strategy.model(x[k], k))
            assert all(torch.equal(strategy.model(x[j], j), logits[j]) for j in range(k))
    for k, state in enumerate(hook.columns):
        now = strategy.model.columns[k].state_dict()
        assert state.keys() == now.keys()
        assert all(torch.equal(state[name], now[name]) for name in state)
    found = strategy.evaluator.get_all_metrics()
    forgotten = {name: values for name, (_, values) in found.items() if "orgetting" in name}
    assert len(forgotten) >= 4 + 4 + 1
    assert all(value == 0.0 for values in forgotten.values() for value in values)
    last = strategy.evaluator.get_last_metrics()
    accuracies = [v for name, v in last.items() if name.startswith("Top1_Acc_Exp/eval_phase/test_stream")]
    assert len(accuracies) == 5
    assert sum(accuracies) / 5 > 0.9


@pytest.mark.filterwarnings(UNSEEN)
def test_avalanches_forward_transfer(digits_split):
    metrics = [forward_transfer_metrics(experience=True, stream=True)]
    strategy = build(metrics=metrics, eval_every=0)
    for experience in digits_split.train_stream[:3]:
        strategy.train(experience, eval_streams=[digits_split.test_stream])
    assert len(strategy.model.columns) == 3
    transfers = [
        v for k, v in strategy.evaluator.get_last_metrics().items() if k.startswith("ExperienceForwardTransfer")
    ]
    assert transfers
    assert all(value == 0.0 for value in transfers)  # a task without a column gives the same answer before and after


def test_unseen_tasks_get_constant_logits_and_one_warning(digits_split):
    strategy = build()
    with pytest.warns(UserWarning, match="task 3 has not been trained on yet"):
        strategy.eval(digits_split.test_stream[3:4])
    strategy.eval(digits_split.test_stream[3:4])  # a second warning would be an error
    assert strategy.model.labels == []
    strategy.train(digits_split.train_stream[0])
    state = copy.deepcopy(strategy.model.state_dict())
    with torch.no_grad():
        assert torch.equal(strategy.model.eval()(torch.randn(4, 64), 3), torch.zeros(4, 2))
    now = strategy.model.state_dict()
    assert state.keys() == now.keys()


def test_unseen_tasks_raise_where_asked(digits_split):
    strategy = build(ProgressiveNetwork(column(), unseen="raise"))
    strategy.train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match=r"no column has been trained on task 1; the tasks so far are \[0\]"):
        strategy.eval(digits_split.test_stream)


@pytest.mark.filterwarnings(UNSEEN)
def test_heads_have_their_tasks_classes_only():
    """Tasks of 3 and 2 classes: after evaluating the larger one first, the smaller head still has two logits."""
    x, y = torch.randn(60, 64), torch.arange(60) % 5
    data = tensor_dataset(x, y)
    benchmark = nc_benchmark(
        data, data, 2, task_labels=True, class_ids_from_zero_in_each_exp=True, fixed_class_order=list(range(5)),
        per_exp_classes={0: 2, 1: 3},
    )  # fmt: skip
    strategy = build()
    strategy.eval(benchmark.test_stream)
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    assert strategy.model.columns[0].head.layer.out_features == 2
    assert strategy.model(x[:4], torch.zeros(4, dtype=torch.long)).shape == (4, 2)
    strategy.train(benchmark.train_stream[1])
    assert strategy.model(x[:4], torch.tensor([0, 1, 0, 1])).shape == (4, 3)


def test_several_task_labels_in_one_experience():
    x, y = torch.rand(12, 64), torch.arange(12) % 2
    benchmark = dataset_benchmark([tensor_dataset(x, y, task_labels=[0, 1] * 6)] * 2, [])
    strategy = build()
    with pytest.raises(ValueError, match=r"has the task labels \[0, 1\]"):
        strategy.train(benchmark.train_stream[0])
    assert strategy.model.labels == []


def test_a_stream_without_task_labels_is_refused_at_once(digits_permuted):
    strategy = build()
    with pytest.raises(ValueError, match=r"all 3 experiences of the stream have the task label 0.*task_labels=True"):
        strategy.train(digits_permuted.train_stream[0])
    assert strategy.model.labels == []


def test_a_label_that_comes_back(digits_arrays):
    benchmark = permuted(digits_arrays, 2, seed=0, task_labels=True)
    strategy = build()
    strategy.train(benchmark.train_stream)
    with pytest.raises(ValueError, match=r"task 0 has a column.*retrain=True.*task_labels=True"):
        strategy.train(benchmark.train_stream[0])
    with pytest.raises(ValueError, match="task 1 has a column"):
        strategy.train(benchmark.train_stream[1])
    assert len(strategy.model.columns) == 2


def test_retrain_trains_that_column_again_and_only_it(digits_arrays):
    benchmark = permuted(digits_arrays, 3, seed=0, task_labels=True)
    strategy = build(ProgressiveNetwork(column(), retrain=True))
    strategy.train(benchmark.train_stream[:2])
    before = copy.deepcopy(strategy.model.columns)
    strategy.train(benchmark.train_stream[1])  # the newest: nobody reads it
    with pytest.warns(UserWarning, match=r"the columns of the tasks \[1\] read the features of task 0"):
        strategy.train(benchmark.train_stream[0])
    after = strategy.model.columns
    assert [c.frozen for c in after] == [False, True]
    assert not torch.equal(before[0].stages[0].layer.weight, after[0].stages[0].layer.weight)
    assert not torch.equal(before[1].stages[0].layer.weight, after[1].stages[0].layer.weight)
    second = copy.deepcopy(after[1].state_dict())
    strategy.train(benchmark.train_stream[2])
    assert [c.frozen for c in after] == [True, True, False]
    assert all(torch.equal(second[name], value) for name, value in strategy.model.columns[1].state_dict().items())


def test_with_naive_and_without_the_plugin(digits_split):
    """The network alone grows, freezes and keeps; the plugin adds what needs the strategy."""
    strategies = [build(strategy=Naive), build(strategy=Naive, plugins=[ProgressivePlugin()]), build()]
    for strategy in strategies:
        torch.manual_seed(1)
        strategy.train(digits_split.train_stream[:3])
    weights = [list(strategy.model.parameters()) for strategy in strategies]
    for others in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], others, strict=True))


def test_other_models_are_refused(digits_split):
    model = nn.Linear(64, 2)
    with pytest.raises(TypeError, match="model must be a ProgressiveNetwork, got a Linear"):
        Progressive(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    strategy = build(model, strategy=Naive, plugins=[ProgressivePlugin()])
    with pytest.raises(TypeError, match=r"the model is a Linear; pass model=ProgressiveNetwork\(nn.Sequential"):
        strategy.train(digits_split.train_stream[0])


def test_an_experience_without_task_labels_is_refused():
    x, y = torch.rand(12, 64), torch.arange(12) % 2
    benchmark = benchmark_from_datasets(train=[tensor_dataset(x, y)] * 2, test=[tensor_dataset(x, y)] * 2)
    strategy = build()
    with pytest.raises(ValueError, match=r"no task labels.*task_labels=True.*task_incremental_benchmark"):
        strategy.train(benchmark.train_stream[0])
    assert strategy.model.labels == []


@pytest.mark.filterwarnings(UNSEEN)
def test_an_experience_that_does_not_say_its_classes():
    """Avalanche's task_incremental_benchmark makes such; the classes are those of the data."""
    x, y = torch.rand(12, 64), torch.arange(12) % 2
    data = [tensor_dataset(x, y + 2 * task) for task in (0, 1)]
    benchmark = task_incremental_benchmark(benchmark_from_datasets(train=data, test=data), reset_task_labels=True)
    strategy = build()
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    strategy.train(benchmark.train_stream[1])
    assert [column.classes for column in strategy.model.columns] == [(0, 1), (2, 3)]


def test_training_on_all_tasks_at_once_is_refused(digits_split):
    """Each task would get a column, and all but the last be frozen before they are trained."""
    strategy = build(strategy=JointTraining, plugins=[ProgressivePlugin()], criterion=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="JointTraining trains on all tasks at once"):
        strategy.train(digits_split.train_stream)
    assert strategy.model.labels == []


@pytest.mark.parametrize(("first", "second"), [([0, 1], [2, 3]), ([0, 3], [1, 2])])
def test_retrain_with_other_classes_is_refused(first, second):
    """The head has no outputs for them, or masked ones, which cannot learn."""
    data = [
        tensor_dataset(torch.rand(20, 64), torch.tensor(classes * 10), task_labels=[0] * 20)
        for classes in (first, second)
    ]
    benchmark = dataset_benchmark(data, data)
    strategy = build(ProgressiveNetwork(column(), retrain=True))
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(ValueError, match=r"retrain: .* classes \[.*the head of task 0 is for \["):
        strategy.train(benchmark.train_stream[1])
    strategy.train(benchmark.train_stream[0])


def test_retrain_warns_of_nothing_where_columns_are_not_connected(digits_arrays):
    benchmark = permuted(digits_arrays, 2, seed=0, task_labels=True)
    strategy = build(ProgressiveNetwork(column(), adapter=None, retrain=True))
    strategy.train(benchmark.train_stream)
    strategy.train(benchmark.train_stream[0])  # a warning would be an error
    assert [c.frozen for c in strategy.model.columns] == [False, True]


def test_a_label_that_comes_back_in_the_same_call(digits_split):
    strategy = build()
    with pytest.raises(ValueError, match="task 0 has a column"):
        strategy.train([digits_split.train_stream[0], digits_split.train_stream[0]])
