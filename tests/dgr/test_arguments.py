"""Arguments that cannot be, each refused by name where it is given; and what is refused at the first hook."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from avalanche.training import Naive
from dgr_cases import Recorder, build, gan, net, same, vae, weights
from torch import distributed, nn

from avl_plugins import DGR, VAE, WGANGP
from avl_plugins.dgr.frechet import small_classifier
from avl_plugins.dgr.networks import conv_critic, conv_decoder, conv_encoder, mlp_critic, mlp_decoder, mlp_encoder
from avl_plugins.dgr.plugin import DGRPlugin
from avl_plugins.dgr.scholar import Answers, Scholar, Solver, replay_loss

NOT_COUNTS = [0, -1, 1.5, 2.0, True, None, "3", math.nan, math.inf]
NOT_POSITIVE = [0, -1.0, math.nan, math.inf, -math.inf, True, None, "2", 1j]
NOT_FLAGS = [None, 1, 0.0, "yes"]
NOT_MODULES = [nn.Linear, "net", 3, lambda x: x]


def plugin(**options):
    return DGRPlugin(**{"generator": vae(), **options})


def make_gan(**options):
    networks = {"generator": nn.Linear(4, 64), "critic": nn.Linear(64, 1)}
    return WGANGP(**{**networks, "latent": 4, **options})


def make_vae(**options):
    networks = {"encoder": nn.Linear(64, 8), "decoder": nn.Linear(4, 64)}
    return VAE(**{**networks, "latent": 4, **options})


def scholar():
    return Scholar(lambda n, generator: torch.rand(n, 64), Solver(net(), classes=None))


def teach(**options):
    pupil = net()
    optimizer = torch.optim.SGD(pupil.parameters(), lr=0.1)
    return scholar().teach(pupil, optimizer, **{"iterations": 1, **options})


def sample(**options):
    return scholar().sample(**{"n": 3, **options})


def classify(**options):
    return small_classifier(torch.rand(9, 4), torch.arange(9) % 2, **{"iterations": 1, **options})


def trained_sample(make):
    def run(n):
        generator = make(data_range=(0, 1))
        generator.fit_batch(torch.rand(generator.batch_size, 64), None, 1.0)
        return generator.sample(n)

    return run


IMAGE, FLAT = (1, 8, 8), (64,)
TABLE = [
    # What is made, with which argument, and values of it that are refused.
    (plugin, "replay", ["real", None, 1]),
    (plugin, "replay_ratio", ["t", 0, -0.1, 1.1, math.nan, math.inf, True, None]),
    (plugin, "answers", ["medium", None, True]),
    (plugin, "temperature", NOT_POSITIVE),
    (plugin, "generator_iterations", NOT_COUNTS),
    (plugin, "replay_batch_size", [value for value in NOT_COUNTS if value is not None]),
    (plugin, "balanced", NOT_FLAGS),
    (plugin, "chunk", NOT_COUNTS),
    (plugin, "likelihood", ["poisson", nn.MSELoss(), False]),
    (plugin, "seed", [-1, 1.0, True, 2**63, math.nan]),
    (plugin, "generator", [None, nn.Linear(2, 2), "vae", VAE, WGANGP]),
    *[(make_gan, name, NOT_COUNTS) for name in ("latent", "samples", "critic_steps", "penalty_every")],
    (make_gan, "penalty", [-1, math.nan, math.inf, True, None, "10"]),
    (make_gan, "lr", [-1e-4, math.nan, math.inf, True, None, "1e-4"]),
    (make_gan, "betas", [0.5, (0.5,), (0.5, 1.0), (-0.1, 0.9), (0.5, math.nan), (True, 0.9), None, "ab"]),
    (make_gan, "average", [1.0, -0.1, math.nan, math.inf, True, "0.9"]),
    *[(make_gan, name, NOT_MODULES) for name in ("generator", "critic")],
    *[(make_vae, name, NOT_COUNTS) for name in ("latent", "batch_size")],
    (make_vae, "lr", [-1e-4, math.nan, math.inf, True, None]),
    *[(make_vae, name, NOT_MODULES) for name in ("encoder", "decoder")],
    *[
        (make, "data_range", [(1, 1), (2, 1), (0, math.inf), (math.nan, 1), (0,), (0, 1, 2), 1.0, "01", (0, True)])
        for make in (make_gan, make_vae)
    ],
    *[(trained_sample(make), "n", NOT_COUNTS) for make in (make_gan, make_vae)],
    (lambda **o: conv_decoder(**{"latent": 3, "shape": IMAGE, **o}), "latent", NOT_COUNTS),
    (lambda **o: conv_decoder(**{"latent": 3, "shape": IMAGE, **o}), "maps", NOT_COUNTS),
    (lambda **o: conv_decoder(**{"latent": 3, "shape": IMAGE, **o}), "output", NOT_MODULES),
    (lambda **o: conv_decoder(**{"latent": 3, "shape": IMAGE, **o}), "normalise", NOT_FLAGS),
    (lambda **o: conv_encoder(**{"latent": 3, "shape": IMAGE, **o}), "latent", NOT_COUNTS),
    (lambda **o: conv_encoder(**{"latent": 3, "shape": IMAGE, **o}), "maps", NOT_COUNTS),
    *[(lambda **o: conv_critic(**{"shape": IMAGE, **o}), name, NOT_COUNTS) for name in ("maps", "outputs")],
    *[
        (make, "shape", [(1, 30, 28), (8, 8), 8, None, (1, 8.0, 8), (1, 0, 8), "188", (True, 8, 8)])
        for make in (conv_critic, lambda shape: conv_decoder(3, shape), lambda shape: conv_encoder(shape, 3))
    ],
    (lambda **o: mlp_decoder(**{"latent": 3, "shape": FLAT, **o}), "latent", NOT_COUNTS),
    (lambda **o: mlp_decoder(**{"latent": 3, "shape": FLAT, **o}), "output", NOT_MODULES),
    (lambda **o: mlp_encoder(**{"latent": 3, "shape": FLAT, **o}), "latent", NOT_COUNTS),
    (lambda **o: mlp_critic(**{"shape": FLAT, **o}), "outputs", NOT_COUNTS),
    *[
        (make, name, [8, None, (0,), (1.5,), (True,), "8", (None,)])
        for make in (
            lambda **o: mlp_decoder(**{"latent": 3, "shape": FLAT, **o}),
            lambda **o: mlp_encoder(**{"latent": 3, "shape": FLAT, **o}),
            lambda **o: mlp_critic(**{"shape": FLAT, **o}),
        )
        for name in ("shape", "units")
    ],
    *[(teach, name, NOT_COUNTS) for name in ("iterations", "batch_size")],
    (teach, "answers", ["medium", None]),
    (teach, "temperature", NOT_POSITIVE),
    (sample, "n", NOT_COUNTS),
    (sample, "balanced", NOT_FLAGS),
    *[(classify, name, NOT_COUNTS) for name in ("iterations", "width", "features")],
    (classify, "seed", [-1, 1.5, None]),
]


@pytest.mark.parametrize("row", range(len(TABLE)), ids=[f"{name}-{row}" for row, (_, name, _) in enumerate(TABLE)])
def test_a_value_that_cannot_be_is_refused_by_name(row):
    make, name, values = TABLE[row]
    for value in values:
        with pytest.raises((TypeError, ValueError), match=rf"^{name} must be "):
            make(**{name: value})


def test_numbers_of_numpy_and_whole_ranges_are_taken():
    plugin(temperature=np.float32(2), generator_iterations=np.int64(3), seed=np.int64(0), replay_ratio=1)
    make_gan(betas=[0.0, 0.9], average=0, penalty=0, lr=0, data_range=[np.float64(0), 1])


@pytest.mark.parametrize(
    ("attribute", "value"), [("batch_size", 0), ("batch_size", 1.5), ("data_range", (1, 0)), ("data_range", "01")]
)
def test_a_generator_of_ones_own_has_attributes_that_can_be(attribute, value):
    generator = Recorder()
    setattr(generator, attribute, value)
    with pytest.raises((TypeError, ValueError), match=f"^generator.{attribute} must be "):
        DGRPlugin(generator=generator)


def strategy(**options):
    model = net()
    return DGR(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), generator=vae(), **options)


def loss(**options):
    x = torch.arange(128.0).reshape(2, 64).sin()
    replayed = Answers(x, [(None, x[:, :10])])
    return float(replay_loss(lambda x: x[:, 10:20], replayed, temperature=2.0, **options))


def taught(**options):
    torch.manual_seed(0)
    return teach(iterations=3, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("DGRPlugin", lambda **o: plugin(**o).answers),
        ("DGR", lambda **o: strategy(**o).dgr.answers),
        ("replay_loss", loss),
        ("teach", taught),
    ],
)
def test_the_old_word_for_answers(name, make):
    """It does what the new one does, for one release."""
    with pytest.warns(DeprecationWarning, match=f"^{name}: labels is called answers now$"):
        old = make(labels="soft")
    assert old == make(answers="soft") != make(answers="hard")


def test_reprs_say_what_was_set():
    generator = make_gan(lr=1e-3, betas=[0.5, 0.9], average=0.99)
    assert repr(generator) == "WGANGP(generator=<Linear>, critic=<Linear>, latent=4, lr=0.001, average=0.99)"
    assert repr(make_vae(lr=0.1, data_range=(0, 1))) == (
        "VAE(encoder=<Linear>, decoder=<Linear>, latent=4, data_range=(0.0, 1.0), lr=0.1)"
    )
    assert repr(plugin(replay_ratio=0.5, balanced=True)) == (
        "DGRPlugin(generator=<VAE>, replay_ratio=0.5, balanced=True)"
    )
    assert repr(DGRPlugin(replay="exact", answers="soft", seed=0)) == (
        "DGRPlugin(replay='exact', answers='soft', seed=0)"
    )


def test_positional_arguments_are_refused():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for args in [(model, optimizer, nn.CrossEntropyLoss()), (model,)]:
        with pytest.raises(TypeError, match=r"DGR takes keyword arguments only: DGR\(model=\.\.\., optimizer=\.\.\., "):
            DGR(*args, generator=vae())

    class Mine(DGR):
        def __init__(self, model, **options):
            super().__init__(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **options)

    with pytest.warns(UserWarning, match="Avalanche is transitioning"):
        assert Mine(model, replay="exact").model is model


def strategies(made):
    """Two, one after the other, with what `made` gives both."""
    return (build(**made) if "generator" in made else build(strategy=Naive, **made) for _ in range(2))


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("what", ["plugin", "generator", "decoder", "user's"])
def test_what_two_strategies_share_is_refused(digits_classes, what, kept):
    """Whether the first strategy is still there or not: it has left what it learnt."""
    decoder = mlp_decoder(8, FLAT, units=(16,))
    first, second = {
        "plugin": lambda: strategies({"plugins": [DGRPlugin(replay="exact")]}),
        "generator": lambda: strategies({"generator": gan()}),
        "user's": lambda: strategies({"generator": Recorder()}),
        "decoder": lambda: (
            build(generator=VAE(encoder=mlp_encoder(FLAT, 8, units=(16,)), decoder=decoder, latent=8)) for _ in range(2)
        ),
    }[what]()
    first.train(digits_classes.train_stream[0])
    if not kept:
        del first
    before = weights(second.model)
    name = "plugin" if what == "plugin" else "generator"
    with pytest.raises(ValueError, match=f"{name}: another strategy has trained it"):
        second.train(digits_classes.train_stream[1])
    assert same(before, second.model)


def test_a_run_that_was_refused_leaves_plugin_and_generator_free(digits_classes):
    """Nothing has been trained: the same ones serve the strategy that is built anew."""
    plugin = DGRPlugin(generator=gan(), generator_iterations=2)
    refused = build(nn.Linear(64, 1), strategy=Naive, plugins=[plugin], criterion=nn.MSELoss())
    with pytest.raises(ValueError, match="do not fit outputs"):
        refused.train(digits_classes.train_stream[0])
    build(strategy=Naive, plugins=[plugin]).train(digits_classes.train_stream[0])
    assert plugin.tasks == 1


def test_copies_serve_other_strategies(digits_classes):
    for copied in (copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))):
        original = DGRPlugin(generator=gan(), generator_iterations=2)
        build(strategy=Naive, plugins=[original]).train(digits_classes.train_stream[0])
        build(strategy=Naive, plugins=[copied(original)]).train(digits_classes.train_stream[1])
        generator = copied(original.generator)
        build(generator=generator, generator_iterations=2).train(digits_classes.train_stream[1])


def test_two_plugins_in_one_strategy_are_refused(digits_classes):
    strategy = build(generator=vae(), plugins=[DGRPlugin(replay="exact")])
    with pytest.raises(ValueError, match="plugins: there are two DGRPlugins"):
        strategy.train(digits_classes.train_stream[0])


def test_several_processes_are_refused(digits_classes, monkeypatch):
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    strategy = build()
    strategy._distributed_check = True  # Avalanche's warning
    before = weights(strategy.model)
    with pytest.raises(ValueError, match=r"DGR does not .* process"):
        strategy.train(digits_classes.train_stream[0])
    assert same(before, strategy.model)


@pytest.mark.parametrize("options", [{"replay": "exact", "generator": None}, {"generator": vae()}])
def test_an_empty_experience(digits_classes, options):
    """Said before a data loader is made of it, whose error would be an IndexError."""
    experience = copy.copy(digits_classes.train_stream[1])
    experience.dataset = experience.dataset.subset([])
    with pytest.raises(ValueError, match="experience 1 is empty: DGR has nothing to learn from; leave it out"):
        build(**options).train(experience)


@pytest.mark.parametrize("make", [lambda: {"replay": "exact", "generator": None}, lambda: {"generator": vae()}])
@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("cause", ["weights", "transforms"])
def test_a_loss_that_is_not_finite_ends_the_run_before_a_step(digits_classes, make, task, cause):
    """The data themselves are finite; the message tells a diverged solver from transforms for training."""
    strategy = build(**make())
    strategy.train(digits_classes.train_stream[:task])
    experience = copy.copy(digits_classes.train_stream[task])
    message = f"the loss is nan in experience {task}, step 0. Lower the learning rate"
    if cause == "weights":
        with torch.no_grad():
            strategy.model[0].weight.fill_(math.inf)
    else:
        experience.dataset = experience.dataset.replace_current_transform_group((lambda x: x / 0, None))
        message = f"inputs of experience {task}, step 0 have NaN or infinite values"
    before = weights(strategy.model)
    with pytest.raises(ValueError, match=message):
        strategy.train(experience)
    assert same(before, strategy.model)
