"""EWCPlugin inside Avalanche's strategies, against explicit slow EWC and closed forms."""

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import avalanche.training.plugins as stock
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark, with_task_labels
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Cumulative, Naive
from avalanche.training.templates import SupervisedMetaLearningTemplate
from reference import QuadraticReference, fisher_reference, train_reference
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import TensorDataset

from avl_plugins.checkpoint import load_checkpoint
from avl_plugins.ewc.plugin import EWCPlugin
from avl_plugins.ewc.strategy import EWC
from avl_plugins.resume import CheckpointEvery


class MultiHead(MultiTaskModule):
    """A hidden layer and a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 12)
        self.head = MultiHeadClassifier(12, initial_out_features=2, masking=False)

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        return self.head(torch.relu(self.hidden(x)), task_label)


class Growing(nn.Module):
    """A hidden layer and one head that grows with the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 12)
        self.head = IncrementalClassifier(12, initial_out_features=2, masking=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(x)))


class Record(SupervisedPlugin):
    """Keeps each step's loss, and the model at the end of each experience, as seen by a plugin after EWC's."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.ends: list[dict[str, Tensor]] = []

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.losses.append(strategy.loss.item())

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.ends.append(snapshot(strategy.model))


class ToFloat64(nn.Module):
    """Float32 data into a float64 model."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.1)


def naive(model: nn.Module, *plugins: Any, optimizer: Optimizer | None = None, cls: Any = Naive, **kwargs: Any) -> Any:
    options = {"train_mb_size": 50, "train_epochs": 1, "eval_mb_size": 100, "criterion": nn.CrossEntropyLoss()}
    return cls(
        model=model,
        optimizer=optimizer or sgd(model),
        plugins=list(plugins),
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
        **{**options, **kwargs},
    )


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def data_of(experience: Any) -> tuple[Tensor, Tensor]:
    samples = [experience.dataset.eval()[i] for i in range(len(experience.dataset))]
    return torch.stack([s[0] for s in samples]), torch.tensor([int(s[1]) for s in samples])


def batches_of(experience: Any, size: int) -> list[tuple[Tensor, Tensor]]:
    x, y = data_of(experience)
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], **tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def tiny_benchmark(classes: int = 4, experiences: int = 2, *, task_labels: bool, n: int = 40) -> Any:
    """Class-sorted Gaussian blobs in 64 dimensions."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(classes).repeat_interleave(n // classes)
    x = torch.randn(n, 64, generator=generator) + y[:, None]
    dataset = TensorDataset(x, y)
    dataset.targets = y.tolist()  # type: ignore[attr-defined]
    return nc_benchmark(dataset, dataset, experiences, task_labels=task_labels, shuffle=False, seed=0)


# ---------------------------------------------------------------------- the algorithm


@pytest.mark.parametrize("labels", ["exact", "empirical"])
def test_three_tasks_equal_explicit_ewc(digits_permuted: Any, labels: str) -> None:
    # The same steps with every F_t and theta_t kept: losses, Fishers and parameters agree. (Mistakes 1, 3, 4, 5.)
    model = nn.Sequential(ToFloat64(), *mlp().double())
    slow, penalty = copy.deepcopy(model), QuadraticReference()
    optimizer = sgd(slow)
    plugin, record = EWCPlugin(ewc_lambda=30.0, labels=labels), Record()
    strategy = naive(model, plugin, record)
    expected: list[float] = []
    for experience in digits_permuted.train_stream:
        strategy.train(experience, eval_streams=[], shuffle=False)
        expected += train_reference(slow, optimizer, batches_of(experience, 50), penalty)
        x, y = data_of(experience)
        fisher = fisher_reference(slow, x, y, labels=labels)
        assert_same(plugin.importances, fisher, rtol=1e-6, atol=1e-12)
        penalty.add(fisher, snapshot(slow), 30.0)
    assert record.losses == pytest.approx(expected, rel=1e-6)
    assert_same(snapshot(model), snapshot(slow), rtol=1e-7, atol=1e-10)
    theta = {n: p + 0.01 for n, p in snapshot(model).items()}
    torch.testing.assert_close(plugin.penalty.value(theta), penalty.value(theta), rtol=1e-6, atol=0)


def test_penalty_is_not_zero_after_the_first_task_and_lambda_holds_the_parameters(digits_permuted: Any) -> None:
    moved = {}
    for lam in (0.0, 1e5):
        torch.manual_seed(0)
        model = mlp()
        plugin, record = EWCPlugin(ewc_lambda=lam, importance="uniform", step="proximal"), Record()
        strategy = naive(model, plugin, record)
        strategy.train(digits_permuted.train_stream[:2], eval_streams=[])
        assert (plugin.last_penalty > 0) == (lam > 0)
        moved[lam] = max(float((record.ends[1][n] - record.ends[0][n]).abs().max()) for n in record.ends[0])
    assert moved[1e5] < 1e-4 < 1e-2 < moved[0.0]


def test_one_call_with_all_experiences_equals_a_call_each(digits_permuted: Any) -> None:
    results = []
    for together in (True, False):
        torch.manual_seed(3)
        model = mlp()
        strategy = naive(model, EWCPlugin(ewc_lambda=10.0, labels="sampled", seed=1))
        stream = digits_permuted.train_stream
        for experiences in [stream] if together else list(stream):
            strategy.train(experiences, eval_streams=[])
        results.append(snapshot(model))
    assert_same(*results, rtol=0, atol=0)


def test_keeps_the_first_task_that_plain_training_forgets(digits_split: Any) -> None:
    accuracy = {}
    for lam in (0.0, 1000.0):
        torch.manual_seed(0)
        model = MultiHead()
        strategy = naive(model, EWCPlugin(ewc_lambda=lam), optimizer=Adam(model.parameters(), lr=5e-3), train_epochs=15)
        strategy.train(digits_split.train_stream, eval_streams=[])
        x, y = data_of(digits_split.test_stream[0])
        with torch.no_grad():
            accuracy[lam] = float((model.eval()(x, 0).argmax(1) == y).float().mean())
    assert accuracy[1000.0] >= accuracy[0.0]
    assert accuracy[1000.0] > 0.95


@pytest.mark.parametrize("gamma", [0.8, 1.0])
def test_online_follows_its_equations(digits_permuted: Any, gamma: float) -> None:
    # F* <- gamma F* + F; penalty lambda/2 gamma F* (theta - latest optimum)^2; gamma = 1 sums the Fishers (Huszar).
    plugin, record = EWCPlugin(ewc_lambda=5.0, mode="online", gamma=gamma), Record()
    strategy = naive(mlp(), plugin, record)
    star: dict[str, Tensor] = {}
    for experience in digits_permuted.train_stream:
        strategy.train(experience, eval_streams=[])
        star = {n: f + (gamma * star[n] if star else 0) for n, f in plugin.importances.items()}
    theta = {n: p + 0.1 for n, p in record.ends[-1].items()}
    expected = sum(5.0 / 2 * gamma * (star[n] * (theta[n] - record.ends[-1][n]) ** 2).sum() for n in star)
    torch.testing.assert_close(plugin.penalty.value(theta), expected, rtol=1e-5, atol=0)
    assert plugin.penalty.value(record.ends[-1]).item() == 0.0


def test_normalise_gives_each_task_the_same_mean(digits_permuted: Any) -> None:
    raw, even = EWCPlugin(ewc_lambda=0.0), EWCPlugin(ewc_lambda=0.0, normalise=True)
    naive(mlp(), raw, even).train(digits_permuted.train_stream[0], eval_streams=[])
    flat = torch.cat([f.flatten() for f in even.importances.values()])
    assert flat.mean().item() == pytest.approx(1.0, rel=1e-5)
    mean = torch.cat([f.flatten() for f in raw.importances.values()]).mean()
    assert_same(even.importances, {n: f / mean for n, f in raw.importances.items()}, rtol=1e-5, atol=0)


def test_lambda_may_differ_by_task(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0)
    strategy = naive(mlp(), plugin)
    explicit: dict[str, Tensor] = {}
    for lam, experience in zip((1.0, 50.0), digits_permuted.train_stream, strict=False):
        plugin.ewc_lambda = lam
        strategy.train(experience, eval_streams=[])
        explicit = {n: lam * f + explicit.get(n, 0) for n, f in plugin.importances.items()}
    assert_same(plugin.penalty.precision, explicit, rtol=1e-5, atol=0)


# ---------------------------------------------------------------------- the Fisher's data


def test_batch_labels_are_avalanches_importances(digits_split: Any) -> None:
    # Multi-head too, and with a last batch that is smaller; Avalanche's data loader is not shuffled.
    theirs, ours = stock.EWCPlugin(1.0), EWCPlugin(ewc_lambda=2.0, labels="batch")
    strategy = naive(MultiHead(), ours, theirs, train_mb_size=32)
    strategy.train(digits_split.train_stream[:2], eval_streams=[])
    expected = {n: d.data for n, d in theirs.importances[1].items()}
    assert_same(ours.importances, expected, rtol=1e-6, atol=1e-12)


def test_fisher_does_not_depend_on_the_training_batch_size(digits_split: Any) -> None:
    model = MultiHead()
    found = []
    for size in (7, 64):
        plugin = EWCPlugin(ewc_lambda=1.0, fisher_batch_size=size)
        naive(copy.deepcopy(model), plugin, train_epochs=0, train_mb_size=size).train(
            digits_split.train_stream[0], eval_streams=[]
        )
        found.append(plugin.importances)
    assert_same(*found, rtol=1e-4, atol=1e-9)


def test_only_the_current_tasks_head_counts_and_others_are_left_alone(digits_split: Any) -> None:
    # After an evaluation on future tasks the other heads exist; Adam's momentum must not move them either.
    plugin, record = EWCPlugin(ewc_lambda=100.0), Record()
    model = MultiHead()
    strategy = naive(model, plugin, record, optimizer=Adam(model.parameters(), lr=0.01), train_epochs=3)
    strategy.eval(digits_split.test_stream)
    strategy.train(digits_split.train_stream[:3], eval_streams=[])
    protected = {n for n in plugin.penalty.precision if "classifiers" in n}
    assert protected == {f"head.classifiers.{t}.classifier.{w}" for t in range(3) for w in ("weight", "bias")}
    assert {n for n, f in plugin.importances.items() if "classifiers" in n and f.any()} == {
        f"head.classifiers.2.classifier.{w}" for w in ("weight", "bias")
    }
    for name in ("head.classifiers.0.classifier.weight", "head.classifiers.0.classifier.bias"):
        assert torch.equal(record.ends[0][name], record.ends[2][name])
        assert dict(model.named_parameters())[name].grad is None


def test_an_error_inside_a_task_leaves_nothing_to_the_next(digits_split: Any) -> None:
    class Stop(SupervisedPlugin):
        on = False

        def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            if self.on:
                raise KeyboardInterrupt

    model, stop = MultiHead(), Stop()
    strategy = naive(model, EWCPlugin(ewc_lambda=10.0), stop, train_mb_size=10)
    strategy.train(digits_split.train_stream[:2], eval_streams=[])
    stop.on = True
    with pytest.raises(KeyboardInterrupt):
        strategy.train(digits_split.train_stream[0], eval_streams=[])
    stop.on = False
    before = snapshot(model.head.classifiers["0"])
    strategy.train(digits_split.train_stream[2], eval_streams=[])
    assert_same(snapshot(model.head.classifiers["0"]), before, rtol=0, atol=0)


def test_uniform_is_one_for_what_was_trained(digits_split: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=3.0, importance="uniform")
    strategy = naive(MultiHead(), plugin)
    strategy.eval(digits_split.test_stream)
    strategy.train(digits_split.train_stream[0], eval_streams=[])
    assert set(plugin.importances) == {
        "hidden.weight", "hidden.bias", "head.classifiers.0.classifier.weight", "head.classifiers.0.classifier.bias",
    }  # fmt: skip
    assert all(torch.equal(f, torch.ones_like(f)) for f in plugin.importances.values())


class Flip:
    """An augmentation that would show."""

    def __call__(self, x: Tensor) -> Tensor:
        return x + 100 * torch.rand(())


def test_fisher_sees_no_augmentation() -> None:
    y = [0, 1] * 10
    data = TensorDataset(torch.randn(20, 64), torch.tensor(y))
    data.targets = y  # type: ignore[attr-defined]
    benchmark = nc_benchmark(
        data, data, 1, task_labels=False, train_transform=Flip(), eval_transform=lambda x: x, seed=0
    )
    model, plugin = mlp(), EWCPlugin(ewc_lambda=1.0)
    naive(model, plugin, train_epochs=0).train(benchmark.train_stream, eval_streams=[])
    x, _ = data_of(benchmark.train_stream[0])
    assert x.max() < 10
    expected = fisher_reference(model, x, labels="exact")
    assert_same(plugin.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-4, atol=1e-9)


def test_samples_of_different_lengths_go_through_their_collate_fn() -> None:
    class SumOverTime(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1)

    def pad(samples: list[Any]) -> list[Tensor]:
        x, y, t = zip(*samples, strict=True)
        return [nn.utils.rnn.pad_sequence(list(x), batch_first=True), torch.tensor(y), torch.tensor(t)]

    samples = [(torch.randn(1 + n % 5, 4), n % 3) for n in range(30)]
    dataset = AvalancheDataset(
        [samples],  # type: ignore[list-item]
        data_attributes=[
            DataAttribute([y for _, y in samples], "targets"),
            DataAttribute([0] * len(samples), "targets_task_labels", use_in_getitem=True),
        ],
        collate_fn=pad,
    )
    model = nn.Sequential(SumOverTime(), nn.Linear(4, 3))
    plugin = EWCPlugin(ewc_lambda=1.0, fisher_batch_size=4)
    benchmark = with_task_labels(benchmark_from_datasets(train=[dataset]))  # without, Avalanche forgets collate_fn
    naive(model, plugin, train_mb_size=7).train(benchmark.train_stream, eval_streams=[])
    x, _, _ = pad([(x, y, 0) for x, y in samples])
    expected = fisher_reference(model, x, labels="exact")
    assert_same(plugin.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-4, atol=1e-9)


def test_fisher_data_and_max_samples(digits_permuted: Any) -> None:
    x, y = data_of(digits_permuted.train_stream[1])
    seen: list[Any] = []

    def other_data(strategy: Any) -> list[tuple[Tensor, Tensor]]:
        seen.append(strategy)
        return [(x[:30], y[:30])]

    model, plugin = mlp(), EWCPlugin(ewc_lambda=1.0, fisher_data=other_data)
    few = EWCPlugin(ewc_lambda=1.0, max_samples=5, seed=3)
    again = EWCPlugin(ewc_lambda=1.0, max_samples=5, seed=3, fisher_batch_size=11)
    strategy = naive(model, plugin, few, again, train_epochs=0)
    strategy.train(digits_permuted.train_stream[0], eval_streams=[])
    assert seen == [strategy]
    expected = fisher_reference(model, x[:30], labels="exact")
    assert_same(plugin.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-4, atol=1e-9)
    assert_same(few.importances, again.importances, rtol=1e-5, atol=1e-10)
    assert not torch.equal(few.importances["0.bias"], plugin.importances["0.bias"])


def test_include_and_exclude(digits_permuted: Any) -> None:
    by_glob = EWCPlugin(ewc_lambda=1.0, include=["0.*", "2.bias"], exclude="*.weight")
    by_call = EWCPlugin(ewc_lambda=1.0, include=lambda name, p: p.dim() == 2)
    naive(mlp(), by_glob, by_call).train(digits_permuted.train_stream[0], eval_streams=[])
    assert set(by_glob.importances) == set(by_glob.penalty.precision) == {"0.bias", "2.bias"}
    assert set(by_call.importances) == {"0.weight", "2.weight"}


# ---------------------------------------------------------------------- beside others, and while models grow


def test_leaves_gradients_modes_buffers_and_random_state_alone(digits_permuted: Any) -> None:
    # Mistake 6. A frozen BatchNorm stays in eval mode, dropout does not enter, the global generator does not move.
    model = nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 10))
    plugin = EWCPlugin(ewc_lambda=1.0, labels="sampled", max_samples=50)
    strategy = naive(model, plugin)
    strategy.train(digits_permuted.train_stream[0], eval_streams=[])
    strategy.experience = digits_permuted.train_stream[1]
    model.train()
    model[1].eval()
    model[1].bias.requires_grad_(False)
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    state, parameters = torch.get_rng_state(), snapshot(model)
    plugin.after_training_exp(strategy)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model] == [True, False, True, True, True]
    assert_same(snapshot(model), parameters, rtol=0, atol=0)
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert torch.equal(p.grad, grads[name])
    assert "1.bias" not in plugin.importances


def test_grows_with_the_classifier(digits_classes: Any) -> None:
    plugin, explicit = EWCPlugin(ewc_lambda=20.0), QuadraticReference()
    model = Growing()
    record = Record()
    strategy = naive(model, plugin, record)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="EWC fails in class-incremental")
        for experience in digits_classes.train_stream:
            strategy.train(experience, eval_streams=[])
            explicit.add({n: f.double() for n, f in plugin.importances.items()}, record.ends[-1], 20.0)
    assert plugin.penalty.precision["head.classifier.weight"].shape == (10, 12)
    theta = {n: p.double() + 0.1 for n, p in record.ends[-1].items()}
    torch.testing.assert_close(plugin.penalty.value(theta), explicit.value(theta), rtol=1e-5, atol=0)


@pytest.mark.parametrize("cls", [Naive, Cumulative])
def test_works_in_stock_strategies_beside_stock_plugins(digits_permuted: Any, cls: Any) -> None:
    plugins = [stock.ReplayPlugin(50), EWCPlugin(ewc_lambda=10.0), stock.LwFPlugin(), stock.EWCPlugin(0.1)]
    strategy = naive(mlp(), *plugins, cls=cls, eval_every=1)
    strategy.train(digits_permuted.train_stream, eval_streams=[digits_permuted.test_stream])
    assert plugins[1].last_penalty > 0
    assert torch.isfinite(strategy.model[0].weight).all()


class Clip(SupervisedPlugin):
    """Gradient clipping as users write it."""

    norms: list[float]

    def __init__(self) -> None:
        super().__init__()
        self.norms = []

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        nn.utils.clip_grad_norm_(strategy.model.parameters(), 0.01)
        self.norms.append(float(nn.utils.get_total_norm([p.grad for p in strategy.model.parameters()])))


def test_clipping_covers_the_penalty_wherever_it_stands(digits_permuted: Any) -> None:
    ends = []
    for first in (True, False):
        torch.manual_seed(0)
        model, plugin, clip = mlp(), EWCPlugin(ewc_lambda=100.0), Clip()
        naive(model, *([clip, plugin] if first else [plugin, clip])).train(
            digits_permuted.train_stream[:2], eval_streams=[]
        )
        assert max(clip.norms) < 0.0101
        ends.append(snapshot(model))
    assert_same(*ends, rtol=0, atol=0)


class Detour(torch.autograd.Function):
    """Hides the parameters behind a graph of its own, as re-entrant checkpointing does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dummy: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer, ctx.x = layer, x.detach()
        return layer(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            ctx.layer(ctx.x).backward(grad)
        return None, grad.sum() * 0, None


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 12), nn.Linear(12, 10)
        self.detour = True

    def forward(self, x: Tensor) -> Tensor:
        h = Detour.apply(x, self.last.bias[0], self.first) if self.detour and self.training else self.first(x)
        return self.last(torch.relu(h))


def test_parameters_hidden_from_the_graph_are_still_penalised(digits_permuted: Any) -> None:
    ends = []
    for detour in (True, False):
        torch.manual_seed(0)
        model = Hidden()
        model.detour = detour
        naive(model, EWCPlugin(ewc_lambda=50.0)).train(digits_permuted.train_stream, eval_streams=[])
        ends.append(snapshot(model))
    assert_same(*ends, rtol=1e-5, atol=1e-6)


def test_proximal_holds_where_the_gradient_diverges(digits_permuted: Any) -> None:
    torch.manual_seed(0)
    plugin, record = EWCPlugin(ewc_lambda=1e5, step="proximal"), Record()
    naive(mlp(), plugin, record).train(digits_permuted.train_stream, eval_streams=[])
    assert max(record.losses) < 10
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="will diverge"), pytest.raises(ValueError, match="the loss is not finite"):
        naive(mlp(), EWCPlugin(ewc_lambda=1e5), train_epochs=30).train(digits_permuted.train_stream, eval_streams=[])


def test_online_streams_consolidate_at_task_boundaries(digits_permuted: Any) -> None:
    stream = split_online_stream(digits_permuted.train_stream[:2], experience_size=100, access_task_boundaries=True)
    model, plugin, ends = mlp(), EWCPlugin(ewc_lambda=1.0), []
    strategy = naive(model, plugin)
    for experience in stream:
        strategy.train(experience, eval_streams=[])
        ends.append(plugin.importances)
    assert [bool(f) for f in ends[:4]] == [False, False, False, True]
    assert ends[3] is ends[6] is not ends[7]
    x, _ = data_of(digits_permuted.train_stream[1])
    expected = fisher_reference(model, x, labels="exact")
    assert_same(plugin.importances, {n: f.float() for n, f in expected.items()}, rtol=1e-3, atol=1e-8)


# ---------------------------------------------------------------------- errors and warnings


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"ewc_lambda": -1.0}, ValueError, "ewc_lambda must be finite and >= 0"),
        ({"ewc_lambda": float("nan")}, ValueError, "ewc_lambda"),
        ({"ewc_lambda": float("inf")}, ValueError, "ewc_lambda"),
        ({"ewc_lambda": "1"}, TypeError, "ewc_lambda must be a number"),
        ({"labels": "true"}, ValueError, "labels must be one of 'exact'"),
        ({"importance": "l2"}, ValueError, "importance must be"),
        ({"mode": "huszar"}, ValueError, "mode='online', gamma=1.0"),
        ({"mode": "online", "gamma": 0}, ValueError, "gamma must be finite and > 0 and <= 1"),
        ({"mode": "online", "gamma": 1.1}, ValueError, "gamma"),
        ({"gamma": 0.9}, ValueError, "has no effect with mode='separate'"),
        ({"step": "implicit"}, ValueError, "step must be"),
        ({"likelihood": "poisson"}, ValueError, "likelihood must be"),
        ({"max_samples": 0}, ValueError, "max_samples"),
        ({"fisher_batch_size": 2.5}, TypeError, "fisher_batch_size must be an integer"),
        ({"decay_factor": 0.9}, TypeError, "gamma"),
        ({"keep_importance_data": True}, TypeError, "Leave it out"),
    ],
)
def test_arguments_are_checked(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        EWCPlugin(**{"ewc_lambda": 1.0, **kwargs})


def test_positional_lambda_is_explained() -> None:
    with pytest.raises(TypeError, match=r"write EWCPlugin\(ewc_lambda=...\)"):
        EWCPlugin(0.4)


def state_of(strategy: Any, plugin: EWCPlugin) -> dict[str, Tensor]:
    """All that an error must leave alone."""
    state = {f"model.{n}": p for n, p in snapshot(strategy.model).items()}
    state |= {f"grad.{n}": p.grad.clone() for n, p in strategy.model.named_parameters() if p.grad is not None}
    state |= {f"mode.{n}": torch.tensor(m.training) for n, m in strategy.model.named_modules()}
    for part in ("precision", "centre"):
        state |= {f"{part}.{n}": t.clone() for n, t in plugin.state_dict()["penalty"][part].items()}
    state |= {f"importance.{n}": t.clone() for n, t in plugin.importances.items()}
    generator = plugin.state_dict()["generator"]
    return state | {
        "constant": torch.tensor(plugin.penalty.constant),
        "rng": torch.get_rng_state(),
        "generator": torch.zeros(0) if generator is None else generator,
    }


def trained(benchmark: Any, plugin: EWCPlugin, model: nn.Module | None = None) -> Any:
    strategy = naive(mlp() if model is None else model, plugin)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    strategy.experience = benchmark.train_stream[1]
    return strategy


@pytest.mark.parametrize("labels", ["exact", "sampled"])
def test_nan_parameters_give_an_error_and_change_nothing(digits_permuted: Any, labels: str) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0, labels=labels, max_samples=20)
    strategy = trained(digits_permuted, plugin)
    with torch.no_grad():
        strategy.model[0].weight[0, 0] = float("nan")
    before = state_of(strategy, plugin)
    with pytest.raises(ValueError, match=r"not finite|NaN or infinite"):
        plugin.after_training_exp(strategy)
    assert_same(state_of(strategy, plugin), before, rtol=0, atol=0, equal_nan=True)


def test_overflow_in_the_merge_changes_nothing(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0, labels="sampled")
    strategy = trained(digits_permuted, plugin)
    plugin.ewc_lambda = 1e300
    before = state_of(strategy, plugin)
    with pytest.raises(ValueError, match="overflows"):
        plugin.after_training_exp(strategy)
    assert_same(state_of(strategy, plugin), before, rtol=0, atol=0)


def test_nan_loss_is_named_before_any_step(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0)
    strategy = trained(digits_permuted, plugin)
    strategy.loss = torch.full((1,), float("nan"), requires_grad=True) + 0
    before = state_of(strategy, plugin)
    with pytest.raises(ValueError, match=r"the loss is not finite in experience 1, step .*: nan plus EWC's penalty"):
        plugin.before_backward(strategy)
    assert_same(state_of(strategy, plugin), before, rtol=0, atol=0)


def test_an_empty_experience_is_named(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0)
    experience = copy.copy(digits_permuted.train_stream[0])
    experience.dataset = experience.dataset.subset([])
    with pytest.raises(ValueError, match="experience 0 is empty"):
        naive(mlp(), plugin).train(experience, eval_streams=[])
    nothing = EWCPlugin(ewc_lambda=1.0, fisher_data=lambda strategy: [])
    with pytest.raises(ValueError, match="at least one sample"):
        naive(mlp(), nothing).train(digits_permuted.train_stream[0], eval_streams=[])
    assert not nothing.penalty.precision


def test_models_and_selections_with_nothing_to_protect(digits_permuted: Any) -> None:
    experience = digits_permuted.train_stream[0]
    frozen = mlp().requires_grad_(False)
    optimizer = SGD(frozen.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no parameters that need gradients"):
        naive(frozen, EWCPlugin(ewc_lambda=1.0), optimizer=optimizer).train(experience, eval_streams=[])
    with pytest.raises(ValueError, match="include pattern 'head' matches none"):
        naive(mlp(), EWCPlugin(ewc_lambda=1.0, include="head")).train(experience, eval_streams=[])
    with pytest.raises(ValueError, match="leave none"):
        naive(mlp(), EWCPlugin(ewc_lambda=1.0, exclude="*")).train(experience, eval_streams=[])
    dead = mlp()
    nn.init.zeros_(dead[2].weight)
    with pytest.raises(ValueError, match="experience 0 is zero for every protected parameter"):
        naive(dead, EWCPlugin(ewc_lambda=1.0, include="0.*"), train_epochs=0).train(experience, eval_streams=[])


def test_proximal_refuses_unknown_optimizers_before_training(digits_permuted: Any) -> None:
    model = mlp()
    before = snapshot(model)
    strategy = naive(
        model, EWCPlugin(ewc_lambda=1.0, step="proximal"), optimizer=torch.optim.Adagrad(model.parameters())
    )
    with pytest.raises(ValueError, match="not Adagrad"):
        strategy.train(digits_permuted.train_stream[0], eval_streams=[])
    assert_same(snapshot(model), before, rtol=0, atol=0)


class Meta(SupervisedMetaLearningTemplate):
    """Inner and outer updates would be here."""


def test_refuses_a_template_that_would_never_apply_the_penalty(digits_permuted: Any) -> None:
    strategy = naive(mlp(), EWCPlugin(ewc_lambda=1.0), cls=Meta)
    with pytest.raises(ValueError, match="Meta is a meta-learning strategy"):
        strategy.train(digits_permuted.train_stream[0], eval_streams=[])


def test_warns_once_of_a_rate_that_is_too_high(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0, importance="uniform")
    strategy = naive(mlp(), plugin, train_epochs=0)
    strategy.train(digits_permuted.train_stream[0], eval_streams=[])
    plugin.penalty.precision = {n: 25.0 * a for n, a in plugin.penalty.precision.items()}
    with pytest.warns(UserWarning, match=r"0.1 \* 25 = 2.5 > 2 .* step='proximal'") as seen:
        strategy.train(digits_permuted.train_stream[1:], eval_streams=[])
    assert len(seen) == 1
    model = mlp()
    quiet = EWCPlugin(ewc_lambda=1e9, importance="uniform")
    strategy = naive(model, quiet, train_epochs=0, optimizer=Adam(model.parameters(), lr=0.1))
    strategy.train(digits_permuted.train_stream, eval_streams=[])


def test_warns_once_of_class_incremental_training_only(digits_classes: Any, digits_split: Any) -> None:
    with pytest.warns(UserWarning, match=r"new classes \[2, 3\] under task label 0") as seen:
        naive(mlp(), EWCPlugin(ewc_lambda=1.0)).train(digits_classes.train_stream[:3], eval_streams=[])
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strategy = naive(MultiHead(), EWCPlugin(ewc_lambda=1.0))
        strategy.train(digits_split.train_stream[:2], eval_streams=[])
        strategy.train(digits_split.train_stream[0], eval_streams=[])  # a task again is not a new class


# ---------------------------------------------------------------------- state and strategy


@pytest.mark.parametrize("mode", ["separate", "online"])
def test_a_run_goes_on_from_a_saved_state(digits_permuted: Any, mode: Any) -> None:
    def build() -> tuple[Any, EWCPlugin]:
        torch.manual_seed(0)
        plugin = EWCPlugin(ewc_lambda=10.0, labels="sampled", mode=mode, max_samples=100)
        return naive(mlp(), plugin), plugin

    whole, plugin = build()
    whole.train(digits_permuted.train_stream[:2], eval_streams=[])
    state, weights, rng = plugin.state_dict(), copy.deepcopy(whole.model.state_dict()), torch.get_rng_state()
    whole.train(digits_permuted.train_stream[2], eval_streams=[])

    fresh, other = build()
    fresh.model.load_state_dict(weights)
    other.load_state_dict(torch.load(_saved(state), weights_only=True))
    torch.set_rng_state(rng)
    fresh.train(digits_permuted.train_stream[2], eval_streams=[])
    assert_same(snapshot(fresh.model), snapshot(whole.model), rtol=0, atol=0)
    assert_same(other.importances, plugin.importances, rtol=0, atol=0)
    assert_same(other.penalty.precision, plugin.penalty.precision, rtol=0, atol=0)
    assert torch.equal(other.last_penalty, plugin.last_penalty)


class Stop(Exception):
    """Stands for a kill."""


class StopAt(SupervisedPlugin):
    """Raises in the given training iteration (counted over the run)."""

    def __init__(self, iteration: int | None) -> None:
        super().__init__()
        self.left = iteration

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Stop


@pytest.mark.parametrize("step", ["gradient", "proximal"])
def test_ewc_is_resumed_inside_an_experience(digits_split: Any, tmp_path: Path, step: Any) -> None:
    # Multi-head under Adam: a head that got a zero gradient instead of none would show in its momentum.
    def build(stop: int | None) -> Any:
        torch.manual_seed(0)
        model = MultiHead()
        plugins = [StopAt(stop), CheckpointEvery(tmp_path / "run.pt", epochs=None, iterations=1)]
        options = {"ewc_lambda": 50.0, "labels": "sampled", "step": step, "train_epochs": 2, "train_mb_size": 20}
        return naive(model, *plugins, optimizer=Adam(model.parameters(), lr=0.01), cls=EWC, **options)

    def run(strategy: Any, start: int = 0) -> None:
        for experience in digits_split.train_stream[start:3]:
            strategy.train(experience, eval_streams=[])

    whole = build(None)
    run(whole)
    killed = build(21)
    with pytest.raises(Stop):
        run(killed)
    again = build(None)
    torch.manual_seed(1)
    run(again, load_checkpoint(again, tmp_path / "run.pt"))
    assert_same(snapshot(again.model), snapshot(whole.model), rtol=0, atol=0)
    assert_same(again.ewc.penalty.precision, whole.ewc.penalty.precision, rtol=0, atol=0)
    assert again.ewc.penalty.constant == whole.ewc.penalty.constant


def _saved(state: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_load_refuses_other_plugins_names_and_shapes(digits_permuted: Any) -> None:
    plugin = EWCPlugin(ewc_lambda=1.0)
    trained(digits_permuted, plugin)
    state = plugin.state_dict()
    with pytest.raises(ValueError, match="mode='separate'"):
        EWCPlugin(ewc_lambda=1.0, mode="online").load_state_dict(state)
    with pytest.raises(ValueError, match="not the state of an EWCPlugin"):
        plugin.load_state_dict({"penalty": state["penalty"]})
    broken = {**state, "penalty": {**state["penalty"], "constant": float("nan")}}
    fresh = EWCPlugin(ewc_lambda=1.0)
    with pytest.raises(ValueError, match="constant"):
        fresh.load_state_dict(broken)
    assert fresh.importances == {}
    for model, message in (
        (nn.Sequential(nn.Linear(64, 12)), "'2.weight' is protected"),
        (nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10)), r"'0.weight' has shape \(6, 64\)"),
    ):
        fresh.load_state_dict(state)
        before = snapshot(model)
        with pytest.raises(ValueError, match=message):
            naive(model, fresh).train(digits_permuted.train_stream[1], eval_streams=[])
        assert_same(snapshot(model), before, rtol=0, atol=0)


def test_strategy_is_the_template_plus_the_plugin(digits_permuted: Any) -> None:
    ends = []
    for ready in (True, False):
        torch.manual_seed(0)
        model = mlp()
        if ready:
            given: list[Any] = []
            strategy = naive(model, cls=EWC, ewc_lambda=10.0, labels="empirical")
            assert isinstance(strategy.ewc, EWCPlugin)
            assert given == []
        else:
            strategy = naive(model, EWCPlugin(ewc_lambda=10.0, labels="empirical"))
        strategy.train(digits_permuted.train_stream[:2], eval_streams=[])
        ends.append(snapshot(model))
    assert_same(*ends, rtol=0, atol=0)
    with pytest.raises(TypeError, match="unexpected keyword argument: lables"):
        naive(mlp(), cls=EWC, ewc_lambda=1.0, lables="exact")


def test_strategy_explains_avalanches_arguments_too() -> None:
    model = mlp()
    options = {"model": model, "optimizer": sgd(model), "ewc_lambda": 1.0}
    with pytest.raises(TypeError, match="decay_factor is called gamma here"):
        EWC(**options, decay_factor=0.5)
    with pytest.raises(TypeError, match="keep_importance_data does not exist here"):
        EWC(**options, keep_importance_data=True)
    for positional in ((model, sgd(model), nn.CrossEntropyLoss(), 0.4), (model, sgd(model), 0.4)):
        with pytest.raises(TypeError, match=r"positional: write EWC\(model=..., optimizer=..., ewc_lambda=...\)"):
            EWC(*positional)  # type: ignore[misc]

    class Own(EWC):
        def __init__(self, strength: float, **kwargs: Any) -> None:
            super().__init__(ewc_lambda=strength, **kwargs)

    with pytest.warns(UserWarning, match="Avalanche is transitioning"):
        own = Own(0.4, model=model, optimizer=sgd(model))
    assert own.ewc.ewc_lambda == 0.4
