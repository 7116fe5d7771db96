import inspect
import io
import random
import warnings

import numpy as np
import pytest
import torch
from avalanche.evaluation import metrics as avalanche_metrics
from avalanche.evaluation.metric_results import AlternativeValues, TensorImage
from avalanche.evaluation.metrics import Mean, StreamConfusionMatrix, forward_transfer_metrics
from avalanche.logging import TensorboardLogger, TextLogger
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, LRSchedulerPlugin
from checkpoint_cases import benchmark, build, differences, outcome, train_and_evaluate
from matplotlib import pyplot
from PIL.Image import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from avl_plugins.checkpoint import past_data as _past_data
from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.checkpoint.plain import KIND, from_plain, to_plain
from avl_plugins.checkpoint.strategy_state import capture, restore


def resumed(path, kind, after, **arguments):
    """The outcomes of an uninterrupted run, and of one saved after `after` experiences and loaded elsewhere."""
    digits = benchmark(arguments.get("model", "incremental"))

    def save(strategy):
        if strategy.clock.train_exp_counter == after:
            save_checkpoint(strategy, path)

    whole = build(kind, **arguments)
    train_and_evaluate(whole, digits.train_stream, digits.test_stream, save)
    torch.rand(7), random.random(), np.random.rand()  # noqa: NPY002
    second = build(kind, seed=99, **arguments)
    assert load_checkpoint(second, path) == after
    train_and_evaluate(second, digits.train_stream[after:], digits.test_stream)
    return whole, second


@pytest.mark.filterwarnings("ignore:EWC fails in class-incremental training")
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("naive", "incremental"),
        ("naive", "multihead"),
        ("cumulative", "incremental"),
        ("cumulative", "multihead"),
        ("ewc", "incremental"),
        ("ewc", "multihead"),
    ],
)
def test_resumed_run_ends_with_the_same_bits(tmp_path, kind, model, optimizer):
    whole, second = resumed(tmp_path / "run.pt", kind, 2, model=model, optimizer=optimizer)
    assert differences(outcome(whole), outcome(second)) == []


def test_periodic_evaluation_and_initial_growth(tmp_path):
    """The first evaluation grows the classifier before the optimizer has seen it: a nameless parameter is left."""
    whole, second = resumed(tmp_path / "run.pt", "naive", 1, optimizer="adam", eval_every=1)
    assert differences(outcome(whole), outcome(second)) == []


def test_saved_before_the_first_training(tmp_path):
    whole, second = resumed_from_start(tmp_path / "run.pt")
    assert differences(outcome(whole), outcome(second)) == []


def resumed_from_start(path):
    digits = benchmark()
    whole = build()
    save_checkpoint(whole, path)
    train_and_evaluate(whole, digits.train_stream[:2], digits.test_stream)
    second = build(seed=99)
    assert load_checkpoint(second, path) == 0
    train_and_evaluate(second, digits.train_stream[:2], digits.test_stream)
    return whole, second


def test_scheduler_and_early_stopping_of_avalanche(tmp_path):
    path, digits = tmp_path / "run.pt", benchmark()

    def built(seed):
        strategy = build(seed=seed, train_epochs=4, eval_every=1)
        optimizer = strategy.optimizer
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        plugins = [
            LRSchedulerPlugin(scheduler, metric="train_loss", reset_lr=False, reset_scheduler=False),
            EarlyStoppingPlugin(patience=2, val_stream_name="train_stream", metric_name="Top1_Acc_Stream"),
        ]
        strategy.plugins[:0] = plugins
        return strategy

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric .* used by the EarlyStopping plugin")
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad=True")
        whole = built(3)
        train_and_evaluate(whole, digits.train_stream[:2], digits.test_stream)
        save_checkpoint(whole, path)
        train_and_evaluate(whole, digits.train_stream[2:4], digits.test_stream)
        second = built(99)
        load_checkpoint(second, path)
        train_and_evaluate(second, digits.train_stream[2:4], digits.test_stream)
    assert differences(outcome(whole), outcome(second)) == []
    rates = [strategy.optimizer.param_groups[0]["lr"] for strategy in (whole, second)]
    assert rates[0] == rates[1] < 0.05


def test_file_is_plain_and_state_is_by_name(tmp_path):
    strategy = build(optimizer="adam")
    digits = benchmark()
    train_and_evaluate(strategy, digits.train_stream[:1], digits.test_stream[:1])
    save_checkpoint(strategy, tmp_path / "run.pt")
    content = torch.load(tmp_path / "run.pt", weights_only=True)
    optimizer = content["state"]["optimizer"]
    assert set(optimizer["state"]) == {name for name, _ in strategy.model.named_parameters()}
    saved = optimizer["state"]["0.weight"]["exp_avg"]
    assert torch.equal(saved, strategy.optimizer.state[strategy.model[0].weight]["exp_avg"])
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


def test_parameters_grown_by_an_evaluation_go_by_their_learned_name(tmp_path):
    """The optimizer holds the old parameter; its state is dropped by the next train(), as in a run without a load."""
    strategy, digits = build(optimizer="adam"), benchmark()
    train_and_evaluate(strategy, digits.train_stream[:1], digits.test_stream)
    stale = strategy.optimized_param_id["4.classifier.weight"]
    assert stale is not strategy.model[4].classifier.weight
    save_checkpoint(strategy, tmp_path / "run.pt")
    second = build(optimizer="adam")
    load_checkpoint(second, tmp_path / "run.pt")
    assert second.model[4].classifier.weight.shape == strategy.model[4].classifier.weight.shape
    named = dict(second.model.named_parameters())
    assert second.optimizer.param_groups[0]["params"] == [named[name] for name in strategy.optimized_param_id]
    assert "4.classifier.weight" not in {n for n, p in named.items() if p in second.optimizer.state}
    assert all(second.optimized_param_id[name] is named[name] for name in strategy.optimized_param_id)


def test_frozen_parameters_modes_groups_and_random_states(tmp_path):
    def built():
        strategy = build()
        first, *others = strategy.model.parameters()
        strategy.optimizer.param_groups.clear()
        strategy.optimizer.add_param_group({"params": [first], "lr": 0.5})
        strategy.optimizer.add_param_group({"params": others})
        return strategy

    strategy = built()
    strategy.model[1].weight.requires_grad_(False)
    strategy.model[1].eval()
    strategy.optimizer.param_groups[1]["lr"] = 0.125
    save_checkpoint(strategy, tmp_path / "run.pt")
    expected = torch.rand(3), random.gauss(0, 1), np.random.rand(3)  # noqa: NPY002
    second = built()
    load_checkpoint(second, tmp_path / "run.pt")
    assert torch.equal(torch.rand(3), expected[0])
    assert random.gauss(0, 1) == expected[1]
    assert np.array_equal(np.random.rand(3), expected[2])  # noqa: NPY002
    assert not second.model[1].weight.requires_grad
    assert second.model[0].weight.requires_grad
    assert not second.model[1].training
    assert second.model[0].training
    assert [group["lr"] for group in second.optimizer.param_groups] == [0.5, 0.125]
    assert second.optimizer.param_groups[0]["params"] == [second.model[0].weight]


def test_criterion_with_parameters_is_saved_and_trained(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, y):
            return nn.functional.cross_entropy(output * self.scale, y)

    def built():
        strategy = build(criterion=Scaled())
        strategy.optimizer.add_param_group({"params": strategy._criterion.parameters()})
        return strategy

    digits, strategy = benchmark(), built()
    strategy.train(digits.train_stream[0])
    save_checkpoint(strategy, tmp_path / "run.pt")
    second = built()
    load_checkpoint(second, tmp_path / "run.pt")
    assert second._criterion.scale == strategy._criterion.scale != 1
    momentum = second.optimizer.state[second._criterion.scale]["momentum_buffer"]
    assert momentum == strategy.optimizer.state[strategy._criterion.scale]["momentum_buffer"]


def test_cumulative_notices_another_stream(tmp_path):
    strategy, digits = build("cumulative"), benchmark()
    train_and_evaluate(strategy, digits.train_stream[:2], digits.test_stream)
    save_checkpoint(strategy, tmp_path / "run.pt")
    second = build("cumulative")
    load_checkpoint(second, tmp_path / "run.pt")
    save_checkpoint(second, tmp_path / "again.pt")  # before the data have been found again
    third = build("cumulative")
    load_checkpoint(third, tmp_path / "again.pt")
    assert sum(isinstance(plugin, _past_data.PastData) for plugin in third.plugins) == 1
    with pytest.raises(ValueError, match="build the same benchmark"):
        third.train(benchmark(train=150).train_stream[2])
    third = build("cumulative")
    load_checkpoint(third, tmp_path / "again.pt")
    third.train(digits.train_stream[2])
    assert len(third.dataset) == sum(len(experience.dataset) for experience in digits.train_stream[:3])


def test_tensorboard_goes_on_and_discards_what_came_after_the_file(tmp_path):
    digits, folder = benchmark(), tmp_path / "tb"

    def built():
        return build(loggers=[TensorboardLogger(folder)])

    first = built()
    train_and_evaluate(first, digits.train_stream[:1], digits.test_stream[:1])
    save_checkpoint(first, tmp_path / "run.pt")
    at_save = first.clock.train_iterations
    first.train(digits.train_stream[2])  # what a killed run would have logged
    first.evaluator.loggers[0].writer.close()
    second = built()
    load_checkpoint(second, tmp_path / "run.pt")
    second.train(digits.train_stream[1])
    second.evaluator.loggers[0].writer.close()
    events = EventAccumulator(str(folder)).Reload()
    curve = events.Scalars("Top1_Acc_MB/train_phase/train_stream/Task000")
    history = second.evaluator.get_all_metrics()["Top1_Acc_MB/train_phase/train_stream/Task000"]
    steps, values = [event.step for event in curve], [event.value for event in curve]
    assert steps == sorted(steps)
    assert at_save < steps[-1] == second.clock.train_iterations - 1
    # The step of saving itself is in both runs.
    expected = [value for x, value in zip(*history, strict=True) if x != at_save]
    assert [v for x, v in zip(steps, values, strict=True) if x != at_save] == pytest.approx(expected)


def test_metrics_of_every_kind_come_back(tmp_path):
    """Figures come back as pictures, tensors and numbers with the same bits, defaultdicts with their factory."""
    pyplot.switch_backend("agg")
    strategy = build()
    metrics = [StreamConfusionMatrix(num_classes=10), *forward_transfer_metrics(experience=True, stream=True)]
    strategy.evaluator.metrics += metrics
    digits = benchmark()
    strategy.eval_every = strategy.plugins[-2].eval_every = 0
    strategy.plugins[-2].do_initial = True
    strategy.train(digits.train_stream[0], eval_streams=[digits.test_stream])
    strategy.evaluator.last_metric_results["image"] = TensorImage(torch.rand(3, 4, 4))
    save_checkpoint(strategy, tmp_path / "run.pt")
    pyplot.close("all")
    second = build()
    second.evaluator.metrics += [StreamConfusionMatrix(num_classes=10)]
    second.evaluator.metrics += forward_transfer_metrics(experience=True, stream=True)
    load_checkpoint(second, tmp_path / "run.pt")
    mine, theirs = (s.evaluator.last_metric_results for s in (strategy, second))
    assert torch.equal(mine.pop("image").image, theirs.pop("image").image)
    assert differences(mine, theirs) == []
    pictured = theirs["ConfusionMatrix_Stream/eval_phase/test_stream"]
    assert isinstance(pictured, AlternativeValues)
    assert isinstance(pictured.alternatives[0], Image)
    second.evaluator.all_metric_results["new"][0].append(1)  # the factory is still there
    initial = [m.forward_transfer.initial for m in strategy.evaluator.metrics if hasattr(m, "forward_transfer")]
    again = [m.forward_transfer.initial for m in second.evaluator.metrics if hasattr(m, "forward_transfer")]
    assert initial == again != []


@pytest.mark.filterwarnings("ignore:More than 20 figures have been opened")
@pytest.mark.parametrize("name", sorted(name for name in vars(avalanche_metrics) if name.endswith("_metrics")))
def test_every_metric_of_avalanche_comes_back(tmp_path, name):
    """With all its places of measuring; a fresh one and one in use take the state, and go on."""
    pyplot.switch_backend("agg")
    make, digits = getattr(avalanche_metrics, name), benchmark("multihead", train=60, test=30)
    if name in ("MAC_metrics", "gpu_usage_metrics", "ram_usage_metrics"):
        pytest.skip("for networks without task labels, for a GPU, and with a thread that is waited for")
    arguments = {"num_classes": 10, "paths_to_monitor": ".", "top_k": 2, "save_image": False, "wandb": False}
    wanted = inspect.signature(make).parameters
    arguments = {key: value for key, value in arguments.items() if key in wanted} | {
        key: True for key, value in wanted.items() if value.default is False and key not in ("save_image", "wandb")
    }

    def built():
        strategy = build("naive", "multihead", eval_every=0)
        own = EvaluationPlugin(make(**arguments), loggers=[TextLogger(io.StringIO())])
        strategy.plugins[strategy.plugins.index(strategy.evaluator)] = strategy.evaluator = own
        return strategy

    strategy, second = built(), built()
    strategy.train(digits.train_stream[0], eval_streams=[digits.test_stream])
    strategy.eval(digits.test_stream)
    save_checkpoint(strategy, tmp_path / "run.pt")
    for _ in range(2):
        load_checkpoint(second, tmp_path / "run.pt")
        history = second.evaluator.get_all_metrics()
        assert history.keys() == strategy.evaluator.get_all_metrics().keys()
        second.train(digits.train_stream[1], eval_streams=[digits.test_stream])
        second.eval(digits.test_stream)
    pyplot.close("all")


def test_plain_values_of_every_kind():
    from collections import OrderedDict, defaultdict, deque

    value = {
        "numpy": [np.float32(0.1), np.int64(3), np.bool_(True), np.str_("a")],
        "array": np.arange(6.0).reshape(2, 3),
        "deque": deque([1, 2], maxlen=2),
        "default": defaultdict(list, {(1, "a"): [1.5]}),
        "ordered": OrderedDict(b=1, a=2),
        "sets": ({1, 2}, frozenset({"x"})),
        "bytes": b"\x00\xff",
        "view": torch.arange(10.0)[2:4],
        "@": "a key that marks kinds",
        "complex": 1 + 2j,
        "nan": float("nan"),
    }
    plain = to_plain(value, "value")
    back = from_plain(plain)
    assert back["numpy"] == [float(np.float32(0.1)), 3, True, "a"]
    assert [type(item) for item in back["numpy"]] == [float, int, bool, str]
    assert np.array_equal(back["array"], value["array"])
    assert back["deque"] == [1, 2]
    assert back["default"] == {(1, "a"): [1.5]}
    assert list(back["ordered"]) == ["b", "a"]
    assert back["sets"] == ({1, 2}, {"x"})
    assert back["bytes"] == b"\x00\xff"
    assert torch.equal(back["view"], torch.tensor([2.0, 3.0]))
    assert plain["items"][7][1].untyped_storage().nbytes() == 8
    assert back["@"] == "a key that marks kinds"
    current = {"deque": deque(maxlen=2), "default": defaultdict(list), "means": defaultdict(Mean)}
    mean = Mean()
    mean.update(0.5, 3)
    filled = from_plain(to_plain({"deque": [3, 4], "default": {1: [2]}, "means": {7: mean}}, "x"), current)
    assert filled is current
    assert filled["deque"] == deque([3, 4], maxlen=2)
    assert filled["deque"].maxlen == 2
    assert filled["default"][5] == []
    assert filled["means"][7].summed == 1.5
    assert filled["means"][8].result() == 0.0


def test_evaluator_without_history(tmp_path):
    def built():
        strategy = build()
        quiet = EvaluationPlugin(strategy.evaluator.metrics, loggers=strategy.evaluator.loggers, collect_all=False)
        strategy.plugins[strategy.plugins.index(strategy.evaluator)] = quiet
        strategy.evaluator = quiet
        return strategy

    strategy, digits = built(), benchmark()
    train_and_evaluate(strategy, digits.train_stream[:1], digits.test_stream[:1])
    save_checkpoint(strategy, tmp_path / "run.pt")
    second = built()
    load_checkpoint(second, tmp_path / "run.pt")
    mine, theirs = (each.evaluator.get_last_metrics() for each in (strategy, second))
    assert differences(mine, theirs) == []


def test_models_of_our_own_grow_through_their_extra_state(tmp_path):
    class Columns(nn.Module):
        def __init__(self):
            super().__init__()
            self.columns = nn.ModuleList([nn.Linear(64, 10)])
            self.register_load_state_dict_pre_hook(self._grow_first)

        def add(self):
            self.columns.append(nn.Linear(64, 10))

        def forward(self, x):
            return sum(column(x) for column in self.columns)

        def get_extra_state(self):
            return {"columns": np.int64(len(self.columns))}

        def set_extra_state(self, state):
            pass

        @staticmethod
        def _grow_first(module, state, prefix, *args):
            while len(module.columns) < state[f"{prefix}_extra_state"]["columns"]:
                module.add()

    def built():
        model = Columns()
        strategy = build()
        strategy.model = model
        strategy.optimizer = torch.optim.Adam(model.parameters())
        return strategy

    strategy, digits = built(), benchmark()
    strategy.train(digits.train_stream[0])
    strategy.model.add()
    strategy.train(digits.train_stream[1])
    save_checkpoint(strategy, tmp_path / "run.pt")
    strategy.train(digits.train_stream[2])
    second = built()
    load_checkpoint(second, tmp_path / "run.pt")
    assert second.optimizer.param_groups[0]["params"] == list(second.model.parameters())
    second.train(digits.train_stream[2])
    assert len(second.model.columns) == 2
    states = [[s.optimizer.state[p] for p in s.model.parameters()] for s in (strategy, second)]
    assert differences(*states) == []


@pytest.mark.parametrize("model", ["incremental", "multihead"])
def test_models_from_a_gpu_grow_here(model):
    """As a file holds them that was saved on a GPU, loaded without one."""
    stream = benchmark(model).train_stream
    strategy = build("naive", model)
    for experience in stream[:2]:
        strategy.train(experience)
    plain = capture(strategy)
    plain["model"]["state"] = {k: {KIND: "device", "value": v} for k, v in plain["model"]["state"].items()}
    second = build("naive", model, seed=4)
    restore(second, plain)
    assert differences(outcome(strategy), outcome(second)) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_checkpoints_move_between_devices(tmp_path):
    digits = benchmark()
    for here, there in (("cpu", "cuda"), ("cuda", "cpu")):
        strategy = build("ewc", optimizer="adam", device=here)
        train_and_evaluate(strategy, digits.train_stream[:2], digits.test_stream)
        save_checkpoint(strategy, tmp_path / "run.pt")
        second = build("ewc", optimizer="adam", device=there)
        load_checkpoint(second, tmp_path / "run.pt", map_location=there)
        assert {p.device.type for p in second.model.parameters()} == {there}
        for a, b in zip(strategy.model.parameters(), second.model.parameters(), strict=True):
            assert torch.equal(a.cpu(), b.cpu())
        train_and_evaluate(second, digits.train_stream[2:3], digits.test_stream)


def test_map_location_takes_strings_and_devices(tmp_path):
    strategy = build("ewc")
    strategy.train(benchmark().train_stream[0])
    save_checkpoint(strategy, tmp_path / "run.pt")
    for device in ("cpu", torch.device("cpu")):
        second = build("ewc")
        assert load_checkpoint(second, tmp_path / "run.pt", map_location=device) == 1
        assert differences(outcome(strategy), outcome(second)) == []
