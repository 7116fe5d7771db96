"""The arms that the Progressive Networks tables compare, and the rows made of them."""

from dataclasses import dataclass

import pytest
import torch
from avalanche.models import PNN
from torch import nn

from benchmarks.harness.experiment import Context, Run
from benchmarks.progressive._arms import ARMS, make_model, train_arm
from benchmarks.progressive._rows import best_lambda, method_rows


@dataclass(frozen=True)
class Settings:
    reduction: float = 8
    alpha_init: float = 0.1
    cache_frozen: bool = True
    epochs: int = 5
    batch_size: int = 16
    optimizer: str = "adam"
    lr: float = 1e-2
    evaluate: str = "test"


def trunk():
    return nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU())


@pytest.mark.filterwarnings("ignore:No loggers specified")
def test_arms(digits_split):
    """Columns forget nothing; connected ones are larger by their laterals, one net is a fifth of five."""
    found = {}
    for arm in ARMS:
        torch.manual_seed(0)
        options = {"features": 20, "classes": 2, "ewc_lambda": 100.0}
        found[arm] = train_arm(arm, trunk(), digits_split, Settings(), Context(), **options)
        assert len(found[arm]["final"]) == len(found[arm]["after"]) == 5
    for arm in ("progressive", "linear", "independent"):
        assert found[arm]["forgetting"] == 0.0
        assert found[arm]["final"] == found[arm]["after"]
        assert sum(found[arm]["final"]) / 5 > 0.85
    own = 64 * 20 + 20 + 20 * 20 + 20
    head = 20 * 2 + 2
    assert found["independent"]["parameters"] == 5 * (own + head)
    assert found["finetune"]["parameters"] == found["ewc"]["parameters"] == own + 5 * head
    linear = sum(20 * k * 20 + 20 * k * 2 for k in range(5))
    assert found["linear"]["parameters"] == 5 * (own + head) + linear
    laterals = sum(2 * (k + 20 * k * 8 + 8) + 8 * 20 + 8 * 2 for k in range(1, 5))
    assert found["progressive"]["parameters"] == 5 * (own + head) + laterals
    assert {arm: result["ewc_lambda"] for arm, result in found.items()} == dict.fromkeys(ARMS) | {"ewc": 100.0}


def test_avalanches_network_has_the_trunks_layers():
    net = make_model("avalanche-pnn", trunk(), features=20, classes=2, settings=Settings())
    assert isinstance(net, PNN)
    assert [tuple(layer.columns[0].itoh.weight.shape) for layer in net.layers] == [(20, 64), (20, 20)]
    with pytest.raises(ValueError, match="arm 'best': expected one of progressive, linear"):
        make_model("best", trunk(), features=20, classes=2, settings=Settings())
    with pytest.raises(ValueError, match="linear layers only"):
        make_model("avalanche-pnn", nn.Sequential(nn.Conv2d(1, 2, 3)), features=2, classes=2, settings=Settings())


def test_ewc_needs_a_lambda(digits_split):
    with pytest.raises(ValueError, match="ewc_lambda: the arm ewc needs one"):
        train_arm("ewc", trunk(), digits_split, Settings(), Context(), features=20, classes=2, ewc_lambda=None)


def run(arm, seed=0, final=(0.5, 0.7), forgetting=0.0, parameters=100, ewc_lambda=None):
    measurements = {"final": list(final), "forgetting": forgetting, "parameters": parameters, "ewc_lambda": ewc_lambda}
    about = {"settings": {}, "data": "digits", "versions": {}, "device": "cpu", "threads": 1, "seconds": 60.0}
    return Run("x", "cpu", arm, seed, **about, commit="", date="", measurements=measurements)


def test_rows():
    """Means, the share of independent nets' parameters, and paired differences with their targets."""
    runs = [
        run(arm, seed, final=(level + seed / 100, level), forgetting=lost, parameters=size)
        for arm, level, lost, size in (
            ("progressive", 0.9, 0.0, 150),
            ("independent", 0.9, 0.0, 100),
            ("avalanche-pnn", 0.8, 0.1, 400),
            ("ewc", 0.7, 0.2, 20),
        )
        for seed in (0, 1, 2)
    ]
    runs += [run(f"ewc/lambda={value:g}", 1000, final=(f,), ewc_lambda=value) for value, f in ((1, 0.4), (10, 0.6))]
    rows = {
        (row.arm, row.metric): row for row in method_rows(runs, ("progressive", "independent", "ewc", "avalanche-pnn"))
    }
    accuracy, size = "mean accuracy at the end", "parameters / independent nets'"
    assert rows["progressive", accuracy].mean == pytest.approx(0.905)
    assert (rows["progressive", "forgetting"].mean, rows["progressive", "forgetting"].met) == (0.0, "met")
    assert (rows["progressive", size].mean, rows["progressive", size].met) == (1.5, "met")
    assert rows["avalanche-pnn", size].mean == 4.0
    assert rows["progressive - independent", accuracy].met == "met"
    assert rows["progressive - avalanche-pnn", accuracy].mean == pytest.approx(0.1)
    assert rows["progressive - avalanche-pnn", accuracy].met == "met"
    assert rows["ewc", accuracy].note == "lambda 10, chosen on held-out images (edge of the search)"
    assert rows["progressive", accuracy].note == ""


def test_what_is_forgotten_misses_the_target():
    rows = method_rows([run("progressive", seed, forgetting=1e-4 * seed) for seed in range(3)], ("progressive",))
    assert [row.met for row in rows if row.metric == "forgetting"] == ["missed"]


def test_best_lambda():
    runs = [
        run(f"ewc/lambda={v:g}", 1000, final=(f,), ewc_lambda=v) for v, f in ((1.0, 0.4), (10.0, 0.6), (100.0, 0.6))
    ]
    assert best_lambda(runs) == 10.0
    with pytest.raises(ValueError, match="no search run of 'ewc': run the experiment without --arms once"):
        best_lambda([run("progressive")])
