"""All strategies on a GPU: what they learn and grow stays there, and checkpoints go on there."""

import checkpoint_cases as cases
import pytest
import rl_cases
import torch
from den_cases import NETWORKS, grown
from ewc_cases import ToFloat64, assert_same, mlp, naive, snapshot
from torch import Tensor, nn

from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.den.expansion import add_units
from avl_plugins.ewc.plugin import EWCPlugin
from benchmarks.data.arrays import digits, split

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
RUNS = [
    ("ewc", "incremental"),
    ("ewc", "multihead"),
    ("dgr", "incremental"),
    ("progressive", "progressive"),
    ("progressive-cached", "progressive"),
    ("den", "den"),
    ("den-proximal", "den-fixed"),
]


def devices(value):
    """Devices of all tensors with more than one number in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return {value.device.type} if value.numel() > 1 else set()
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return {device for one in values for device in devices(one)}


@pytest.mark.filterwarnings("ignore:EWC fails in class-incremental training")
@pytest.mark.filterwarnings("ignore:task . has not been trained on yet")
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize(("strategy", "model"), RUNS)
def test_trains_and_goes_on_there(tmp_path, strategy, model, optimizer):
    data = cases.benchmark(model)
    first = cases.build(strategy, model, optimizer, device="cuda")
    cases.train_and_evaluate(first, data.train_stream[:2], data.test_stream[:2])
    save_checkpoint(first, tmp_path / "run.pt")
    second = cases.build(strategy, model, optimizer, device="cuda", seed=4)
    assert load_checkpoint(second, tmp_path / "run.pt") == 2
    for run in (first, second):
        torch.manual_seed(5)
        cases.train_and_evaluate(run, data.train_stream[2:3], data.test_stream[:3])
        assert {x.device.type for x in (*run.model.parameters(), *run.model.buffers())} == {"cuda"}
        assert devices(list(run.optimizer.state.values())) <= {"cuda"}
    there = second.model.state_dict()
    assert list(there) == list(first.model.state_dict())
    for name, value in first.model.state_dict().items():
        torch.testing.assert_close(there[name], value, rtol=1e-2, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


def test_ewc_ends_where_it_does_on_the_cpu():
    """In float64, so that orders of summation hardly show."""
    ends = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = nn.Sequential(ToFloat64(), mlp().double())
        plugin = EWCPlugin(ewc_lambda=1.0)
        strategy = naive(model, plugin, device=device)
        for experience in split(digits(), 5, seed=0).train_stream:
            torch.manual_seed(1)
            strategy.train(experience)
        ends[device] = snapshot(model) | {"penalty": plugin.last_penalty}
    assert devices(ends["cuda"]) == {"cuda"}
    assert_same({name: x.cpu() for name, x in ends["cuda"].items()}, ends["cpu"], rtol=1e-6, atol=1e-9)
    assert ends["cpu"]["penalty"] > 0


@pytest.mark.parametrize("kind", ["mlp", "conv", "all_conv"])
def test_growth_keeps_outputs_of_den_to_the_bit(kind):
    net, x = grown(kind, [2] * len(NETWORKS[kind]().hidden))
    net, x = net.to("cuda"), x.to("cuda")
    before = [net(x, label) for label in (0, 1)]
    net.add_task(2, 3)
    add_units(net, [3] * len(net.hidden))
    assert {p.device.type for p in net.parameters()} == {"cuda"}
    for label, output in enumerate(before):
        assert torch.equal(net.eval()(x, label), output)


@pytest.mark.parametrize("make", [rl_cases.actor_critic, rl_cases.dqn])
def test_agents_play_there(make):
    benchmark = rl_cases.two_tasks()
    strategy = make(device="cuda")
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert rl_cases.played(strategy, benchmark)
    assert {p.device.type for p in strategy.model.parameters()} == {"cuda"}
    assert all(torch.isfinite(p).all() for p in strategy.model.parameters())
    assert devices(list(strategy.optimizer.state.values())) == {"cuda"}


@pytest.mark.parametrize("make", [rl_cases.actor_critic, rl_cases.dqn])
def test_agents_go_on_there_from_a_file_of_a_cpu(make, tmp_path):
    benchmark = rl_cases.two_tasks()
    strategy, other = make(), make(device="cuda")
    strategy.train(benchmark.train_stream[0])
    save_checkpoint(strategy, tmp_path / "file")
    assert load_checkpoint(other, tmp_path / "file") == 1
    other.train(benchmark.train_stream[1])
    assert other.steps == 96
    assert devices(other.state_dict().get("buffers", {})) <= {"cpu"}, "buffers stay in the host's memory"
