"""DEN in a strategy: what each phase trains and leaves alone, the order of phases, ablations, and bad use."""

import copy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EarlyStoppingPlugin, SynapticIntelligencePlugin
from avalanche.training.supervised import Cumulative, JointTraining, Naive
from den_cases import WIDTHS, build, mlp
from torch import nn

from avl_plugins import InMemoryLoaderPlugin
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.den.plugin import DENPlugin
from avl_plugins.den.stand_in import NewUnits, Selected
from avl_plugins.ewc.plugin import EWCPlugin
from benchmarks.data.arrays import split

pytestmark = pytest.mark.slow


class Watch(SupervisedPlugin):
    """Copies of the network at the beginning and end of each phase, and what the optimizer trained."""

    def __init__(self):
        super().__init__()
        self.seen, self.steps, self.trained, self.losses = {}, [], {}, []

    def before_training_iteration(self, strategy, **kwargs):
        step = strategy.den.phase.name
        if not self.steps or self.steps[-1] != step:
            self.steps.append(step)
            self.seen[step, "first"] = copy.deepcopy(strategy.model)
            names = {id(p): name for name, p in strategy.model.named_parameters()}
            groups = strategy.optimizer.param_groups
            self.trained[step] = sorted(names[id(p)] for group in groups for p in group["params"])
            self.fresh = len(strategy.optimizer.state) == 0
            assert self.fresh, "every phase starts with fresh state"

    def after_training_iteration(self, strategy, **kwargs):
        self.seen[strategy.den.phase.name, "last"] = copy.deepcopy(strategy.model)


def two_tasks(digits_split, **options):
    watch = Watch()
    strategy = build(plugins=[InMemoryLoaderPlugin(), watch], **options)
    strategy.train(digits_split.train_stream[0])
    after_first = copy.deepcopy(strategy.model)
    watch.steps.clear(), watch.seen.clear()
    strategy.train(digits_split.train_stream[1])
    return strategy, watch, after_first


def weights(net, layer):
    return net.hidden[layer].layer.weight.detach()


def test_phases_in_order_and_what_they_train(digits_split):
    strategy, watch, after_first = two_tasks(digits_split, epochs=3, l1=1.0, drift_threshold=0.001)
    assert watch.steps == ["head", "retraining", "expansion", "drift", "split"]
    assert watch.trained["head"] == ["heads.1.bias", "heads.1.weight"]
    assert all(name.startswith("stand_in.") for name in watch.trained["retraining"] + watch.trained["expansion"])
    shared = [f"layers.{k}.layer.{kind}" for k in (0, 1) for kind in ("bias", "weight")]
    heads = [f"heads.{k}.{kind}" for k in (0, 1) for kind in ("bias", "weight")]
    assert watch.trained["drift"] == sorted(shared + heads)
    entry = strategy.den.history[-1]
    assert entry["added"] == [4, 4]
    assert sum(entry["split"]) > 0
    assert entry["loss"] > 0
    assert strategy.model.stand_in is None
    assert strategy.model.training_on is None
    held = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in strategy.model.parameters()}
    assert all(p.requires_grad for p in strategy.model.parameters())
    assert torch.equal(weights(watch.seen["head", "last"], 0), weights(after_first, 0)), "Eq. 3 is of the head alone"


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.Adam(p, lr=3e-3, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    ],
)
def test_retraining_moves_the_selected_part_only(digits_split, optimizer):
    """B1 and B6, with optimizers whose moments and decay would move the rest."""
    watch = Watch()
    options = {"l1": 0.0, "epochs": 4, "expand": None, "split": False}
    strategy = build(plugins=[InMemoryLoaderPlugin(), watch], optimizer=optimizer, **options)
    strategy.train(digits_split.train_stream[0])
    with torch.no_grad():
        weights(strategy.model, 1)[:, [3, 7]] = 0
        weights(strategy.model, 0)[:, 10:20] = 0
    before = copy.deepcopy(strategy.model)
    strategy.train(digits_split.train_stream[1])
    assert strategy.den.history[-1]["selected"] == [54, WIDTHS[0] - 2, WIDTHS[1]]
    stand_in = watch.seen["retraining", "last"].stand_in
    assert isinstance(stand_in, Selected)
    assert [tuple(weight.shape) for weight in stand_in.weights] == [(10, 54), (9, 10), (2, 9)], "a smaller net"
    inside = torch.ones_like(weights(before, 0), dtype=torch.bool)
    inside[[3, 7]] = inside[:, 10:20] = False
    change = weights(strategy.model, 0) - weights(before, 0)
    assert (change[~inside] == 0).all()
    assert (change[inside] != 0).float().mean() > 0.7, "all but inputs that are always 0, with decay nearly all"
    assert (weights(strategy.model, 1)[:, [3, 7]] == 0).all()
    assert torch.equal(strategy.model.head_of(0).weight, before.head_of(0).weight)


def test_retraining_has_no_drift_penalty_and_the_first_task_no_l2(digits_split):
    """B6: Eq. 4 is without the drift penalty, and Eq. 2 has L1 only."""
    options = {"expand": None, "split": False, "l1": 0.1, "epochs": 3}
    states = []
    for other in ({}, {"drift_lambda": 1e3}, {"l2": 0.5}):
        strategy = build(plugins=[InMemoryLoaderPlugin()], **options, **other)
        strategy.train(digits_split.train_stream[0])
        first = copy.deepcopy(strategy.model.state_dict())
        strategy.train(digits_split.train_stream[1])
        states.append((first, strategy.model.state_dict()))
    (first, plain), (_, drift), (first_l2, l2) = states
    name = "layers.0.layer.weight"
    assert torch.equal(drift[name], plain[name])
    assert torch.equal(first_l2[name], first[name])
    assert not torch.equal(l2[name], plain[name]), "mu of Eq. 4"


class StopAfter(SupervisedPlugin):
    """Ends phases early, after their first epoch."""

    def __init__(self, *phases):
        super().__init__()
        self.phases, self.epochs = phases, {}

    def after_training_epoch(self, strategy, **kwargs):
        step = strategy.den.phase.name
        self.epochs[step] = self.epochs.get(step, 0) + 1
        if step in self.phases:
            strategy.stop_training()


@pytest.mark.parametrize("phases", [("retraining",), ("head", "drift", "split")])
def test_stopping_ends_one_phase(digits_split, phases):
    """The next phase, and the next task, are trained all the same; also where the last epoch asks for it."""
    stop = StopAfter(*phases)
    strategy = build(plugins=[InMemoryLoaderPlugin(), stop], epochs=3, drift_threshold=1e-4)
    strategy.train(digits_split.train_stream[:3])
    heads = stop.epochs.pop("head")
    assert heads == 2 if "head" in phases else heads > 2
    each = {step: 2 * (1 if step in phases else 3) for step in ("retraining", "expansion", "drift", "split")}
    assert stop.epochs == {"first": 3, **each}
    assert all(entry["added"] == [4, 4] and sum(entry["split"]) for entry in strategy.den.history[1:])


def test_expansion_trains_new_units_only(digits_split):
    strategy, watch, _ = two_tasks(digits_split, epochs=3, split=False, l1=0.1, group_lasso=0.0)
    first, last = watch.seen["expansion", "first"], watch.seen["expansion", "last"]
    assert isinstance(last.stand_in, NewUnits)
    for k, width in enumerate(WIDTHS):
        assert torch.equal(weights(first, k), weights(last, k)), "the stand-in is trained, the layers wait"
        below = None if k == 0 else WIDTHS[0]
        old = weights(strategy.model, k)[:width, :below]
        assert torch.equal(old, weights(first, k)[:width, :below])
    assert [layer.units for layer in strategy.model.hidden] == [WIDTHS[0] + 4, WIDTHS[1] + 4]
    assert not torch.equal(weights(strategy.model, 0)[-4:], weights(first, 0)[-4:])
    assert strategy.model.head_of(1).in_features == WIDTHS[1] + 4


@pytest.mark.parametrize("options", [{}, {"selective": False, "expand": None, "split": False}])
def test_heads_of_earlier_tasks_stand(digits_split, options):
    """Bit for bit through every phase, L1 and weight decay included: their gradient is none."""
    strategy, watch, after_first = two_tasks(
        digits_split,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
        **{"l1": 0.1, "drift_threshold": 1e-4, "epochs": 3, **options},
    )
    assert watch.steps == (["full"] if options else ["head", "retraining", "expansion", "drift", "split"])
    for name, parameter in after_first.head_of(0).named_parameters():
        assert torch.equal(dict(strategy.model.head_of(0).named_parameters())[name], parameter)
    assert not torch.equal(weights(strategy.model, 0)[: WIDTHS[0]], weights(after_first, 0))


def test_group_lasso_empties_units_and_they_go(digits_split):
    strategy, _, _ = two_tasks(digits_split, epochs=3, split=False, group_lasso=1000.0)
    entry = strategy.den.history[-1]
    assert entry["added"] == entry["removed"] == [4, 4]
    assert [layer.units for layer in strategy.model.hidden] == list(WIDTHS)
    assert strategy.model.capacity() == 1.0
    assert strategy.model.head_of(1).in_features == WIDTHS[1]


def test_old_outputs_stand_through_expansion(digits_split):
    """From the end of retraining to the end of expansion old tasks answer the same, bit for bit."""
    strategy, watch, _ = two_tasks(digits_split, epochs=2, split=False)
    x = torch.stack([x for x, *_ in digits_split.test_stream[0].dataset])
    retrained = watch.seen["expansion", "first"].eval()
    assert torch.equal(strategy.model.eval()(x, 0), retrained(x, 0))


def test_expansion_depends_on_the_loss_of_the_whole_set(digits_split):
    """Not on the last batch's (B9); the value is that of the criterion on all training data, or of the stream given."""
    for stream in (None, digits_split.test_stream):
        strategy, watch, _ = two_tasks(digits_split, split=False, validation_stream=stream, loss_threshold=1e9, l1=0.1)
        assert watch.steps == ["head", "retraining"]
        assert strategy.den.history[-1]["added"] == []
        data = (stream or digits_split.train_stream)[1].dataset
        x, y, _ = (torch.stack([torch.as_tensor(v) for v in part]) for part in zip(*data, strict=True))
        expected = nn.functional.cross_entropy(strategy.model.eval()(x, 1), y)
        assert strategy.den.history[-1]["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_split_always_runs(digits_split):
    """Alg. 1 has it outside the if: without expansion, too."""
    _, watch, _ = two_tasks(digits_split, loss_threshold=1e9, drift_threshold=1e-4)
    assert watch.steps == ["head", "retraining", "drift", "split"]


def test_drift_is_measured_from_the_weights_before_the_task(digits_split):
    strategy, watch, after_first = two_tasks(digits_split, expand=None, drift_threshold=1e-6, max_splits=2)
    drift = watch.seen["drift", "last"]
    moved = (weights(drift, 0) - weights(after_first, 0)).norm(dim=1)
    entry = strategy.den.history[-1]
    assert entry["drift"][0] == pytest.approx(float(moved.max()), rel=1e-5)
    assert entry["split"] == [2, 2]
    begun = watch.seen["split", "first"]
    top = moved.argsort(descending=True)[:2]
    assert torch.equal(weights(begun, 0)[top], weights(after_first, 0)[top]), "training is not undone elsewhere (B4)"
    assert torch.equal(weights(begun, 0)[-2:], weights(drift, 0)[top])
    others = [unit for unit in range(WIDTHS[0]) if unit not in top.tolist()]
    assert torch.equal(weights(begun, 0)[others], weights(drift, 0)[others])


def test_first_task_is_sparse(digits_split):
    for l1, share in ((0.0, (0.0, 0.0)), (0.1, (0.2, 0.95))):
        strategy = build(plugins=[InMemoryLoaderPlugin()], epochs=20, l1=l1)
        strategy.train(digits_split.train_stream[0])
        zeros = float((weights(strategy.model, 0) == 0).float().mean())
        assert share[0] <= zeros <= share[1]
        results = strategy.eval(digits_split.test_stream[:1])
        assert results["Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"] > 0.9
    assert strategy.den.history == [{"label": 0, "selected": [], "added": [], "removed": [], "drift": [], "split": []}]


def test_head_is_trained_until_it_converges(digits_split):
    """B1: not for one step."""
    _, watch, _ = two_tasks(digits_split, epochs=60, phase_epochs=1, head_tolerance=0.02, expand=None, split=False)
    change = watch.seen["head", "last"].head_of(1).weight - watch.seen["head", "first"].head_of(1).weight
    assert float(change.detach().abs().max()) > 0.05
    strategy, _, _ = two_tasks(digits_split, epochs=60, phase_epochs=1, head_tolerance=0.5, expand=None, split=False)
    assert 2 <= len(strategy.den._losses) < 60, "it stops where it has converged"


def test_all_tasks_are_kept(digits_split):
    strategy = build(plugins=[InMemoryLoaderPlugin()], epochs=10, expand_by=2)
    for experience in digits_split.train_stream:
        strategy.train(experience)
    results = strategy.eval(digits_split.test_stream)
    accuracies = [value for name, value in results.items() if "Acc_Exp" in name]
    assert min(accuracies) > 0.85
    assert len(strategy.den.history) == 5
    assert [layer.stamps == sorted(layer.stamps) for layer in strategy.model.hidden] == [True, True]


def test_convolutions_grow(digits_arrays):
    """All phases on feature maps: units are filters, and the layer above a flattened one reads four inputs of each."""
    body = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(24, 10), nn.ReLU()
    )  # fmt: skip
    net = DynamicallyExpandableNetwork(body)
    stream = split(digits_arrays, 5, seed=0, flat=False)
    sizes = {"expand_by": (2, 3), "max_splits": (1, 2)}  # of each layer
    strategy = build(net, plugins=[InMemoryLoaderPlugin()], epochs=15, drift_threshold=0.01, **sizes)
    strategy.train(stream.train_stream[:3])
    for entry in strategy.den.history[1:]:
        assert entry["added"] == [2, 3]
        assert entry["split"] == [1, 2]
    grown = [
        2 * (expanded + split) - sum(entry["removed"][k] for entry in strategy.den.history[1:])
        for k, (expanded, split) in enumerate([(2, 1), (3, 2)])
    ]
    assert [layer.units for layer in net.hidden] == [6 + grown[0], 10 + grown[1]]
    assert net.hidden[1].layer.weight.shape == (10 + grown[1], 4 * (6 + grown[0]))
    results = strategy.eval(stream.test_stream[:3])
    assert min(value for name, value in results.items() if "Acc_Exp" in name) > 0.85


def test_ablations(digits_split):
    _, watch, _ = two_tasks(digits_split, selective=False, expand=None, split=False)
    assert watch.steps == ["full"]
    strategy, watch, _ = two_tasks(digits_split, expand="constant", loss_threshold=1e9, group_lasso=1e6, split=False)
    assert watch.steps == ["head", "retraining", "expansion"]
    assert strategy.den.history[-1]["removed"] == [0, 0]
    assert [layer.units for layer in strategy.model.hidden] == [WIDTHS[0] + 4, WIDTHS[1] + 4]
    far = {}
    for weight in (0.0, 100.0):
        strategy, _, before = two_tasks(
            digits_split, selective=False, expand=None, split=False, retraining_drift=weight, l1=0.0
        )
        far[weight] = float((weights(strategy.model, 0) - weights(before, 0)).norm())
    assert far[100.0] < 0.2 * far[0.0]
    strategy, watch, before = two_tasks(digits_split, expand=None, split=False, retraining_drift=100.0, l1=0.0)
    assert watch.steps == ["head", "retraining"]
    assert float((weights(strategy.model, 0) - weights(before, 0)).norm()) < 0.2 * far[0.0]


def test_a_proximal_penalty_step_holds_what_the_gradient_shakes(digits_split):
    """At a large lambda Adam moves weights by the learning rate in each step; pulled back, old ones stay."""
    options = {"drift_lambda": 1e5, "retraining_drift": 1e5, "l1": 0.0, "drift_threshold": 1.0, "epochs": 5}
    far, accuracy = {}, {}
    for step in ("gradient", "proximal"):
        strategy, watch, before = two_tasks(digits_split, penalty_step=step, **options)
        assert watch.steps == ["head", "retraining", "expansion", "drift"]
        first = weights(strategy.model, 0)[: WIDTHS[0]]
        far[step] = float((first - weights(before, 0)).abs().max())
        x = torch.stack([x for x, *_ in digits_split.test_stream[0].dataset])
        with torch.no_grad():
            far[step, "outputs"] = float((strategy.model.eval()(x, 0) - before.eval()(x, 0)).abs().max())
        accuracy[step] = strategy.eval(digits_split.test_stream[1:2])[
            "Top1_Acc_Exp/eval_phase/test_stream/Task001/Exp001"
        ]
    assert far["gradient"] > 1e-3
    assert far["proximal"] < 1e-5
    assert far["proximal", "outputs"] < 0.1 * far["gradient", "outputs"]
    assert accuracy["proximal"] > 0.9


def test_the_loss_shows_the_penalty_of_a_proximal_step(digits_split):
    class Loss(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.added = []

        def before_backward(self, strategy, **kwargs):
            self.before = float(strategy.loss.detach())

        def after_backward(self, strategy, **kwargs):
            if strategy.den.phase.name == "drift":
                pairs = zip(strategy.model.hidden, strategy.den.weights_before, strict=True)
                squares = [
                    (own[tuple(map(slice, past.shape))] - past).square().sum()
                    for layer, both in pairs
                    for own, past in zip((layer.layer.weight, layer.layer.bias), both, strict=True)
                ]
                self.added.append((float(strategy.loss.detach()) - self.before, float(sum(squares).detach())))

    loss = Loss()
    strategy = build(plugins=[loss], penalty_step="proximal", drift_lambda=0.5, expand=None)
    strategy.train(digits_split.train_stream[:2])
    assert max(squares for _, squares in loss.added) > 1e-2
    for added, squares in loss.added:
        assert added == pytest.approx(0.5 * squares, rel=1e-3, abs=1e-6)


def test_parameter_groups_are_kept(digits_split):
    """Layers in groups of their own stay there through all phases and growth, and each parameter is there once."""
    net = mlp()
    groups = [{"params": layer.parameters(), "lr": 1e-3 * (1 + k)} for k, layer in enumerate(net.hidden)]
    strategy = build(net, optimizer=lambda _: torch.optim.Adam(groups), plugins=[InMemoryLoaderPlugin()])
    strategy.train(digits_split.train_stream[:2])
    assert sum(layer.units for layer in net.hidden) > sum(WIDTHS)
    held = [{id(p) for p in group["params"]} for group in strategy.optimizer.param_groups]
    for layer, own in zip(net.hidden, held, strict=True):
        assert {id(p) for p in layer.parameters()} <= own
    assert sum(len(own) for own in held) == len(list(net.parameters()))
    assert [group["lr"] for group in strategy.optimizer.param_groups] == [1e-3, 2e-3]


def test_bad_use(digits_split, digits_permuted):
    net = nn.Linear(64, 2)
    with pytest.raises(TypeError, match="trains a DynamicallyExpandableNetwork, and the model is a Linear"):
        Naive(model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1), plugins=[DENPlugin()]).train(
            digits_split.train_stream[0]
        )
    for plugin in (EWCPlugin(ewc_lambda=1.0), SynapticIntelligencePlugin(si_lambda=1.0)):
        with pytest.raises(ValueError, match=f"{type(plugin).__name__} keeps something for each parameter"):
            build(plugins=[plugin]).train(digits_split.train_stream[0])
    for name in ("expand_by", "max_splits"):
        with pytest.raises(ValueError, match=f"{name} must be one number or 2, one for each hidden layer, got"):
            build(**{name: (1, 2, 3)}).train(digits_split.train_stream[0])
    unknown = build(penalty_step="proximal", optimizer=torch.optim.Adagrad)
    with pytest.raises(ValueError, match=r"penalty_step='proximal' knows .*not Adagrad: use penalty_step='gradient'"):
        unknown.train(digits_split.train_stream[0])
    assert unknown.model.labels == []
    for template in (JointTraining, Cumulative):
        joint = mlp()
        with pytest.raises(ValueError, match=f"{template.__name__} trains on several tasks at once"):
            template(
                model=joint,
                optimizer=torch.optim.SGD(joint.parameters(), 0.1),
                criterion=nn.CrossEntropyLoss(),
                plugins=[DENPlugin()],
            ).train(digits_split.train_stream)
    early = EarlyStoppingPlugin(patience=1, val_stream_name="test_stream")
    with pytest.raises(ValueError, match="EarlyStoppingPlugin goes back to the best state since training began"):
        build(plugins=[early]).train(digits_split.train_stream[0])
    frozen = mlp()
    frozen.hidden[0].layer.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"layers\.0\.layer\.bias has requires_grad=False, and DENPlugin trains all"):
        build(frozen).train(digits_split.train_stream[0])
    assert not frozen.hidden[0].layer.bias.requires_grad
    with pytest.raises(ValueError, match=r"layers\.0\.layer\.weight is not in the optimizer, and DENPlugin trains all"):
        build(optimizer=lambda p: torch.optim.Adam(list(p)[1:])).train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match="all 3 experiences of the stream have the task label 0"):
        build().train(digits_permuted.train_stream[0])
    strategy = build(plugins=[InMemoryLoaderPlugin()], l1=1e5)
    strategy.train(digits_split.train_stream[0])
    with pytest.raises(ValueError, match=r"l1: task 1 selects .* drives too many weights to zero, lower it"):
        strategy.train(digits_split.train_stream[1])
