"""Avalanche's own plugins and strategies: those that can be saved come back with the same bits; others are refused."""

import inspect
import logging
import random

import pytest
import torch
from avalanche.core import BasePlugin, SupervisedPlugin
from avalanche.models import SCRModel
from avalanche.models.base_model import BaseModel
from avalanche.models.packnet import PackNetModel
from avalanche.models.pnn import PNN
from avalanche.training import plugins as avalanche
from avalanche.training import supervised
from avalanche.training.losses import MaskedCrossEntropy
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates.base import BaseTemplate
from avalanche.training.templates.base_sgd import PeriodicEval
from avalanche.training.utils import ParamData
from checkpoint_cases import MODELS, OPTIMIZERS, benchmark, build, differences, evaluator, outcome
from torch import nn

from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.checkpoint.known import UnsaveableError
from avl_plugins.checkpoint.resume import CheckpointEvery
from avl_plugins.checkpoint.strategy_state import capture, restore

pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated function:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


class Features(nn.Module, BaseModel):
    """A network that says its features, as LFL and feature distillation want it."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(64, 16), nn.ReLU()), nn.Linear(16, 10)

    def get_features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.body(x))


class Remembered(Features):
    features = None

    def forward(self, x):
        self.features = self.body(x)
        return self.head(self.features)


def plain():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


class GEM(avalanche.GEMPlugin):
    """Without the solver of quadratic programs, which is not installed everywhere."""

    def solve_quadprog(self, g):
        return self.G.mean(0)


# A model, and a plugin for it whose loss, gradient or weights depend on what it has kept.
PLUGINS = {
    "ewc": ("multihead", lambda model: avalanche.EWCPlugin(100.0)),
    "ewc online": ("multihead", lambda model: avalanche.EWCPlugin(100.0, mode="online", decay_factor=0.5)),
    "synaptic intelligence": ("multihead", lambda model: avalanche.SynapticIntelligencePlugin(1e5)),
    "mas": ("multihead", lambda model: avalanche.MASPlugin(10.0)),
    "rwalk": ("multihead", lambda model: avalanche.RWalkPlugin(ewc_lambda=1.0, delta_t=1)),
    "gem": ("multihead", lambda model: GEM(10, 0.5)),
    "gss": (plain, lambda model: avalanche.GSS_greedyPlugin(mem_size=60, mem_strength=2, input_size=[64])),
    "cwr*": (plain, lambda model: avalanche.CWRStarPlugin(model)),
    "from scratch": ("incremental", lambda model: avalanche.FromScratchTrainingPlugin()),
    "lwf": ("multihead", lambda model: avalanche.LwFPlugin(10.0)),
    "lwf, one head": ("incremental", lambda model: avalanche.LwFPlugin(10.0)),
    "lfl": (Features, lambda model: avalanche.LFLPlugin(1.0)),
    "feature distillation": (Remembered, lambda model: avalanche.FeatureDistillationPlugin(10.0)),
    "masked cross-entropy": (plain, lambda model: MaskedCrossEntropy(mask="seen")),
}


def with_plugin(name, seed=3, strategy="naive", more=()):
    torch.manual_seed(seed)
    kind, make = PLUGINS[name]
    model = MODELS[kind]() if isinstance(kind, str) else kind()
    made = build(strategy, train_epochs=1, train_mb_size=8)
    made.model, made.optimizer = model, OPTIMIZERS["adam"](model.parameters())
    plugin = make(model)
    made.plugins[:0] = [plugin, *more]
    if isinstance(plugin, MaskedCrossEntropy):
        made._criterion = plugin
    return made


def digits_for(name):
    kind = PLUGINS[name][0]
    return benchmark("multihead" if kind == "multihead" else "incremental", train=200, test=50)


def own_state(strategy):
    """What a file holds of the plugin that is being tested."""
    return capture(strategy)["plugins"][0]


@pytest.mark.parametrize("name", PLUGINS)
def test_plugins_with_plain_state_come_back(tmp_path, name):
    digits, whole = digits_for(name), with_plugin(name)
    for number in (0, 1):
        whole.train(digits.train_stream[number])
        whole.eval(digits.test_stream)
    save_checkpoint(whole, tmp_path / "run.pt")
    saved = own_state(whole)
    whole.train(digits.train_stream[2])
    whole.eval(digits.test_stream)
    second = with_plugin(name, seed=99)
    assert differences(saved, own_state(second)) != []  # there is something to bring back
    assert load_checkpoint(second, tmp_path / "run.pt") == 2
    assert differences(saved, own_state(second)) == []
    second.train(digits.train_stream[2])
    second.eval(digits.test_stream)
    assert differences(outcome(whole), outcome(second)) == []
    assert differences(own_state(whole), own_state(second)) == []


class Killed(Exception):
    pass


class KillAt(SupervisedPlugin):
    """Saves at the n-th safe point and ends the run there."""

    __constants__ = ("path", "number")

    def __init__(self, path, number):
        super().__init__()
        self.path, self.number = path, number

    def safe_point(self, strategy):
        self.number -= 1
        if self.number == 0:
            save_checkpoint(strategy, self.path)
            raise Killed


@pytest.mark.parametrize("name", PLUGINS)
def test_plugins_with_plain_state_come_back_inside_an_experience(tmp_path, name):
    digits = digits_for(name)

    def run(strategy, start=0):
        for experience in digits.train_stream[start:2]:
            strategy.train(experience)
            strategy.eval(digits.test_stream)
        return strategy

    whole = run(with_plugin(name, strategy="resumable"))
    points = -(-len(digits.train_stream[0].dataset) // 8) + 1  # of the first experience: its steps and its epoch
    with pytest.raises(Killed):
        run(with_plugin(name, strategy="resumable", more=[KillAt(tmp_path / "run.pt", points + 2)]))
    second = with_plugin(name, seed=99, strategy="resumable", more=[KillAt(tmp_path / "run.pt", 0)])
    assert load_checkpoint(second, tmp_path / "run.pt") == 1
    assert second.progress.iteration == 2
    run(second, start=1)
    assert differences(outcome(whole), outcome(second)) == []
    assert differences(own_state(whole), own_state(second)) == []


def test_an_earlier_state_comes_back_into_a_used_strategy(tmp_path):
    """Where a plugin has something by now, and had nothing then."""
    digits = digits_for("mas")
    for name in ("mas", "lwf", "rwalk"):
        strategy = with_plugin(name)
        before = own_state(strategy)
        save_checkpoint(strategy, tmp_path / "run.pt")
        strategy.train(digits.train_stream[0])
        assert differences(before, own_state(strategy)) != []
        load_checkpoint(strategy, tmp_path / "run.pt")
        assert differences(before, own_state(strategy)) == []


@pytest.mark.parametrize(
    ("name", "attribute", "moves"),
    [
        ("ewc", "importances", True),
        ("mas", "importance", True),
        ("rwalk", "exp_scores", True),
        ("synaptic intelligence", "syn_data", False),  # on the CPU wherever the model is
        ("gem", "memory_x", False),
    ],
)
def test_tensors_go_where_their_plugin_wants_them(name, attribute, moves):
    """From a CPU to another device, for which torch's "meta" stands."""
    strategy, second = with_plugin(name), with_plugin(name, seed=99)
    strategy.train(digits_for(name).train_stream[0])
    restore(second, capture(strategy), torch.device("meta"))
    waiting, devices = [getattr(second.plugins[0], attribute)], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.values())
        else:
            devices.add((value.data if isinstance(value, ParamData) else value).device.type)
    assert devices == {"meta" if moves else "cpu"}
    assert {parameter.device.type for parameter in second.model.parameters()} == {"cpu"}


# Arguments of a plugin for a strategy; those that are not here need none.
ARGUMENTS = {
    "AGEMPlugin": lambda strategy: (1, 1),
    "CWRStarPlugin": lambda strategy: (strategy.model,),
    "EWCPlugin": lambda strategy: (1.0,),
    "EarlyStoppingPlugin": lambda strategy: (1, "test_stream"),
    "GEMPlugin": lambda strategy: (1, 0.5),
    "LFLPlugin": lambda strategy: (1.0,),
    "LRSchedulerPlugin": lambda strategy: (torch.optim.lr_scheduler.StepLR(strategy.optimizer, 1),),
    "MIRPlugin": lambda strategy: (1,),
    "RARPlugin": lambda strategy: (1,),
    "SynapticIntelligencePlugin": lambda strategy: (1.0,),
}
KINDS = {name: kind for name, kind in vars(avalanche).items() if inspect.isclass(kind) and issubclass(kind, BasePlugin)}
KINDS |= {kind.__name__: kind for kind in (Clock, PeriodicEval, MaskedCrossEntropy)}
KEEP_DATA = {
    *("AGEMPlugin", "BiCPlugin", "CoPEPlugin", "FeCAMOracle", "GDumbPlugin", "GenerativeReplayPlugin", "MIRPlugin"),
    *("MemoryFeCAMUpdate", "MemoryNCMUpdate", "NCMOracle", "RARPlugin", "ReplayPlugin"),
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_plugin_of_avalanche_is_served_or_refused_by_its_class(name):
    """Whatever it holds yet. An attribute that a new Avalanche adds, and nothing is known of, is noticed here."""
    strategy = build()
    plugin = KINDS[name](*ARGUMENTS.get(name, lambda strategy: ())(strategy))
    strategy.plugins.insert(0, plugin)
    if name in KEEP_DATA:
        with pytest.raises(
            UnsaveableError, match=f"^{name} keeps state in its attribute .* this class of Avalanche keeps"
        ):
            capture(strategy)
    else:
        capture(strategy)


def stock(kind, seed=3, **arguments):
    torch.manual_seed(seed)
    arguments = dict(arguments)
    model = arguments.pop("model", plain)()
    settings = {"train_mb_size": 8, "eval_mb_size": 50, "train_epochs": 1, "evaluator": evaluator()}
    more = {"model": model, "optimizer": OPTIMIZERS["adam"](model.parameters()), "criterion": nn.CrossEntropyLoss()}
    wanted = inspect.signature(kind.__init__).parameters
    return kind(**{**settings, **{name: value for name, value in more.items() if name in wanted}, **arguments})


SERVED = {
    "Naive": {},
    "Cumulative": {},
    "CWRStar": {"cwr_layer_name": None},
    "EWC": {"ewc_lambda": 100.0, "mode": "separate"},
    "FromScratchTraining": {},
    "GSS_greedy": {"mem_size": 60, "mem_strength": 2, "input_size": [64]},
    "LFL": {"lambda_e": 1.0, "model": Features},
    "LwF": {"alpha": 10.0, "temperature": 2.0},
    "MAS": {},
    "StreamingLDA": {"slda_model": nn.Identity(), "input_size": 64, "num_classes": 10},
    "SynapticIntelligence": {"si_lambda": 1.0},
}
REFUSED = {
    "AGEM": {"patterns_per_exp": 5, "sample_size": 5},
    "BiC": {},
    "CoPE": {},
    "DER": {},
    "ER_ACE": {},
    "ER_AML": {"feature_extractor": plain()},
    "GDumb": {},
    "GenerativeReplay": {},
    "ICaRL": {
        "feature_extractor": plain(),
        "classifier": nn.Linear(10, 10),
        "optimizer": torch.optim.SGD(plain().parameters(), lr=0.1),
        "memory_size": 20,
        "buffer_transform": None,
        "fixed_memory": True,
    },
    "MER": {},
    "MIR": {"batch_size_mem": 5, "mem_size": 20, "subsample": 5},
    "PNNStrategy": {"model": lambda: PNN(num_layers=1, in_features=64, hidden_features_per_column=8)},
    "PackNet": {"post_prune_epochs": 1, "prune_proportion": 0.5, "model": lambda: PackNetModel(plain())},
    "Replay": {},
    "SCR": {"augmentations": nn.Identity(), "model": lambda: SCRModel(plain(), nn.Identity())},
}
# JointTraining is in test_interrupted.py; GEM needs a solver, and autoencoders need images, to be trained.
SERVED_ELSEWHERE = {"JointTraining": {}, "GEM": {"patterns_per_exp": 5, "memory_strength": 0.5}}
SERVED_ELSEWHERE |= {"AETraining": {"device": "cpu"}, "VAETraining": {}}
PRETRAINED = {"AR1", "ExpertGateStrategy", "FeatureReplay", "LearningToPrompt"}


@pytest.mark.parametrize("name", SERVED_ELSEWHERE)
def test_strategies_that_are_not_trained_here_can_be_saved(tmp_path, name):
    kind = getattr(supervised, name)
    save_checkpoint(stock(kind, **SERVED_ELSEWHERE[name]), tmp_path / "run.pt")
    assert load_checkpoint(stock(kind, **SERVED_ELSEWHERE[name]), tmp_path / "run.pt") == 0


def test_the_tables_and_the_docstring_name_every_strategy_of_avalanche():
    found = {n for n, k in vars(supervised).items() if inspect.isclass(k) and issubclass(k, BaseTemplate)}
    assert found == {*SERVED, *SERVED_ELSEWHERE, *REFUSED, *PRETRAINED}
    text = inspect.getdoc(save_checkpoint)
    served, refused = text.split("These cannot", 1)
    assert all(f"`{name}`" in served for name in (*SERVED, *SERVED_ELSEWHERE))
    assert all(f"`{name}`" in refused for name in (*REFUSED, *PRETRAINED))


@pytest.mark.parametrize("name", SERVED)
def test_strategies_of_avalanche_that_can_be_saved(tmp_path, name):
    kind, digits = getattr(supervised, name), benchmark(train=200, test=50)
    whole = stock(kind, **SERVED[name])
    for number in (0, 1):
        whole.train(digits.train_stream[number])
        whole.eval(digits.test_stream)
    save_checkpoint(whole, tmp_path / "run.pt")
    whole.train(digits.train_stream[2])
    whole.eval(digits.test_stream)
    second = stock(kind, seed=99, **SERVED[name])
    assert load_checkpoint(second, tmp_path / "run.pt") == 2
    second.train(digits.train_stream[2])
    second.eval(digits.test_stream)
    states = [capture(strategy) for strategy in (whole, second)]
    for state in states:
        dict(state["plugins"])["EvaluationPlugin"].pop("metrics")  # clocks
    metrics = [{k: v for k, v in s.evaluator.get_all_metrics().items() if "Time" not in k} for s in (whole, second)]
    assert differences(*metrics) == []
    for state in states:
        for key in ("last_metric_results", "all_metric_results", "_metric_values"):
            dict(state["plugins"])["EvaluationPlugin"].pop(key)
    assert differences(*states) == []


@pytest.mark.filterwarnings("ignore:Buffer size")
@pytest.mark.parametrize("name", REFUSED)
def test_strategies_of_avalanche_that_cannot_be_saved_are_refused_before_training(tmp_path, caplog, name):
    strategy = stock(getattr(supervised, name), **REFUSED[name])
    with pytest.raises(UnsaveableError, match=r"with on_unsaveable=|changes its shape in adaptation"):
        save_checkpoint(strategy, tmp_path / "run.pt")
    for _ in range(3):
        assert not save_checkpoint(strategy, tmp_path / "run.pt", on_unsaveable="warn")
    assert caplog.text.count("training goes on without checkpoints: ") == 1
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_every_with_a_plugin_that_cannot_be_saved(tmp_path, caplog):
    """Before the training, and in front of the evaluation that comes first."""
    digits, path = benchmark(train=100, test=50), tmp_path / "run.pt"

    def made(*more):
        random.seed(3)
        return build("resumable", plugins=[avalanche.AGEMPlugin(5, 5), *more], train_epochs=1, eval_every=1)

    strategy = made(CheckpointEvery(path, iterations=1))
    with pytest.raises(UnsaveableError, match="AGEMPlugin keeps state in its attribute"):
        strategy.train(digits.train_stream[0])
    assert strategy.clock.total_iterations == 0
    assert strategy.evaluator.get_all_metrics() == {}
    strategy = made(CheckpointEvery(path, iterations=1, on_unsaveable="warn"))
    with caplog.at_level(logging.WARNING):
        for experience in digits.train_stream[:2]:
            strategy.train(experience)
            save_checkpoint(strategy, path, on_unsaveable="warn")
    assert len(caplog.records) == 1
    assert "training goes on without checkpoints: AGEMPlugin keeps state" in caplog.text
    assert list(tmp_path.iterdir()) == []
    without = made()
    for experience in digits.train_stream[:2]:
        without.train(experience)
    assert differences(outcome(without), outcome(strategy)) == []


def test_state_that_becomes_unsaveable_in_training(tmp_path, caplog):
    """It says so at the next save; the file from before stays."""

    class Later(SupervisedPlugin):
        value = None

        def after_training_exp(self, strategy, **kwargs):
            self.value = object() if strategy.experience.current_experience else None

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    digits, path = benchmark(train=100, test=50), tmp_path / "run.pt"
    strategy = build("resumable", plugins=[CheckpointEvery(path, on_unsaveable="warn"), Later()], train_epochs=1)
    strategy.train(digits.train_stream[0])
    strategy.train(digits.train_stream[1])
    with caplog.at_level(logging.WARNING):
        strategy.train(digits.train_stream[2])
    assert "Later.state_dict()['value'] is a object, which a checkpoint cannot hold" in caplog.text
    fresh = build("resumable", plugins=[Later()])
    assert load_checkpoint(fresh, path) == 1
    assert fresh.progress.experience == 1
    with pytest.raises(UnsaveableError):
        save_checkpoint(strategy, path)
