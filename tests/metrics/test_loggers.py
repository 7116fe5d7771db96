"""All metrics of the four methods through all of Avalanche's loggers: nothing is lost, and no training ends early."""

from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger, WandBLogger
from avalanche.training.plugins import EvaluationPlugin
from dgr_cases import net, vae
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim import SGD

from avl_plugins import DEN, DGR, EWC, DynamicallyExpandableNetwork, Progressive, ProgressiveNetwork
from avl_plugins.metrics import (
    auroc_metrics,
    capacity_metrics,
    chaudhry_forgetting_metrics,
    column_metrics,
    den_metrics,
    ewc_metrics,
    replay_metrics,
    sensitivity_metrics,
    transfer_metrics,
)
from avl_plugins.metrics.pictures import Picture

wandb = pytest.importorskip("wandb")
pytestmark = pytest.mark.filterwarnings("ignore:task . has not been trained on yet")


def body():
    return nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU())


EVERY = {"minibatch": True, "epoch": True, "experience": True}
CURVE = [(0, 0.4), (3, 0.6)]
METHODS = {
    "ewc": (EWC, net, {"ewc_lambda": 10.0}, [ewc_metrics(**EVERY, overlap=True)]),
    "progressive": (
        Progressive,
        lambda: ProgressiveNetwork(body()),
        {},
        [column_metrics(), sensitivity_metrics(layers=True), transfer_metrics(baseline={1: CURVE}, phase="train")],
    ),
    "dgr": (DGR, net, {}, [replay_metrics(shape=(1, 8, 8), distance=True, samples=100)]),
    "den": (
        DEN,
        lambda: DynamicallyExpandableNetwork(body()),
        {"expand_by": 3, "loss_threshold": 0.0},
        [den_metrics(), auroc_metrics(accuracy=True)],
    ),
}


@pytest.fixture
def loggers(tmp_path, monkeypatch):
    """One of each kind, and a list of what Weights & Biases is given: (step, name, value)."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    chart = wandb.plot.CustomChart  # Avalanche looks for it where older versions had it
    monkeypatch.setattr(wandb, "viz", SimpleNamespace(CustomChart=chart), raising=False)
    options = {"mode": "offline", "id": "test", "settings": wandb.Settings(console="off")}
    weights_and_biases = WandBLogger(dir=tmp_path, save_code=False, params=options)
    given, log = [], wandb.log

    def note(values, step):
        given.extend((step, name, value) for name, value in values.items())
        log(values, step=step)

    monkeypatch.setattr(wandb, "log", note)
    csv = CSVLogger(str(tmp_path / "csv"))
    text, interactive = TextLogger(StringIO()), InteractiveLogger()
    interactive.file = StringIO()
    yield [TensorboardLogger(tmp_path / "tb"), text, interactive, csv, weights_and_biases], given
    csv.close()
    wandb.finish()


@pytest.mark.parametrize("method", METHODS)
def test_all_metrics_go_through_all_loggers(method, loggers, digits_split, digits_classes, tmp_path):
    strategy, model, options, own = METHODS[method]
    loggers, given = loggers
    torch.manual_seed(0)
    network = model()
    if method == "dgr":
        options = {"generator": vae(), "generator_iterations": 30}  # more than the solver has
    metrics = [accuracy_metrics(**EVERY, stream=True), loss_metrics(**EVERY), capacity_metrics(), *own]
    evaluator = EvaluationPlugin(*metrics, chaudhry_forgetting_metrics(experience=True, stream=True), loggers=loggers)
    trained = strategy(
        model=network,
        optimizer=SGD(network.parameters(), lr=0.1),
        train_mb_size=20,
        eval_mb_size=100,
        evaluator=evaluator,
        **options,
    )
    benchmark = digits_classes if method == "dgr" else digits_split
    for experience in benchmark.train_stream[:3]:
        trained.train(experience)
        trained.eval(benchmark.test_stream[:3])
    history = evaluator.get_all_metrics()
    pictures = {name for name, (_, values) in history.items() if isinstance(values[0], Picture)}
    assert any(name.startswith(f"{method}/") for name in pictures)
    assert {type(value) for _, values in history.values() for value in values} == {float, Picture}

    cards = sorted(name for name in history if not name.startswith("Loss"))  # as TensorBoard sorts them
    assert cards[0].startswith(("Top1_Acc", "AUROC")), "accuracy comes first"

    loggers[0].writer.flush()
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"scalars": 0}).Reload()
    assert set(events.Tags()["images"]) == pictures
    for name in history.keys() - pictures:
        values = [scalar.value for scalar in events.Scalars(name)]
        assert values == pytest.approx(history[name][1], rel=1e-6, nan_ok=True)

    steps = [step for step, *_ in given]
    assert steps == sorted(steps), "else what comes late is dropped"
    for name, (xs, values) in history.items():
        found = {step: value for step, key, value in given if key == name}
        assert found.keys() == set(xs)
        for x, expected in dict(zip(xs, values, strict=True)).items():
            if name in pictures:
                assert np.array_equal(np.asarray(found[x].image), np.asarray(expected))
            else:
                assert found[x] == pytest.approx(expected, nan_ok=True)

    for text in (loggers[1].file.getvalue(), loggers[2].file.getvalue()):
        assert "forgetting/StreamMaxForgetting/eval_phase" in text
        assert "Picture" not in text
        assert "object at" not in text
    assert len((tmp_path / "csv" / "eval_results.csv").read_text().splitlines()) == 1 + 3 * 3
