"""Generators: closed forms of their losses, what they sample, and what they refuse."""

import copy
import math

import pytest
import torch
from torch import nn

from avl_plugins.dgr.generator import Generator, Range, check_samples
from avl_plugins.dgr.networks import conv_critic, conv_decoder, conv_encoder, mlp_critic, mlp_decoder, mlp_encoder
from avl_plugins.dgr.vae import VAE, kl_to_standard_normal, reparametrise
from avl_plugins.dgr.wgan_gp import WGANGP, gradient_penalty

pytestmark = pytest.mark.slow

SHAPE = (1, 8, 8)


def make_gan(**options):
    return WGANGP(
        generator=conv_decoder(6, SHAPE, maps=4, output=nn.Tanh()),
        critic=conv_critic(SHAPE, maps=4),
        **{"latent": 6, "data_range": (0, 1), "samples": 8, **options},
    )


def make_vae(**options):
    return VAE(
        encoder=mlp_encoder(SHAPE, 6, units=(16,)),
        decoder=mlp_decoder(6, SHAPE, units=(16,)),
        **{"latent": 6, "data_range": (0, 1), "batch_size": 8, **options},
    )


MAKERS = {"wgan-gp": make_gan, "vae": make_vae}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


def test_gradient_penalty_of_a_linear_critic():
    """D(x) = w x has the slope w everywhere: the penalty is (||w|| - 1)^2, over all pixels and channels at once."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 4, 4, dtype=torch.float64))

        def forward(self, x):
            return (x * self.w).sum((1, 2, 3)).unsqueeze(1)

    critic = Linear()
    x, y = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    found = gradient_penalty(critic, x, y, torch.rand(5, dtype=torch.float64))
    w = critic.w.detach()
    assert found.item() == pytest.approx((w.norm().item() - 1) ** 2, rel=1e-12)
    over_channels = (w.norm(dim=0) - 1).square().mean()
    assert abs(over_channels.item() - found.item()) > 1
    found.backward()
    expected = 2 * (1 - 1 / critic.w.norm()) * critic.w
    torch.testing.assert_close(critic.w.grad, expected.detach())


def test_gradient_penalty_of_a_quadratic_critic():
    """D(x) = ||x||^2 / 2 has the slope x: it is taken between the two images, at the given mixture."""
    x, y = torch.randn(2, 5, 7, dtype=torch.float64)
    t = torch.rand(5, dtype=torch.float64)
    between = t[:, None] * x + (1 - t[:, None]) * y
    found = gradient_penalty(lambda v: v.square().sum(1) / 2, x, y, t)
    torch.testing.assert_close(found, (between.norm(dim=1) - 1).square().mean())


def test_reparametrisation_has_the_standard_deviation_of_its_log_variance():
    noise = torch.randn(200_000, 1, dtype=torch.float64)
    z = reparametrise(torch.full_like(noise, 3.0), torch.full_like(noise, 2.0), noise)
    assert float(z.std()) == pytest.approx(math.e, rel=0.01)
    assert torch.equal(z, 3.0 + math.exp(1.0) * noise)


def test_kl_to_the_standard_normal():
    """Against torch.distributions."""
    mean, log_variance = torch.randn(2, 5, 3, dtype=torch.float64)
    one = torch.distributions.Normal(mean, (log_variance / 2).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(one, standard).sum(1)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)


def test_elbo_by_hand():
    vae = make_vae().double()
    u, noise = torch.rand(4, *SHAPE, dtype=torch.float64) * 2 - 1, torch.randn(4, 6, dtype=torch.float64)
    reconstruction, divergence = vae.negative_elbo(u, noise)
    mean, log_variance = vae.encoder(u).chunk(2, 1)
    p = vae.decoder(mean + (log_variance / 2).exp() * noise).sigmoid()
    x = (u + 1) / 2
    by_hand = -(x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1)
    torch.testing.assert_close(reconstruction, by_hand)
    torch.testing.assert_close(divergence, kl_to_standard_normal(mean, log_variance))


def test_vae_weighs_current_and_replayed_by_the_ratio():
    """One step at learning rate 0 on both is ratio * the loss on one + (1 - ratio) * the loss on the other."""
    real, replayed = torch.rand(3, *SHAPE), torch.rand(5, *SHAPE)
    vae = make_vae(lr=0.0)

    def loss(*batch):
        torch.manual_seed(5)
        return {k: float(v) for k, v in vae.fit_batch(*batch).items()}

    both = loss(real, replayed, 0.3)
    torch.manual_seed(5)
    noise = torch.randn(8, 6)
    terms = [vae.negative_elbo(2 * x - 1, n) for x, n in ((real, noise[:3]), (replayed, noise[3:]))]
    for name, index in (("reconstruction", 0), ("kl", 1)):
        expected = 0.3 * terms[0][index].mean() + 0.7 * terms[1][index].mean()
        assert both[name] == pytest.approx(expected.item() / 64, rel=1e-5)
    torch.manual_seed(5)
    alone = vae.negative_elbo(2 * real - 1, torch.randn(3, 6))[1]
    assert loss(real, None, 1.0)["kl"] == pytest.approx(alone.mean().item() / 64, rel=1e-5)


def test_critic_loss_by_hand():
    """mean D(fake) - [r mean D(real) + (1 - r) mean D(replayed)], one critic step, learning rate 0."""
    gan = make_gan(lr=0.0, critic_steps=1, penalty=10.0)
    real, replayed = torch.rand(3, *SHAPE), torch.rand(5, *SHAPE)
    torch.manual_seed(5)
    found = gan.fit_batch(real, replayed, 0.3)
    torch.manual_seed(5)
    twin = copy.deepcopy(gan)
    with torch.no_grad():
        fake = twin.generator.train()(torch.randn(8, 6))
        scores = [twin.critic(x).mean() for x in (fake, 2 * real - 1, 2 * replayed - 1)]
    torch.testing.assert_close(found["critic"], scores[0] - 0.3 * scores[1] - 0.7 * scores[2])
    mixing = torch.rand(8)
    both = torch.cat([2 * real - 1, 2 * replayed - 1])
    torch.testing.assert_close(found["penalty"], gradient_penalty(twin.critic, both, fake, mixing).detach())


def test_few_real_samples_serve_every_critic_step():
    """One real and nine replayed in four steps: each step has the weights r and 1 - r, not r in one and 0 in three."""
    gan = make_gan(lr=0.0, critic_steps=4, penalty=0.0)
    real, replayed = torch.rand(1, *SHAPE), torch.rand(9, *SHAPE)
    found = []
    step = gan._critic_step
    gan._critic_step = lambda parts: found.append(parts) or step(parts)
    gan.fit_batch(real, replayed, 0.1)
    assert [[(len(x), w) for x, w in parts] for parts in found] == [
        [(1, 0.1), (n, 0.9)] for n in (3, 2, 2, 2)
    ]  # fmt: skip
    assert torch.equal(torch.cat([parts[1][0] for parts in found]), 2 * replayed - 1)
    assert all(torch.equal(parts[0][0], 2 * real - 1) for parts in found)


def test_five_critic_steps_for_one_of_the_generator_and_a_lazy_penalty():
    gan = make_gan(penalty_every=2)
    assert gan.batch_size == 40
    calls = []
    gan.critic.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    gan.fit_batch(torch.rand(40, *SHAPE), None, 1.0)
    # Five steps on 8 real and 8 fake at once, a penalty on 8 at the first, third and fifth, and the generator's 8.
    assert calls == [16, 8, 16, 16, 8, 16, 16, 8, 8]
    assert gan.steps == {"critic": 5, "generator": 1}


def test_training_the_generator_leaves_no_gradient_in_the_critic():
    gan = make_gan()
    gan.fit_batch(torch.rand(40, *SHAPE), None, 1.0)
    before = [p.detach().clone() for p in gan.critic.parameters()]
    gan._generator_step()
    assert all(torch.equal(a, b) for a, b in zip(before, gan.critic.parameters(), strict=True))
    assert all(p.requires_grad for p in gan.critic.parameters())


def test_moving_average_of_the_generator():
    """Samples come from w <- d w + (1 - d) w_t, d at first (1 + t) / (10 + t), and BatchNorm's statistics with them."""
    gan = make_gan(average=0.3)
    names = ("0.weight", "2.running_mean")
    expected = {}
    for step in range(5):
        gan.fit_batch(torch.rand(40, *SHAPE), None, 1.0)
        decay = (0, 2 / 11, 3 / 12, 0.3, 0.3)[step]
        state = gan.generator.state_dict()
        expected = {n: decay * expected.get(n, 0) + (1 - decay) * state[n] for n in names}
    for name in names:
        torch.testing.assert_close(gan.averaged.module.state_dict()[name], expected[name])
    assert gan.averaged.module.state_dict()["2.num_batches_tracked"] == state["2.num_batches_tracked"]
    plain, averaged = copy.deepcopy(gan), gan
    plain.averaged = None
    z = torch.Generator().manual_seed(0)
    assert not torch.equal(averaged.sample(4, z.manual_seed(0)), plain.sample(4, z.manual_seed(0)))


def test_samples(make):
    """In the data's range and dtype, without a graph, the same for the same generator, whatever the chunk."""
    model = make(data_range=(-3, 5))
    assert isinstance(model, Generator)
    model.fit_batch((torch.rand(model.batch_size, *SHAPE) * 8 - 3).double(), None, 1.0)
    random = torch.get_rng_state()
    x = model.sample(2500, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), random)
    assert x.shape == (2500, *SHAPE)
    assert x.dtype == torch.float64
    assert not x.requires_grad
    assert float(x.min()) >= -3
    assert float(x.max()) <= 5
    again = model.sample(2500, torch.Generator().manual_seed(1))
    assert torch.equal(x, again)
    assert model.training


def test_integers_come_back_as_they_were():
    """All 256 values of a byte; what a network gives beyond [-1, 1] ends at the range and does not wrap around."""
    data_range = Range((0, 255))
    bytes_ = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(data_range.from_unit(data_range.to_unit(bytes_)), bytes_)
    assert data_range.from_unit(torch.tensor([-1.01, 1.01])).tolist() == [0, 255]
    signed = torch.arange(-7, 12, dtype=torch.int16)
    data_range = Range((-7.5, 11.2))
    assert torch.equal(data_range.from_unit(data_range.to_unit(signed)), signed)
    assert data_range.from_unit(torch.tensor([-1.0, 1.0])).tolist() == [-7, 11]


def test_learns_a_simple_distribution(make):
    """Images that are all dark or all light, three to one: mean and spread of the samples come near."""
    torch.manual_seed(0)
    model = make(lr=2e-3)
    level = torch.where(torch.rand(4000) < 0.25, 0.9, 0.1).view(-1, 1, 1, 1)
    data = (level + 0.03 * torch.randn(4000, *SHAPE)).clamp(0, 1)
    for _ in range(400 if isinstance(model, VAE) else 250):
        model.fit_batch(data[torch.randint(4000, (model.batch_size,))], None, 1.0)
    means = model.sample(500, torch.Generator().manual_seed(0)).flatten(1).mean(1)
    assert float(means.mean()) == pytest.approx(0.3, abs=0.12)
    low, high = means.quantile(torch.tensor([0.1, 0.95]))
    assert low < 0.2
    assert high > 0.35


def test_goes_on_from_a_state(make):
    """A fresh one that is filled takes the next steps bit for bit: weights, optimizers, counts, range, dtype."""
    model = make(data_range=None)
    model.data_range = (0, 1)
    batches = torch.rand(6, model.batch_size, *SHAPE)
    for batch in batches[:3]:
        model.fit_batch(batch, None, 1.0)
    fresh = make(data_range=None)
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    ends = []
    for one in (model, fresh):
        torch.manual_seed(9)
        for batch in batches[3:]:
            one.fit_batch(batch[:20], batch[20:] if len(batch) > 20 else batch, 0.5)
        ends.append([*(p.detach().clone() for p in one.parameters()), one.sample(5, torch.Generator().manual_seed(0))])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert fresh.data_range == (0.0, 1.0)


def test_says_no(make):
    model = make()
    x = torch.rand(model.batch_size, *SHAPE)
    with pytest.raises(ValueError, match="has never been trained"):
        model.sample(3)
    with pytest.raises(ValueError, match=r"data_range: it is \(0, 1\), and the data have values from .* to 2"):
        model.fit_batch(2 * x / x.max(), None, 1.0)
    with pytest.raises(ValueError, match=r"ratio must be a number >= 0 and <= 1, got 1.5"):
        model.fit_batch(x, x, 1.5)
    with pytest.raises(ValueError, match="ratio: without replayed samples it has to be 1"):
        model.fit_batch(x, None, 0.5)
    with pytest.raises(ValueError, match="data_range: it is not known"):
        make(data_range=None).fit_batch(x, None, 1.0)
    model.fit_batch(x, None, 1.0)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan"))
    with pytest.raises(ValueError, match="samples that are NaN or infinite"):
        model.sample(3)


def test_a_collapsed_generator_is_warned_about(make):
    model = make()
    model.fit_batch(torch.rand(model.batch_size, *SHAPE), None, 1.0)
    net = model.generator if isinstance(model, WGANGP) else model.decoder
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    with pytest.warns(UserWarning, match="all samples are the same image"):
        model.sample(10)
    assert check_samples(torch.zeros(1, 2), (0, 1), "one sample says nothing") is not None


def test_samples_outside_the_range(make):
    """A network that is not bounded: the class of the user's is named."""
    model = make()
    model.fit_batch(torch.rand(model.batch_size, *SHAPE), None, 1.0)
    model.__class__ = type("Mine", (type(model),), {})
    model.range.from_unit = lambda u: torch.full_like(u, -0.25)
    with pytest.raises(ValueError, match=r"Mine: it gives samples with values from -0.25 to -0.25, and data_range is"):
        model.sample(3)
    assert check_samples(torch.tensor([[1.00005], [-0.00005]]), (0, 1), "rounding") is not None
    assert len(check_samples(torch.zeros(0, 2), (0, 1), "none at all")) == 0


def test_networks_that_do_not_fit():
    with pytest.raises(ValueError, match="critic: it has BatchNorm"):
        WGANGP(generator=nn.Linear(2, 2), critic=nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)), latent=2)
    wrong = VAE(encoder=nn.Sequential(nn.Flatten(), nn.Linear(64, 6)), decoder=mlp_decoder(6, SHAPE), latent=6)
    wrong.data_range = (0, 1)
    with pytest.raises(ValueError, match=r"encoder: expected \(N, 2 latent\) = \(4, 12\), got \(4, 6\)"):
        wrong.fit_batch(torch.rand(4, *SHAPE), None, 1.0)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8)])
def test_networks_fit_together(shape):
    z, x = torch.randn(3, 5), torch.rand(3, *shape)
    for decoder in (
        conv_decoder(5, shape, maps=4),
        mlp_decoder(5, shape, units=(7,)),
        conv_decoder(5, shape, maps=4, normalise=False),
    ):
        assert decoder(z).shape == x.shape
    for critic in (conv_critic(shape, maps=4), mlp_critic(shape, units=(7,))):
        assert critic(x).shape == (3, 1)
    for encoder in (conv_encoder(shape, 5, maps=4), mlp_encoder(shape, 5, units=(7,))):
        assert encoder(x).shape == (3, 10)
    with pytest.raises(ValueError, match="both sides divisible by 4"):
        conv_critic((1, 30, 28))
