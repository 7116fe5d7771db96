"""Small runs for the checkpoint tests: strategies built the same way each time, and a comparison to the last bit."""

import dataclasses
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metric_results import AlternativeValues
from avalanche.evaluation.metrics import (
    accuracy_metrics,
    amca_metrics,
    bwt_metrics,
    class_accuracy_metrics,
    confusion_matrix_metrics,
    forgetting_metrics,
    loss_metrics,
    timing_metrics,
    topk_acc_metrics,
)
from avalanche.logging import TextLogger
from avalanche.models import IncrementalClassifier, MTSimpleMLP
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Cumulative, Naive
from torch import Tensor, nn

from avl_plugins.checkpoint.resume import Resumable, phase
from avl_plugins.checkpoint.strategy_state import capture
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.den.strategy import DEN
from avl_plugins.dgr.networks import mlp_critic, mlp_decoder
from avl_plugins.dgr.strategy import DGR
from avl_plugins.dgr.wgan_gp import WGANGP
from avl_plugins.ewc.strategy import EWC
from avl_plugins.progressive.network import ProgressiveNetwork
from avl_plugins.progressive.strategy import Progressive
from benchmarks.data.arrays import digits, split


class ResumableNaive(Resumable, Naive):
    pass


class ResumableCumulative(Resumable, Cumulative):
    pass


def dgr(**arguments: Any) -> DGR:
    """A small adversarial generator, six iterations an experience."""
    generator = WGANGP(
        generator=mlp_decoder(4, (64,), units=(16,), output=nn.Tanh()),
        critic=mlp_critic((64,), units=(16,)),
        latent=4,
        samples=8,
        critic_steps=2,
        average=0.5,
    )
    return DGR(generator=generator, generator_iterations=6, chunk=10, **arguments)  # below a batch, which has 16


STRATEGIES: dict[str, Callable[..., Any]] = {
    "naive": Naive,
    "cumulative": Cumulative,
    "resumable": ResumableNaive,
    "ewc": lambda **arguments: EWC(ewc_lambda=5.0, **arguments),
    "resumable-cumulative": ResumableCumulative,
    "dgr": dgr,
    "dgr-exact": lambda **arguments: DGR(replay="exact", **arguments),
    "progressive": Progressive,
    "den": lambda **arguments: DEN(expand_by=3, max_splits=2, loss_threshold=0.0, drift_threshold=0.01, **arguments),
    "den-proximal": lambda **arguments: DEN(
        expand_by=3,
        max_splits=2,
        loss_threshold=0.0,
        drift_threshold=1e-4,
        drift_step="proximal",
        retraining_drift=0.25,
        **arguments,
    ),
    "progressive-cached": lambda **arguments: Progressive(cache_frozen=True, **arguments),
}
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3),
}


def incremental() -> nn.Module:
    """Grows by two classes an experience; dropout draws random numbers and BatchNorm has buffers."""
    return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), IncrementalClassifier(16))


def progressive() -> nn.Module:
    """Grows by a column an experience; dropout draws random numbers and BatchNorm has buffers."""
    layers = (nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.ReLU())
    return ProgressiveNetwork(nn.Sequential(*layers))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "incremental": incremental,
    "multihead": lambda: MTSimpleMLP(input_size=64, hidden_size=16),
    "progressive": progressive,
    "den": lambda: DynamicallyExpandableNetwork(
        nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 12), nn.ReLU())
    ),
    # Nothing random, so that what a new head reads is computed once.
    "den-fixed": lambda: DynamicallyExpandableNetwork(
        nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU())
    ),
}


def benchmark(model: str = "incremental", experiences: int = 5, train: int = 200, test: int = 100) -> Any:
    """Digits in experiences of two classes; with task labels for the multi-head models."""
    arrays = digits()
    few = dataclasses.replace(
        arrays,
        x_train=arrays.x_train[:train],
        y_train=arrays.y_train[:train],
        x_test=arrays.x_test[:test],
        y_test=arrays.y_test[:test],
    )
    return split(few, experiences, seed=0, task_labels=model != "incremental")


def evaluator(loggers: Any = None) -> EvaluationPlugin:
    return EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True, epoch_running=True, experience=True, stream=True),
        loss_metrics(epoch=True, stream=True),
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(experience=True, stream=True),
        confusion_matrix_metrics(stream=True, num_classes=10, save_image=False),
        class_accuracy_metrics(stream=True),
        amca_metrics(),
        topk_acc_metrics(top_k=2, stream=True),
        timing_metrics(epoch=True, experience=True),
        loggers=loggers or [TextLogger(io.StringIO())],
    )


def build(
    strategy: str = "naive",
    model: str = "incremental",
    optimizer: str = "momentum",
    *,
    seed: int = 3,
    plugins: Any = (),
    loggers: Any = None,
    **arguments: Any,
) -> Any:
    torch.manual_seed(seed)
    network = MODELS[model]()
    settings = {"train_mb_size": 16, "eval_mb_size": 50, "train_epochs": 2, "criterion": nn.CrossEntropyLoss()}
    return STRATEGIES[strategy](
        model=network,
        optimizer=OPTIMIZERS[optimizer](network.parameters()),
        plugins=list(plugins),
        evaluator=evaluator(loggers),
        **{**settings, **arguments},
    )


def train_and_evaluate(strategy: Any, stream: Any, test_stream: Any, after: Callable[[Any], Any] | None = None) -> None:
    for experience in stream:
        strategy.train(experience)
        strategy.eval(test_stream)
        if after is not None:
            after(strategy)


class Distill(SupervisedPlugin):
    """Training of its own after each experience, in three phases, with state, random numbers and the optimizer."""

    def __init__(self, name: str = "distill") -> None:
        super().__init__()
        self.name = name
        self.calls: list[str] = []
        self.target = torch.zeros(())

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        for index in phase(strategy, f"{self.name}: draw", iterations=4):
            self.target = self.target + torch.rand(()) * index
        for _ in phase(strategy, f"{self.name}: fit", epochs=2):
            strategy._before_training_epoch(**kwargs)
            strategy.training_epoch(**kwargs)
            strategy._after_training_epoch(**kwargs)
        for _ in phase(strategy, f"{self.name}: note", iterations=1):
            self.calls.append(f"{strategy.experience.current_experience} {float(self.target)!r}")

    def state_dict(self) -> dict[str, Any]:
        return {"calls": list(self.calls), "target": self.target}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls, self.target = list(state["calls"]), state["target"]


class Once(SupervisedPlugin):
    """Counts its `after_training_exp`, which a resumed experience must not call twice."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def outcome(strategy: Any) -> dict[str, Any]:
    """Everything a run ends with, except times: weights, optimizer state by name, metrics with history, clock."""
    names = {parameter: name for name, parameter in strategy.model.named_parameters()}
    still = {p: name for name, p in strategy.optimized_param_id.items()} | names  # evaluation may have replaced some
    return {
        "weights": dict(strategy.model.state_dict()),
        "frozen": [name for parameter, name in names.items() if not parameter.requires_grad],
        "groups": [[still[p] for p in group["params"]] for group in strategy.optimizer.param_groups],
        "optimizer": {names[p]: strategy.optimizer.state[p] for p in names if strategy.optimizer.state.get(p)},
        "learned": list(strategy.optimized_param_id),
        "last": _without_times(strategy.evaluator.get_last_metrics()),
        "history": _without_times(strategy.evaluator.get_all_metrics()),
        "clock": vars(strategy.clock),
        "plugins": [_plugin_state(plugin) for plugin in strategy.plugins if hasattr(plugin, "state_dict")],
    }


@contextmanager
def unchanged(strategy: Any) -> Iterator[None]:
    """Check that a strategy ends as it began."""
    before = everything(strategy)
    yield
    assert differences(before, everything(strategy)) == []


def everything(strategy: Any) -> dict[str, Any]:
    """The state of a strategy, and the objects that it consists of."""
    optimizer = strategy.optimizer
    return {
        "state": capture(strategy),
        "attributes": {name: id(value) for name, value in vars(strategy).items()},
        "modules": {name: id(module) for name, module in strategy.model.named_modules()},
        "tensors": {name: id(value) for name, value in _named_tensors(strategy.model)},
        "grads": {name: parameter.requires_grad for name, parameter in strategy.model.named_parameters()},
        "groups": [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups],
        "learned": {name: id(parameter) for name, parameter in (strategy.optimized_param_id or {}).items()},
        "plugins": [(id(plugin), {k: id(v) for k, v in vars(plugin).items()}) for plugin in strategy.plugins],
        "metrics": [(id(metric), {k: id(v) for k, v in vars(metric).items()}) for metric in strategy.evaluator.metrics],
    }


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _plugin_state(plugin: Any) -> dict[str, Any]:
    return {key: value for key, value in plugin.state_dict().items() if key != "fisher_seconds"}


def _without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.startswith("Time")}


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Name the places where two outcomes are not equal to the last bit."""
    if isinstance(one, Tensor):
        same = isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [where]
    if isinstance(one, AlternativeValues):
        tensors = [[v for v in values.alternatives if isinstance(v, Tensor)] for values in (one, other)]
        return differences(*tensors, where)
    if isinstance(one, dict):
        if not isinstance(other, dict) or list(one) != list(other):
            return [f"keys of {where}"]
        return [place for key in one for place in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)):
        if not isinstance(other, (list, tuple)) or len(one) != len(other):
            return [f"length of {where}"]
        pairs = enumerate(zip(one, other, strict=True))
        return [place for i, (a, b) in pairs for place in differences(a, b, f"{where}[{i}]")]
    return [] if not isinstance(other, Tensor) and one == other else [f"{where}: {one!r}, {other!r}"]
