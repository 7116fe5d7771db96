"""What a task is to EWCPlugin: whole experiences of split online streams, all of joint training, every visit."""

import warnings
from typing import Any

import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.training.supervised import Cumulative, JointTraining
from ewc_cases import MultiHead, Record, assert_same, data_of, mlp, naive
from reference import QuadraticReference, fisher_reference
from torch import Tensor

from avl_plugins.ewc.plugin import EWCPlugin


def single(fisher: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: f.float() for n, f in fisher.items()}


@pytest.mark.parametrize("size", [50, 134, 399, 400])  # of 400: some divide it, some leave a rest, even of one
def test_a_split_experience_is_one_task_and_its_fisher_is_of_the_whole(digits_permuted: Any, size: int) -> None:
    tasks = digits_permuted.train_stream[:3]
    stream = list(split_online_stream(tasks, experience_size=size, access_task_boundaries=True))
    parts = -(-400 // size)
    assert len(stream) == 3 * parts
    plugin, record, explicit = EWCPlugin(ewc_lambda=5.0), Record(), QuadraticReference()
    strategy = naive(mlp(), plugin, record, train_mb_size=100)
    for n, experience in enumerate(stream):
        strategy.train(experience, eval_streams=[])
        assert plugin.tasks == (n + 1) // parts
        if (n + 1) % parts == 0:
            fisher = fisher_reference(strategy.model, data_of(tasks[n // parts])[0])
            assert_same(plugin.importances, single(fisher), rtol=1e-3, atol=1e-8)
            explicit.add({n: f.double() for n, f in plugin.importances.items()}, record.ends[-1], 5.0)
    theta = {n: p.double() + 0.1 for n, p in record.ends[-1].items()}
    torch.testing.assert_close(plugin.penalty.value(theta), explicit.value(theta), rtol=1e-5, atol=0)


def test_parts_without_known_boundaries_are_tasks(digits_permuted: Any) -> None:
    stream = split_online_stream(digits_permuted.train_stream[:1], experience_size=134, access_task_boundaries=False)
    plugin = EWCPlugin(ewc_lambda=1.0)
    strategy = naive(mlp(), plugin)
    for n, experience in enumerate(stream):
        strategy.train(experience, eval_streams=[])
        assert plugin.tasks == n + 1
        fisher = fisher_reference(strategy.model, data_of(experience)[0])
        assert_same(plugin.importances, single(fisher), rtol=1e-3, atol=1e-8)


def test_all_experiences_of_joint_training_are_one_task(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0)
    strategy = naive(mlp(), plugin, cls=JointTraining)
    strategy.train(digits_permuted.train_stream, eval_streams=[])
    x = torch.cat([data_of(experience)[0] for experience in digits_permuted.train_stream])
    assert len(x) == 1200
    assert plugin.tasks == 1
    assert_same(plugin.importances, single(fisher_reference(strategy.model, x)), rtol=1e-3, atol=1e-8)


def test_joint_training_of_a_multi_head_measures_every_head(digits_split: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0)
    strategy = naive(MultiHead(), plugin, cls=JointTraining)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # several tasks at once are no class-incremental training
        strategy.train(digits_split.train_stream[:3], eval_streams=[])
    data = [data_of(experience)[0] for experience in digits_split.train_stream[:3]]
    expected = {n: torch.zeros_like(f) for n, f in plugin.importances.items()}
    for task, x in enumerate(data):
        for n, f in fisher_reference(strategy.model, x, task=task).items():
            expected[n] += (f * len(x) / sum(map(len, data))).float()
    assert_same(plugin.importances, expected, rtol=1e-3, atol=1e-8)


def test_the_newest_experience_is_cumulative_trainings_task(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0)
    strategy = naive(mlp(), plugin, cls=Cumulative)
    for n, experience in enumerate(digits_permuted.train_stream):
        strategy.train(experience, eval_streams=[])
        assert plugin.tasks == n + 1
        fisher = fisher_reference(strategy.model, data_of(experience)[0])
        assert_same(plugin.importances, single(fisher), rtol=1e-3, atol=1e-8)


def test_a_label_that_comes_back_is_another_task(digits_split: Any) -> None:
    first, second = digits_split.train_stream[:2]
    plugin, record, explicit = EWCPlugin(ewc_lambda=5.0), Record(), QuadraticReference()
    strategy = naive(MultiHead(), plugin, record)
    for n, experience in enumerate((first, second, first)):
        strategy.train(experience, eval_streams=[])
        assert plugin.tasks == n + 1
        explicit.add({n: f.double() for n, f in plugin.importances.items()}, record.ends[-1], 5.0)
    theta = {n: p.double() + 0.1 for n, p in record.ends[-1].items()}
    torch.testing.assert_close(plugin.penalty.value(theta), explicit.value(theta), rtol=1e-5, atol=0)


def test_with_revisits_replaced_the_label_keeps_one_term(digits_split: Any, digits_permuted: Any) -> None:
    first, second = digits_split.train_stream[:2]
    plugin, record = EWCPlugin(ewc_lambda=5.0, revisits="replace"), Record()
    strategy = naive(MultiHead(), plugin, record)
    terms = {}
    for label, experience in ((0, first), (1, second), (0, first)):
        strategy.train(experience, eval_streams=[])
        terms[label] = (plugin.importances, record.ends[-1])
    explicit = QuadraticReference()
    for fisher, anchor in terms.values():
        explicit.add({n: f.double() for n, f in fisher.items()}, anchor, 5.0)
    theta = {n: p.double() + 0.1 for n, p in record.ends[-1].items()}
    torch.testing.assert_close(plugin.penalty.value(theta), explicit.value(theta), rtol=1e-5, atol=0)
    unlabelled = EWCPlugin(
        ewc_lambda=5.0, revisits="replace"
    )  # all have the label 0: each would replace the one before
    with pytest.raises(ValueError, match="have the task label 0"):
        naive(mlp(), unlabelled).train(digits_permuted.train_stream, eval_streams=[])


def test_a_joint_task_of_several_labels_takes_no_other_tasks_place(digits_split: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=5.0, revisits="replace")
    model = MultiHead()
    naive(model, plugin, cls=JointTraining).train(digits_split.train_stream[:2], eval_streams=[])
    fresh = EWCPlugin(ewc_lambda=5.0, revisits="replace")
    fresh.load_state_dict(plugin.state_dict())
    strategy = naive(model, fresh)
    strategy.train(digits_split.train_stream[:2], eval_streams=[])
    assert len(fresh._terms) == 3
    assert {0, 1} < fresh._terms.keys()
