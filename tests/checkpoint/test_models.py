"""Models whose names, shapes or buffers are not the plain ones: lazy, parametrised, tied, compiled and parallel."""

import pytest
import torch
from avalanche.models import IncrementalClassifier
from checkpoint_cases import OPTIMIZERS, benchmark, build, differences, outcome
from torch import nn

from avl_plugins.checkpoint.file import load_checkpoint, save_checkpoint
from avl_plugins.checkpoint.strategy_state import capture, restore

pytestmark = [
    pytest.mark.filterwarnings("ignore:Lazy modules are a new feature"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated"),
]
DIGITS = benchmark(train=100, test=50)


class Prototypes(nn.Module):
    """A buffer that training sets, registered as None."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.register_buffer("means", None)

    def forward(self, x):
        if self.training:
            self.means = x.mean(0) if self.means is None else 0.9 * self.means + 0.1 * x.mean(0)
        return self.layer(x if self.means is None else x - self.means)


class Running(nn.Module):
    """A buffer that changes in training, and is not in the state_dict."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.register_buffer("mean", torch.zeros(64), persistent=False)
        self.register_buffer("longest", None, persistent=False)

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
            self.longest = torch.arange(len(x) + int(self.mean.sum()) % 3)
        return self.layer(x - self.mean) + len(self.longest if self.longest is not None else ())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu())


def small(first=nn.Linear, wrap=lambda layer: layer):
    return nn.Sequential(wrap(first(64, 16)), nn.ReLU(), nn.Linear(16, 10))


MODELS = {
    "lazy": lambda: nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(10)),
    "weight norm": lambda: small(wrap=nn.utils.parametrizations.weight_norm),
    "spectral norm": lambda: small(wrap=nn.utils.parametrizations.spectral_norm),
    "orthogonal": lambda: small(wrap=nn.utils.parametrizations.orthogonal),
    "old weight norm": lambda: small(wrap=nn.utils.weight_norm),
    "old spectral norm": lambda: small(wrap=nn.utils.spectral_norm),
    "buffer from None": Prototypes,
    "buffer in no state_dict": Running,
    "tied": Tied,
    "parallel": lambda: nn.DataParallel(small()),
    "parallel inside": lambda: small(wrap=nn.DataParallel),
    "compiled": lambda: torch.compile(small(), backend="eager"),
    "compiled inside": lambda: small(wrap=lambda layer: torch.compile(layer, backend="eager")),
    "compiled and parallel": lambda: torch.compile(nn.DataParallel(small()), backend="eager"),
    "plain": small,
}


def built(name, seed=3):
    torch.manual_seed(seed)
    model = MODELS[name]()
    strategy = build("resumable", train_epochs=1)
    strategy.model, strategy.optimizer = model, OPTIMIZERS["adam"](model.parameters())
    return strategy


def trained(name):
    strategy = built(name)
    strategy.train(DIGITS.train_stream[0])
    strategy.eval(DIGITS.test_stream[:1])
    return strategy


def go_on(strategy):
    strategy.train(DIGITS.train_stream[1])
    strategy.eval(DIGITS.test_stream[:2])


def same_buffers(strategy, second):
    """Those in no state_dict, too."""
    return differences(dict(strategy.model.named_buffers()), dict(second.model.named_buffers())) == []


@pytest.mark.parametrize("name", MODELS)
def test_model_comes_back_and_goes_on_with_the_same_bits(tmp_path, name):
    strategy = trained(name)
    save_checkpoint(strategy, tmp_path / "run.pt")
    go_on(strategy)
    second = built(name, seed=99)
    assert load_checkpoint(second, tmp_path / "run.pt") == 1
    go_on(second)
    assert differences(outcome(strategy), outcome(second)) == []
    assert same_buffers(strategy, second)


@pytest.mark.parametrize("name", MODELS)
def test_model_saved_before_training(tmp_path, name):
    strategy = built(name)
    save_checkpoint(strategy, tmp_path / "run.pt")
    go_on(strategy)
    second = built(name, seed=99)
    load_checkpoint(second, tmp_path / "run.pt")
    go_on(second)
    assert differences(outcome(strategy), outcome(second)) == []
    assert same_buffers(strategy, second)


WRAPPED = ["plain", "compiled", "compiled inside", "parallel", "parallel inside", "compiled and parallel"]


@pytest.mark.parametrize("saved", WRAPPED)
@pytest.mark.parametrize("loaded", WRAPPED)
def test_wrapped_and_plain_models_load_each_others_files(tmp_path, saved, loaded):
    strategy = trained(saved)
    save_checkpoint(strategy, tmp_path / "run.pt")
    go_on(strategy)
    second = built(loaded, seed=99)
    load_checkpoint(second, tmp_path / "run.pt")
    go_on(second)
    for one, other in zip(strategy.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert differences(strategy.optimizer.state[one], second.optimizer.state[other]) == []
    names = dict(second.model.named_parameters())
    assert all(second.optimized_param_id[name] is names[name] for name in names)


@pytest.mark.parametrize("loaded", WRAPPED)
@pytest.mark.parametrize("kind", ["OptimizedModule", "DataParallel", "Sequential"])
def test_old_files_of_wrapped_models(kind, loaded):
    """The first files hold the wrapper's class and names."""
    strategy = trained("plain")
    strategy.model[0].bias.requires_grad_(False)
    plain = capture(strategy)
    model, optimizer = plain["model"], plain["optimizer"]
    prefix = {"OptimizedModule": "_orig_mod.", "DataParallel": "module."}.get(kind, "")

    def old(name):
        return (f"0._orig_mod{name[1:]}" if kind == "Sequential" and name[:1] == "0" else prefix + name).rstrip(".")

    del model["transient"]
    model["class"] = kind
    model["training"] = {"": True, "0": True, **{old(name): mode for name, mode in model["training"].items()}}
    if prefix:
        del model["training"]["0"]
    for part, entries in ((model, ("state", "tasks")), (optimizer, ("state",))):
        for entry in entries:
            part[entry] = {old(name): value for name, value in part[entry].items()}
    model["frozen"] = list(map(old, model["frozen"]))
    optimizer["learned"] = list(map(old, optimizer["learned"]))
    for group in optimizer["groups"]:
        group["params"] = list(map(old, group["params"]))
    second = built(loaded, seed=99)
    restore(second, plain)
    for one, other in zip(strategy.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert differences(strategy.optimizer.state[one], second.optimizer.state[other]) == []
    assert [not parameter.requires_grad for parameter in second.model.parameters()] == [False, True, False, False]


def test_growing_models_inside_wrappers(tmp_path):
    """Heads are found and made under the wrapper's names."""

    def made(seed):
        torch.manual_seed(seed)
        model = nn.DataParallel(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), IncrementalClassifier(16)))
        strategy = build("resumable", train_epochs=1)
        strategy.model, strategy.optimizer = model, OPTIMIZERS["adam"](model.parameters())
        return strategy

    strategy, second = made(3), made(99)
    strategy.train(DIGITS.train_stream[0])
    strategy.train(DIGITS.train_stream[1])
    save_checkpoint(strategy, tmp_path / "run.pt")
    load_checkpoint(second, tmp_path / "run.pt")
    assert differences(outcome(strategy), outcome(second)) == []


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [("lazy", "lazy"), ("plain", "lazy"), ("weight norm", "plain"), ("buffer from None", "plain"), ("tied", "plain")],
)
@pytest.mark.parametrize("initialised", [False, True])
def test_a_failed_load_leaves_such_models_as_they_were(saved, loaded, initialised):
    plain, second = capture(trained(saved)), trained(loaded) if initialised else built(loaded)
    plain["model"]["class"] = type(second.model).__qualname__
    plain["random"] = {}  # fails at the end, when the model has been filled, if not before
    kinds = [(id(parameter), type(parameter)) for parameter in second.model.parameters()]
    before = capture(second)
    with pytest.raises(ValueError, match="left as it was"):
        restore(second, plain)
    assert differences(before, capture(second)) == []
    assert [(id(parameter), type(parameter)) for parameter in second.model.parameters()] == kinds
    go_on(second)


def test_an_uninitialised_state_does_not_fit_an_initialised_model(tmp_path):
    save_checkpoint(built("lazy"), tmp_path / "run.pt")
    second = trained("lazy")
    before = capture(second)
    with pytest.raises(ValueError, match="left as it was"):
        load_checkpoint(second, tmp_path / "run.pt")
    assert differences(before, capture(second)) == []


def test_none_in_modules_of_torch_says_how_they_were_built(tmp_path):
    """Running statistics are not given to a BatchNorm that was built to have none."""

    def made(**arguments):
        strategy = build("resumable", train_epochs=1)
        strategy.model = nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10, **arguments))
        strategy.optimizer = OPTIMIZERS["adam"](strategy.model.parameters())
        return strategy

    save_checkpoint(made(), tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"Unexpected key\(s\) in state_dict: \"1.running_mean\""):
        load_checkpoint(made(track_running_stats=False), tmp_path / "run.pt")
