"""The data of a task are looked at before it: ranges, values that are not finite, and whether a generator fits."""

import copy
import logging
import math

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.evaluation.metrics import loss_metrics
from avalanche.training import Naive
from checkpoint_cases import ResumableNaive
from dgr_cases import Recorder, build, gan, net, same, stream_of, vae, weights
from torch import nn
from torch.utils.data import TensorDataset, default_collate

from avl_plugins import VAE
from avl_plugins.dgr.generator import range_of
from avl_plugins.dgr.networks import conv_critic, conv_decoder, mlp_decoder, mlp_encoder
from avl_plugins.dgr.plugin import DGRPlugin
from avl_plugins.dgr.wgan_gp import WGANGP


def between(low, high, n=40):
    """Inputs with these two ends among them."""
    x = low + (high - low) * torch.rand(n, 64)
    x[0, :2] = torch.tensor([low, high])
    return x


def logged(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("make", [vae, gan, Recorder])
def test_the_range_is_read_from_the_first_data_and_widened(make, caplog):
    """A little wider (normalised images), much wider, on one side, and not at all; with a line in the log for each."""
    ranges = [(0.0, 0.9961), (0.0, 0.9986), (0.1, 0.9), (-2.0, 0.5), (0.0, 0.9986 + 1e-5)]
    read = [(0.0, 0.9961), (0.0, 0.9986), (0.0, 0.9986), (-2.0, 0.9986), (-2.0, 0.9986)]
    strategy = build(generator=make(), generator_iterations=3)
    for (low, high), expected in zip(ranges, read, strict=True):
        before = None if strategy.dgr.scholar is None else strategy.dgr.scholar.source
        old = None if before is None else before(8, torch.Generator().manual_seed(1))
        (experience,) = stream_of(between(low, high))
        strategy.train(experience)
        assert strategy.dgr.generator.data_range == pytest.approx(expected)
        assert strategy.dgr.source.old.data_range == pytest.approx(expected)
        if before is not None:
            assert torch.equal(before(8, torch.Generator().manual_seed(1)), old), "of the range that it had"
    assert len(logged(caplog)) == 2
    assert "widened from (0, 0.9961), read from the data before, to (0, 0.9986) by those of experience 0" in caplog.text
    assert "widened from (0, 0.9986), read from the data before, to (-2, 0.9986)" in caplog.text


def test_unit_values_and_samples_follow_the_range():
    """After widening, real and replayed inputs are put on one scale, on which the generator learns them."""
    generator, seen = vae(), []
    elbo = generator.negative_elbo
    strategy = build(generator=generator, generator_iterations=3)
    first, second = stream_of(between(0, 1), between(-1, 3))
    strategy.train(first)
    generator.negative_elbo = lambda u, noise: seen.append(u) or elbo(u, noise)
    strategy.train(second)
    assert generator.data_range == (-1.0, 3.0)
    for u in seen:
        real, replayed = u[:16], u[16:]
        assert real.min() >= -1
        assert real.max() <= 1
        assert replayed.min() >= -0.5 - 1e-6, "0 of [-1, 3]"
        assert replayed.max() <= 1e-6, "1 of [-1, 3]"


@pytest.mark.parametrize("make", [vae, gan, Recorder])
def test_a_widened_range_goes_through_a_state(make):
    strategy = build(generator=make(), generator_iterations=3)
    first, second, third = stream_of(between(0, 1), between(0, 2), between(0, 4))
    strategy.train([first, second])
    loaded = build(strategy.model, generator=make(), generator_iterations=3)
    loaded.dgr.load_state_dict(copy.deepcopy(strategy.dgr.state_dict()))
    assert loaded.dgr.generator.data_range == loaded.dgr.source.old.data_range == (0.0, 2.0)
    loaded.train(third)
    assert loaded.dgr.generator.data_range == (0.0, 4.0), "it is read still, and no user's"
    assert loaded.dgr.scholar.source(4, None).max() <= 4


def test_a_state_inside_a_task_has_both_ranges():
    """While the generator learns, the one before it keeps its own range, also where its state lacks that."""
    states = []

    class Watch(DGRPlugin):
        def safe_point(self, strategy):
            if strategy.progress.phase == "dgr: generator":
                states.append(copy.deepcopy(self.state_dict()))

    plugin = Watch(generator=Recorder(), generator_iterations=3)
    strategy = build(strategy=ResumableNaive, plugins=[plugin])
    strategy.train(stream_of(between(0, 1), between(0, 2)))
    assert len(states) == 6
    twin = DGRPlugin(generator=Recorder())
    twin.load_state_dict(states[-1])
    assert (twin.generator.data_range, twin.source.old.data_range) == ((0.0, 2.0), (0.0, 1.0))


def test_a_run_that_is_refused_reads_no_range():
    """The same generator serves the data as they are meant to be."""
    generator = vae()
    wrong = build(nn.Linear(64, 1), generator=generator, criterion=nn.MSELoss(), metrics=loss_metrics(epoch=True))
    with pytest.raises(ValueError, match="do not fit outputs"):
        wrong.train(stream_of(between(0, 255)))
    assert generator.data_range is None
    build(generator=generator).train(stream_of(between(0, 1)))
    assert generator.data_range == (0.0, 1.0)


@pytest.mark.parametrize("make", [vae, Recorder])
@pytest.mark.parametrize("task", [0, 1])
def test_a_declared_range_is_kept_and_data_outside_refused_before_training(make, task):
    strategy = build(generator=make(data_range=(0, 1)), generator_iterations=3)
    stream = stream_of(between(0.2, 0.8), between(0.2, 1.2))
    strategy.train(stream[:task])
    before = weights(strategy.model)
    if task == 0:
        stream = stream[1:]
    message = r"declared as \(0, 1\), and the data have values from 0.2 to 1.2; declare"
    with pytest.raises(ValueError, match=message):
        strategy.train(stream[-1])
    assert same(before, strategy.model), "not trained"
    assert strategy.dgr.generator.data_range == (0, 1)


def test_range_of():
    assert range_of(0, 1, None, declared=False) == (0, 1)
    assert range_of(0.2, 1.00005, (0, 1), declared=True) == (0, 1), "but for rounding"
    assert range_of(-1, 0.5, (0, 1), declared=False) == (-1, 1)
    with pytest.raises(ValueError, match=r"declared as \(0, 1\), and the data have values from -1 to 0.5"):
        range_of(-1, 0.5, (0, 1), declared=True)
    with pytest.raises(ValueError, match=r"it cannot be read from data with values from 0.5 to 0.5; pass it"):
        range_of(0.5, 0.5, None, declared=False)


@pytest.mark.parametrize("declared", [None, (0.0, 1.0)])
def test_random_transforms_for_evaluation_end_no_run(digits_classes, declared, caplog):
    """They give wider inputs to the generator than were looked at: the range follows, or they are cut off."""

    def brighter(x):
        return x if strategy.mbatch is None else 1.5 * x  # once training has begun

    experience = copy.copy(digits_classes.train_stream[0])
    experience.dataset = experience.dataset.eval().replace_current_transform_group((brighter, None)).train()
    strategy = build(generator=Recorder(data_range=declared), generator_iterations=3)
    strategy.train(experience)
    assert strategy.dgr.tasks == 1
    assert strategy.dgr.generator.data_range == ((0.0, 1.5) if declared is None else declared)
    assert max(float(real.max()) for real, _, _ in strategy.dgr.generator.calls) == (1.5 if declared is None else 1)
    cut_off = "data_range: inputs from 0 to 1.5 in experience 0 are cut off at the one declared"
    assert logged(caplog) == ([] if declared is None else [cut_off])


def test_the_range_is_that_of_the_eval_transforms(digits_classes):
    """As the generator learns from what they give, and memory keeps it, not augmented inputs."""

    def brighter(x):
        return 3 * x

    experience = copy.copy(digits_classes.train_stream[0])
    experience.dataset = experience.dataset.replace_current_transform_group((brighter, None))
    assert float(max(x.max() for x, *_ in experience.dataset)) == 3
    strategy = build()
    strategy.train([experience, digits_classes.train_stream[1]])
    assert strategy.dgr.generator.data_range == (0.0, 1.0)
    strategy = build(generator=None, replay="exact")
    strategy.train(experience)
    assert float(strategy.dgr.source.parts[0].max()) == 1


@pytest.mark.parametrize("options", [{"replay": "exact"}, {"replay": "noise"}, {"generator": Recorder()}])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("task", [0, 1])
def test_data_that_are_not_finite_are_refused_before_training(options, value, task):
    strategy = build(**{"generator": None, **copy.deepcopy(options)}, generator_iterations=3)
    wrong = torch.rand(40, 64)
    wrong[37, 5] = value
    good = torch.rand(40, 64)
    strategy.train(stream_of(good)[:task])
    before = weights(strategy.model)
    with pytest.raises(ValueError, match="inputs of experience 0 have NaN or infinite values: clean the data set"):
        strategy.train(stream_of(wrong))
    assert same(before, strategy.model)
    strategy = build(nn.Linear(64, 2), metrics=loss_metrics(epoch=True), generator=None, replay="exact", criterion=MSE)
    targets = torch.rand(40, 2)
    targets[3, 1] = value
    with pytest.raises(ValueError, match="targets of experience 0 have NaN or infinite values"):
        strategy.train(stream_of((good, targets)))


MSE = nn.MSELoss()


def test_data_without_a_range():
    with pytest.raises(ValueError, match=r"data_range: it cannot be read from data with values from 0.5 to 0.5"):
        build(generator=Recorder()).train(stream_of(torch.full((20, 64), 0.5)))


class Undone(Recorder):
    """Its copies cannot be made, or its steps or samples fail, in the way that it is told."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def __deepcopy__(self, memo):
        if self.fault == "copy":
            raise TypeError("cannot pickle '_io.TextIOWrapper' object")
        twin = Undone(self.fault)
        vars(twin).update(copy.copy(vars(self)))
        return twin

    def fit_batch(self, real, replayed, ratio):
        if self.fault == "losses":
            return 0.5
        return super().fit_batch(real, replayed, ratio)

    def sample(self, n, generator=None):
        x = super().sample(n, generator)
        return x.reshape(n, 8, 8) if self.fault == "samples" else x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VAE(encoder=mlp_encoder((32,), 4), decoder=mlp_decoder(4, (64,)), latent=4), "a first step of a copy"),
        (lambda: VAE(encoder=mlp_encoder((64,), 4), decoder=mlp_decoder(4, (32,)), latent=4), "a first step of a copy"),
        (lambda: VAE(encoder=mlp_encoder((64,), 4), decoder=mlp_decoder(4, (64,)), latent=5), r"encoder: expected \(N"),
        (
            lambda: WGANGP(
                generator=conv_decoder(4, (1, 8, 8), maps=4, output=nn.Tanh()), critic=conv_critic((1, 8, 8)), latent=4
            ),
            r"a first step of a copy of it, on inputs of shape \(64,\), fails",
        ),
        (lambda: Undone("copy"), "a first step of a copy .* cannot pickle"),
        (lambda: Undone("losses"), "a first step of a copy .* 'float' object has no attribute"),
        (lambda: Undone("samples"), r"gives samples of shape \(8, 8\), and the inputs have the shape \(64,\)"),
    ],
)
def test_a_generator_that_does_not_fit_the_inputs_is_refused_before_training(make, message):
    """It would have failed after the solver has been trained."""
    strategy = build(generator=make())
    before = weights(strategy.model)
    with pytest.raises(ValueError, match=f"^generator: .*{message}"):
        strategy.train(stream_of(torch.rand(40, 64)))
    assert same(before, strategy.model)
    assert strategy.dgr.generator.data_range is None


def test_inputs_of_another_shape_are_refused_before_training():
    """A model may take images of any size; what is replayed has the size of the first."""
    for options in ({"replay": "exact", "generator": None}, {"replay": "noise", "generator": None}):
        model = nn.Sequential(nn.AdaptiveAvgPool1d(64), net())
        strategy = build(model, **options)
        strategy.train(stream_of(torch.rand(40, 64)))
        before = weights(model)
        with pytest.raises(ValueError, match=r"inputs of experience 0 have the shape \[80\], and the replayed ones"):
            strategy.train(stream_of(torch.rand(40, 80)))
        assert same(before, model)


def test_noise_for_other_dtypes():
    strategy = build(net().double(), generator=None, replay="noise")
    stream = stream_of(torch.rand(40, 64).double(), torch.rand(40, 64).double())
    strategy.train(stream)
    assert strategy.dgr.scholar.sample(3).x.dtype == torch.float64
    with pytest.raises(ValueError, match=r"replay must be 'generated' or 'exact' for inputs of torch.int64"):
        build(nn.EmbeddingBag(9, 10), generator=None, replay="noise").train(stream_of(torch.randint(9, (40, 5))))


def test_data_with_a_collate_function_of_their_own():
    """Inputs are what it makes of the samples; batches of different shapes could not be replayed."""

    def scaled(samples):
        x, y, *rest = default_collate(samples)
        return [x[:, : int(samples[0][0][0])] / 2, y, *rest]

    def experience(x):
        data = make_avalanche_dataset(TensorDataset(x, torch.arange(len(x)) % 10), collate_fn=scaled)
        return benchmark_from_datasets(train=[data]).train_stream[0]

    plugin = DGRPlugin(replay="exact")
    strategy = build(strategy=Naive, plugins=[plugin], metrics=loss_metrics(epoch=True))
    strategy.train(experience(torch.full((300, 64), 64.0)))
    (kept,) = plugin.source.parts
    assert kept.shape == (300, 64)
    assert (kept == 32).all()
    ragged = torch.full((300, 64), 64.0)
    ragged[256:] = 60.0
    with pytest.raises(ValueError, match=r"inputs of experience 0 must be tensors of one shape .* \(64,\) and \(60,\)"):
        build(strategy=Naive, plugins=[DGRPlugin(replay="exact")]).train(experience(ragged))


def test_looking_at_data_draws_no_random_numbers(digits_classes):
    """A generator's first step on trial would move the global generator."""

    class Watch(DGRPlugin):
        def before_training_exp(self, strategy, **kwargs):
            before = torch.get_rng_state()
            super().before_training_exp(strategy, **kwargs)
            same_state.append(torch.equal(before, torch.get_rng_state()))

    same_state: list = []
    strategy = build(strategy=Naive, plugins=[Watch(generator=gan(), generator_iterations=2)])
    strategy.train(digits_classes.train_stream[:2])
    assert same_state == [True, True]


def test_a_generator_that_diverges_is_named_at_once(digits_classes):
    class Diverging(Recorder):
        def fit_batch(self, real, replayed, ratio):
            super().fit_batch(real, replayed, ratio)
            return {"loss": torch.tensor(math.inf if len(self.calls) > 3 else 1.0)}

    strategy = build(generator=Diverging(), generator_iterations=50)
    with pytest.raises(ValueError, match="generator: its loss 'loss' is inf in iteration 3 after experience 0"):
        strategy.train(digits_classes.train_stream[0])
    assert len(strategy.dgr.generator.calls) == 4
    message = "a first step of a copy of it, .* its training has diverged; lower its learning rate"
    with pytest.raises(ValueError, match=message):
        build(generator=vae(lr=1e30)).train(digits_classes.train_stream[0])


class Broken(Recorder):
    """Its samples are multiplied by `factor` from the second experience on, or before."""

    factor = 1.0

    def sample(self, n, generator=None):
        return super().sample(n, generator) * self.factor


@pytest.mark.parametrize("when", ["solver", "generator"])
def test_samples_of_a_generator_of_ones_own_are_checked(digits_classes, when):
    """While the solver learns from them, and while the next generator does."""

    class Late(DGRPlugin):
        def after_training_exp(self, strategy, **kwargs):
            if self.tasks:
                self.source.old.factor = factor
            super().after_training_exp(strategy, **kwargs)

    for factor, kind, message in (
        (math.nan, ValueError, "Broken: it gives samples that are NaN or infinite"),
        (math.inf, ValueError, "Broken: it gives samples that are NaN or infinite"),
        (1.5, ValueError, r"Broken: it gives samples with values from 0 to 1.5, and data_range is \(0, 1\)"),
        (0.0, UserWarning, "Broken: all samples are the same image"),
    ):
        plugin = (DGRPlugin if when == "solver" else Late)(generator=Broken(), generator_iterations=3)
        strategy = build(strategy=Naive, plugins=[plugin])
        strategy.train(digits_classes.train_stream[0])
        if when == "solver":
            plugin.source.old.factor = factor
        found = pytest.warns(kind, match=message) if kind is UserWarning else pytest.raises(kind, match=message)
        with found:
            strategy.train(digits_classes.train_stream[1])
        assert (plugin.last_replay_loss is None) == (when == "solver" and kind is ValueError)
