"""InMemoryLoaderPlugin added everywhere: all of Avalanche's strategies and plugins train as they do without it."""

import random
from functools import partial

import avalanche.training.plugins as plugins
import avalanche.training.supervised as supervised
import numpy as np
import pytest
import torch
import torchvision
from avalanche.benchmarks import nc_benchmark, split_online_stream
from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as tensor_dataset
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.models import PNN, FeCAMClassifier, NCMClassifier, SCRModel, SimpleMLP
from avalanche.models.dynamic_modules import TrainEvalModel
from avalanche.models.expert_gate import ExpertAutoencoder, ExpertGate
from avalanche.models.generator import MlpVAE
from avalanche.models.packnet import packnet_simple_mlp
from avalanche.models.utils import FeatureExtractorModel
from avalanche.training.losses import MaskedCrossEntropy
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates.base import BaseTemplate
from silent import Silent
from torch import nn
from torch.optim import SGD

from avl_plugins import InMemoryLoaderPlugin
from avl_plugins.data.serving import TensorLoader

pytestmark = pytest.mark.filterwarnings("ignore")  # Avalanche's strategies warn of themselves

CLASSES = 6
REPLAY = {"mem_size": 12, "batch_size_mem": 5}


def mlp():
    return SimpleMLP(num_classes=CLASSES, input_size=6, hidden_size=8)


def extractor():
    return FeatureExtractorModel(nn.Linear(6, 8), nn.Linear(8, CLASSES))


def prototypes(classifier):
    return TrainEvalModel(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, CLASSES), classifier())


def usual(name, make=mlp, criterion=nn.CrossEntropyLoss, **options):
    """A strategy with the usual arguments and these."""

    def build(**common):
        model = make()
        own = {} if criterion is None else {"criterion": criterion()}
        optimizer = SGD(model.parameters(), lr=0.1)
        return getattr(supervised, name)(model=model, optimizer=optimizer, **{**own, **common, **options})

    return build


def er_aml(**common):
    model = mlp()
    own = {"model": model, "feature_extractor": model.features, "optimizer": SGD(model.parameters(), lr=0.1)}
    return supervised.ER_AML(mem_size=40, batch_size_mem=5, **{**common, **own, "train_mb_size": 4})


def icarl(**common):
    features, classifier = nn.Linear(6, CLASSES), nn.Sigmoid()
    own = {"feature_extractor": features, "classifier": classifier, "optimizer": SGD(features.parameters(), lr=0.1)}
    return supervised.ICaRL(memory_size=12, buffer_transform=None, fixed_memory=True, **own, **common)


def slda(**common):
    own = {"slda_model": mlp(), "criterion": nn.CrossEntropyLoss(), "output_layer_name": "features"}
    return supervised.StreamingLDA(input_size=8, num_classes=CLASSES, **own, **common)


def prompt(**common):
    own = dict.fromkeys(("use_cls_features", "use_mask", "use_vit"), False)
    return supervised.LearningToPrompt(model_name="simpleMLP", num_classes=10, **own, **common)


def packnet(plugins, **common):
    """The strategy itself loses the plugins that it is given."""
    model = packnet_simple_mlp(CLASSES, 6, 8)
    own = {"model": model, "optimizer": SGD(model.parameters(), lr=0.1), "post_prune_epochs": 1}
    strategy = supervised.PackNet(prune_proportion=0.5, **own, **common)
    strategy.plugins[:1] = plugins
    return strategy


def reconstruct(strategy, make, **options):
    """An autoencoder, of which there is no accuracy."""

    def build(evaluator, **common):
        model = make()
        evaluator.metrics = [metric for metric in evaluator.metrics if "Acc" not in str(metric)]
        optimizer = SGD(model.parameters(), lr=1e-4)
        return strategy(model=model, optimizer=optimizer, evaluator=evaluator, **options, **common)

    return build


vae = reconstruct(supervised.VAETraining, partial(MlpVAE, (1, 4, 4), nhid=2))
autoencoder = reconstruct(supervised.AETraining, partial(ExpertAutoencoder, (256, 6, 6), 3, "cpu"), device="cpu")


def expert_gate(**common):
    model = ExpertGate(shape=(256, 6, 6), device="cpu")
    own = {"ae_train_mb_size": 8, "ae_train_epochs": 1, "ae_lr": 1e-4, "ae_latent_dim": 3}
    return supervised.ExpertGateStrategy(model=model, optimizer=SGD(model.parameters(), lr=0.1), **own, **common)


def generative(**common):
    generator = vae(train_mb_size=8, evaluator=EvaluationPlugin(loggers=[Silent()]))
    return usual("GenerativeReplay", partial(SimpleMLP, CLASSES, 16, 8), generator_strategy=generator)(**common)


STRATEGIES = {
    "AETraining": autoencoder,
    "AGEM": usual("AGEM", patterns_per_exp=5, sample_size=5),
    "AR1": partial(supervised.AR1, rm_sz=4, freeze_below_layer="end_features.0"),
    "BiC": usual("BiC", mem_size=20, stage_2_epochs=2),
    "CWRStar": usual("CWRStar", cwr_layer_name="classifier"),
    "CoPE": usual("CoPE", mem_size=12, n_classes=CLASSES, p_size=CLASSES),
    "Cumulative": usual("Cumulative"),
    "DER": usual("DER", **REPLAY),
    "ER_ACE": usual("ER_ACE", **REPLAY),
    "ER_AML": er_aml,
    "EWC": usual("EWC", ewc_lambda=0.4),
    "ExpertGateStrategy": expert_gate,
    "FeatureReplay": usual("FeatureReplay", criterion=MaskedCrossEntropy, last_layer_name="classifier"),
    "FromScratchTraining": usual("FromScratchTraining"),
    "GDumb": usual("GDumb", mem_size=20),
    "GEM": usual("GEM", patterns_per_exp=5),
    "GSS_greedy": usual("GSS_greedy", mem_size=60, mem_strength=2, input_size=[6]),
    "GenerativeReplay": generative,
    "ICaRL": icarl,
    "JointTraining": usual("JointTraining"),
    "LFL": usual("LFL", lambda_e=0.1),
    "LearningToPrompt": prompt,
    "LwF": usual("LwF", alpha=1.0, temperature=2),
    "MAS": usual("MAS"),
    "MER": usual("MER", **REPLAY),
    "MIR": usual("MIR", subsample=10, **REPLAY),
    "Naive": usual("Naive"),
    "PNNStrategy": usual("PNNStrategy", partial(PNN, num_layers=2, in_features=6, hidden_features_per_column=5)),
    "PackNet": packnet,
    "Replay": usual("Replay", mem_size=12),
    "SCR": usual("SCR", lambda: SCRModel(nn.Linear(6, 8), nn.Linear(8, 4)), None, **REPLAY),
    "StreamingLDA": slda,
    "SynapticIntelligence": usual("SynapticIntelligence", si_lambda=0.1),
    "VAETraining": vae,
}
TASKS = {"PNNStrategy", "PackNet", "ExpertGateStrategy"}
SHAPES = {
    "AETraining": (3, 8, 8),
    "ExpertGateStrategy": (3, 8, 8),
    "VAETraining": (1, 4, 4),
    "GenerativeReplay": (1, 4, 4),
}


def benchmark(name):
    shape = SHAPES.get(name, (6,))
    x = torch.rand(60, *shape, generator=torch.Generator().manual_seed(0))
    data = tensor_dataset(x, torch.arange(60) % CLASSES)
    return nc_benchmark(data, data, 3, task_labels=name in TASKS, shuffle=False)


class MobileNet(nn.Module):
    """A small one, with the parts that AR1 wants."""

    def __init__(self, pretrained, latent_layer_num):
        super().__init__()
        self.lat_features = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.end_features = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.output = nn.Linear(8, 50, bias=False)

    def forward(self, x, latent_input=None, return_lat_acts=False):
        latent = self.lat_features(x)
        both = latent if latent_input is None else torch.cat([latent, latent_input])
        logits = self.output(self.end_features(both))
        return (logits, latent) if return_lat_acts else logits


class AlexNet(nn.Module):
    """A small one, with the parts and sizes that ExpertGate wants."""

    def __init__(self, weights=None):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 256, 3), nn.AdaptiveAvgPool2d(6))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(256, 5))

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    """For networks with downloaded weights, a solver that is not installed, and an argument that torch has dropped."""
    monkeypatch.setattr(supervised.ar1, "MobilenetV1", MobileNet)
    monkeypatch.setitem(vars(torchvision.models), "alexnet", AlexNet)
    monkeypatch.setattr(plugins.GEMPlugin, "solve_quadprog", lambda self, g: g)
    steps = torch.optim.lr_scheduler.MultiStepLR
    monkeypatch.setattr(plugins.bic, "MultiStepLR", lambda *args, verbose, **options: steps(*args, **options))


def run(build, stream, tests, *others, ours):
    """Train with or without our plugin; return what must be the same, and the loaders that batches came from."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    watch = Loaders()
    metrics = [*loss_metrics(epoch=True, stream=True), *accuracy_metrics(stream=True)]
    strategy = build(
        train_mb_size=8,
        eval_mb_size=16,
        train_epochs=2,
        plugins=[*others, watch] if ours is None else [*others[:ours], InMemoryLoaderPlugin(), *others[ours:], watch],
        evaluator=EvaluationPlugin(metrics, loggers=[Silent()]),
    )
    parts = [list(stream)] if isinstance(strategy, supervised.JointTraining) else stream
    for experience in parts:
        strategy.train(experience)
        strategy.eval(tests)
    states = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    return strategy.model.state_dict(), strategy.evaluator.get_all_metrics(), states, watch.seen


class Loaders(SupervisedPlugin):
    """Notes the kinds of loaders that batches come from."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def before_training_iteration(self, strategy, **kwargs):
        self.seen.add(type(strategy.dataloader))

    before_eval_iteration = before_training_iteration


def check(build, stream, tests, *others, place, owner, caplog):
    """The same weights, metrics and random states; a log line where Avalanche's loader has stayed."""
    weights, metrics, states, _ = run(build, stream, tests, *(make() for make in others), ours=None)
    caplog.clear()
    found, found_metrics, found_states, loaders = run(build, stream, tests, *(make() for make in others), ours=place)
    assert TensorLoader in loaders
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    assert found_metrics == metrics
    assert found_states == states
    lines = [record.getMessage() for record in caplog.records if record.name == "avl_plugins.data.loading"]
    if owner is None:
        assert lines == []
    else:
        (line,) = lines
        assert f"{owner}Plugin uses a loader of its own, ReplayDataLoader" in line


OWN_LOADERS = {"BiC": "BiC", "CoPE": "CoPE", "GSS_greedy": "GSS_greedy", "Replay": "Replay", "SCR": "Replay"}
"""By strategy, the plugin that puts a loader of its own in place."""


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies(name, caplog):
    both = benchmark(name)
    owner = OWN_LOADERS.get(name)
    check(STRATEGIES[name], both.train_stream, both.test_stream, place=0, owner=owner, caplog=caplog)


SETS = {
    "Replay": lambda: plugins.ReplayPlugin(12),
    "RAR": lambda: plugins.RARPlugin(5, mem_size=12),
    "BiC": lambda: plugins.BiCPlugin(20, stage_2_epochs=1),
    "CoPE": lambda: plugins.CoPEPlugin(12, CLASSES, CLASSES),
    "GSS_greedy": lambda: plugins.GSS_greedyPlugin(60, 2, [6]),
}
"""Plugins that put a loader of their own in place."""
NCM, FECAM = partial(prototypes, NCMClassifier), partial(prototypes, FeCAMClassifier)
OTHERS = {
    "NCM": (NCM, lambda: plugins.CurrentDataNCMUpdate()),
    "NCM memory": (NCM, lambda: plugins.MemoryNCMUpdate(12)),
    "NCM oracle": (NCM, lambda: plugins.NCMOracle()),
    "FeCAM": (FECAM, lambda: plugins.CurrentDataFeCAMUpdate()),
    "FeCAM memory": (FECAM, lambda: plugins.MemoryFeCAMUpdate(30)),
    "FeCAM oracle": (FECAM, lambda: plugins.FeCAMOracle()),
    "distillation": (extractor, lambda: plugins.FeatureDistillationPlugin(1.0)),
    "RWalk": (extractor, lambda: plugins.RWalkPlugin(0.1, 0.9, 2)),
    "early stopping": (extractor, lambda: plugins.EarlyStoppingPlugin(1, "test_stream", "Loss_Stream")),
}
"""Models and plugins that are no strategy's."""


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", SETS)
def test_plugins_with_a_loader_of_their_own(name, place, caplog):
    both = benchmark(name)
    check(usual("Naive"), both.train_stream, both.test_stream, SETS[name], place=place, owner=name, caplog=caplog)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", OTHERS)
def test_other_plugins(name, place, caplog):
    both, (model, plugin) = benchmark(name), OTHERS[name]
    check(usual("Naive", model), both.train_stream, both.test_stream, plugin, place=place, owner=None, caplog=caplog)


@pytest.mark.parametrize("known", [True, False])
def test_online_streams(known, caplog):
    both = benchmark("online")
    parts = list(split_online_stream(both.train_stream, experience_size=9, access_task_boundaries=known))
    check(usual("Naive"), parts, both.test_stream, place=0, owner=None, caplog=caplog)


def test_no_strategy_is_forgotten():
    found = {name for name, cls in vars(supervised).items() if isinstance(cls, type) and issubclass(cls, BaseTemplate)}
    assert found == set(STRATEGIES)
