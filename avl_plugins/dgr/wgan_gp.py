"""WGAN-GP (Gulrajani et al. 2017, arXiv:1704.00028), the generator of Shin et al. 2017, trained batch by batch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from avl_plugins.dgr.frozen import detached_copy
from avl_plugins.dgr.generator import RangedGenerator, check_module, check_samples
from avl_plugins.tasks.arguments import check_count, check_number
from avl_plugins.tasks.words import repr_of_arguments

__all__ = ["WGANGP", "gradient_penalty"]

_CHUNK = 1000


def gradient_penalty(critic: nn.Module, one: Tensor, other: Tensor, mixing: Tensor) -> Tensor:
    """Return mean over samples of (||grad_x D(x)||_2 - 1)^2 at x = mixing one + (1 - mixing) other.

    The norm is over the whole image. (A norm over the channels alone, as in a well-known implementation, asks every
    pixel for slope 1.)

    Args:
        critic: D, (N, *shape) -> (N, 1) or (N,).
        one: (N, *shape).
        other: likewise.
        mixing: (N,) in [0, 1].
    """
    weight = mixing.view(-1, *[1] * (one.dim() - 1))
    x = (weight * one + (1 - weight) * other).requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return (slope.flatten(1).norm(2, dim=1) - 1).square().mean()


class MovingAverage:
    """Moves averages towards values, as `AveragedModel` wants it done; unlike a function in a function it is pickled.

    Args:
        decay: weight of the average; in the n-th call (1 + n) / (10 + n) where that is smaller.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay

    @torch.no_grad()
    def __call__(self, averaged: Any, current: Any, n: Any) -> None:
        """Move the averages after n moves before."""
        weight = 1 - min(self.decay, (1 + int(n)) / (10 + int(n)))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), weight)
            else:  # BatchNorm's count of batches
                mean.copy_(value)


class WGANGP(RangedGenerator):
    """Wasserstein GAN with gradient penalty.

    One `fit_batch` is `critic_steps` steps of the critic on

        mean D(G(z)) - [ratio mean D(real) + (1 - ratio) mean D(replayed)] + penalty mean (||grad D|| - 1)^2

    and one of the generator on -mean D(G(z)). The real and the replayed samples
    are each cut into as many parts as there are critic steps; where there are fewer, all of them serve each step.

    Networks are modules of yours, or from `avl_plugins.dgr.networks`; they see images in [-1, 1]. Normalisation
    over the batch has no place in the critic, whose penalty is one sample's.

    Args:
        generator: G, (N, latent) -> (N, *shape) in [-1, 1].
        critic: D, (N, *shape) -> (N, 1) or (N,).
        latent: size of z ~ N(0, 1).
        data_range: smallest and largest value of the data; None: the first data's, as `DGRPlugin` reads it.
        samples: samples in a batch of the critic.
        critic_steps: critic steps for a generator step; 5 in the paper of WGAN-GP.
        penalty: weight lambda of the gradient penalty; 10 there.
        penalty_every: apply it at every so many critic steps, with that many times the weight (cheaper, and the same
            on average).
        lr: learning rate of both Adams; 1e-4 there.
        betas: of both; (0.5, 0.9) there.
        average: decay of an exponential moving average of the generator's weights, which samples then come from; None
            for none. In the n-th iteration it is (1 + n) / (10 + n) where that is smaller, so that the weights it began
            with do not linger.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If one is out of range, or the critic has BatchNorm; in `fit_batch`, if the data are outside the
            range; in `sample`, if it was never trained, or gives samples that are not finite or outside the range.

    Example:
        >>> from avl_plugins.dgr import mlp_critic, mlp_decoder
        >>> generator = mlp_decoder(2, (4,), output=nn.Tanh())
        >>> gan = WGANGP(generator=generator, critic=mlp_critic((4,)), latent=2, data_range=(0, 1))
        >>> gan
        WGANGP(generator=<Sequential>, critic=<Sequential>, latent=2, data_range=(0.0, 1.0))
        >>> sorted(gan.fit_batch(torch.rand(gan.batch_size, 4), None, 1.0))
        ['critic', 'generator', 'penalty']
        >>> gan.sample(5).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        *,
        generator: nn.Module,
        critic: nn.Module,
        latent: int,
        data_range: tuple[float, float] | None = None,
        samples: int = 64,
        critic_steps: int = 5,
        penalty: float = 10.0,
        penalty_every: int = 1,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.5, 0.9),
        average: float | None = None,
    ) -> None:
        super().__init__(data_range)
        check_module("generator", generator)
        check_module("critic", critic)
        for name, count in (
            ("latent", latent),
            ("samples", samples),
            ("critic_steps", critic_steps),
            ("penalty_every", penalty_every),
        ):
            check_count(name, count)
        check_number("penalty", penalty, low=0)
        check_number("lr", lr, low=0)
        if not isinstance(betas, list | tuple) or len(betas) != 2:
            raise TypeError(f"betas must be two numbers, got {betas!r}")
        for beta in betas:
            check_number("betas", beta, low=0, high=1, open_high=True)
        check_number("average", average, low=0, high=1, open_high=True, none="no average")
        for module in critic.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    "critic: it has BatchNorm, which makes a sample's score depend on the others, and the gradient "
                    "penalty is one sample's; use LayerNorm or none"
                )
        self.generator, self.critic = generator, critic
        self.latent, self.samples, self.critic_steps = latent, samples, critic_steps
        self.penalty, self.penalty_every = penalty, penalty_every
        self.lr, self.betas, self.average = lr, tuple(betas), average
        self.averaged = (
            None
            if average is None
            else AveragedModel(detached_copy(generator), multi_avg_fn=MovingAverage(average), use_buffers=True)
        )
        options: dict[str, Any] = {"lr": lr, "betas": betas, "fused": True}  # the same numbers, in one pass
        self.optimizers = {
            "generator": torch.optim.Adam(generator.parameters(), **options),
            "critic": torch.optim.Adam(critic.parameters(), **options),
        }
        self.steps = {"generator": 0, "critic": 0}

    __repr__ = repr_of_arguments

    @property
    def batch_size(self) -> int:
        """How many samples `fit_batch` wants in all."""
        return self.samples * self.critic_steps

    def fit_batch(self, real: Tensor, replayed: Tensor | None, ratio: float) -> Mapping[str, Tensor]:
        """Take `critic_steps` steps of the critic and one of the generator.

        Random numbers come from the global generator.

        Returns:
            "critic" (an estimate of the negative Wasserstein distance), "penalty", "generator".
        """
        steps = self.critic_steps
        # Each step needs some of each part, or its weights would not add up to 1 and the scores would drift.
        cuts = [
            (x.tensor_split(steps) if len(x) >= steps else (x,) * steps, weight)
            for x, weight in self.weighted_parts(real, replayed, ratio)
        ]
        self.generator.train()
        losses: dict[str, Tensor] = {}
        for step in range(steps):
            losses |= self._critic_step([(x[step], weight) for x, weight in cuts])
        losses["generator"] = self._generator_step()
        return losses

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n images (n, *shape) in the data's range and dtype, in evaluation mode, without a graph."""
        check_count("n", n)
        if not self.steps["generator"]:
            raise ValueError(
                "WGANGP: it has never been trained, its samples are noise; call fit_batch, or train with DGRPlugin"
            )
        net = self.generator if self.averaged is None else self.averaged
        training = net.training
        net.eval()
        device = next(net.parameters()).device
        z = torch.randn(n, self.latent, generator=generator)
        x = torch.cat([self.range.from_unit(net(part.to(device))) for part in z.split(_CHUNK)])
        net.train(training)
        return check_samples(x, self.data_range, type(self).__name__)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the optimizers' state and the step counts."""
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "steps": dict(self.steps),
        }

    def set_extra_state(self, state: Any) -> None:
        """Take the optimizers' state and the step counts."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.steps = dict(state["steps"])

    def _fake(self, n: int) -> Tensor:
        first = next(self.generator.parameters())
        return self.generator(torch.randn(n, self.latent, device=first.device))

    def _critic_step(self, parts: list[tuple[Tensor, float]]) -> dict[str, Tensor]:
        x = torch.cat([part for part, _ in parts])
        with torch.no_grad():
            fake = self._fake(len(x))
        # One pass over real and fake: the critic has no BatchNorm.
        scores = self.critic(torch.cat([x, fake])).flatten()
        real = x.new_zeros(())
        of_parts = scores[: len(x)].split([len(part) for part, _ in parts])
        for (_, weight), score in zip(parts, of_parts, strict=True):
            real = real + weight * score.mean()
        loss = scores[len(x) :].mean() - real
        found = {"critic": loss.detach()}
        if self.steps["critic"] % self.penalty_every == 0 and self.penalty:
            penalty = gradient_penalty(self.critic, x, fake, torch.rand(len(x), device=x.device))
            loss = loss + self.penalty * self.penalty_every * penalty
            found["penalty"] = penalty.detach()
        self._step("critic", loss)
        return found

    def _generator_step(self) -> Tensor:
        self.critic.requires_grad_(False)
        loss = -self.critic(self._fake(self.samples)).mean()
        self._step("generator", loss)
        self.critic.requires_grad_(True)
        if self.averaged is not None:
            self.averaged.update_parameters(self.generator)
        return loss.detach()

    def _step(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.steps[name] += 1
