"""Variational autoencoder (Kingma and Welling 2014, arXiv:1312.6114) as a generator for replay."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from avl_plugins.dgr.generator import RangedGenerator, check_module, check_samples
from avl_plugins.tasks.arguments import check_count, check_number
from avl_plugins.tasks.words import repr_of_arguments

__all__ = ["VAE", "kl_to_standard_normal", "reparametrise"]

_CHUNK = 1000


def reparametrise(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Return z = mean + exp(log_variance / 2) noise."""
    return mean + torch.exp(0.5 * log_variance) * noise


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_variance)) || N(0, 1)) = 1/2 sum (exp(lv) + mean^2 - 1 - lv) for each sample, (N,)."""
    return 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).flatten(1).sum(1)


class VAE(RangedGenerator):
    """Variational autoencoder, trained on the negative evidence lower bound divided by the number of values a sample.

    Reconstruction is the binary cross-entropy of values in [0, 1], as is usual for images. (van de Ven et al. use the
    same loss, summed over pixels and divided by their number.)

    Args:
        encoder: (N, *shape) -> (N, 2 latent): means and log variances. It sees images in [-1, 1].
        decoder: (N, latent) -> (N, *shape): logits of the values in [0, 1].
        latent: size of z.
        data_range: smallest and largest value of the data; None: the first data's, as `DGRPlugin` reads it.
        batch_size: samples in a batch.
        lr: learning rate of Adam.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If one is out of range; in `fit_batch`, if the data are outside the range or the encoder
            gives another shape; in `sample`, if it was never trained, or gives samples that are not finite.

    Example:
        >>> from avl_plugins.dgr import mlp_decoder, mlp_encoder
        >>> vae = VAE(encoder=mlp_encoder((4,), 2), decoder=mlp_decoder(2, (4,)), latent=2, data_range=(0, 1))
        >>> vae
        VAE(encoder=<Sequential>, decoder=<Sequential>, latent=2, data_range=(0.0, 1.0))
        >>> losses = vae.fit_batch(torch.rand(vae.batch_size, 4), None, 1.0)
        >>> vae.sample(5).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        latent: int,
        data_range: tuple[float, float] | None = None,
        batch_size: int = 128,
        lr: float = 1e-3,
    ) -> None:
        super().__init__(data_range)
        check_module("encoder", encoder)
        check_module("decoder", decoder)
        check_count("latent", latent)
        check_count("batch_size", batch_size)
        check_number("lr", lr, low=0)
        self.encoder, self.decoder = encoder, decoder
        self.latent, self.batch_size, self.lr = latent, batch_size, lr
        self.optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=lr, fused=True)
        self.steps = 0

    __repr__ = repr_of_arguments

    def negative_elbo(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return reconstruction and KL terms for each sample, (N,) both, for images u in [-1, 1]; nats, not divided."""
        code = self.encoder(u)
        if code.shape != (len(u), 2 * self.latent):
            raise ValueError(f"encoder: expected (N, 2 latent) = {(len(u), 2 * self.latent)}, got {tuple(code.shape)}")
        mean, log_variance = code.chunk(2, dim=1)
        logits = self.decoder(reparametrise(mean, log_variance, noise))
        lost = binary_cross_entropy_with_logits(logits, ((u + 1) / 2).clamp(0, 1), reduction="none")
        return lost.flatten(1).sum(1), kl_to_standard_normal(mean, log_variance)

    def fit_batch(self, real: Tensor, replayed: Tensor | None, ratio: float) -> Mapping[str, Tensor]:
        """Take one step on ratio * mean over real + (1 - ratio) * mean over replayed.

        Random numbers come from the global generator.

        Returns:
            "reconstruction" and "kl", weighted likewise and per value.
        """
        parts = self.weighted_parts(real, replayed, ratio)
        u = torch.cat([part for part, _ in parts])
        weights = torch.cat([torch.full((len(part),), w / len(part), device=u.device) for part, w in parts])
        self.encoder.train(), self.decoder.train()
        terms = self.negative_elbo(u, torch.randn(len(u), self.latent, device=u.device))
        lost, divergence = ((term * weights).sum() / u[0].numel() for term in terms)
        self.optimizer.zero_grad()
        (lost + divergence).backward()
        self.optimizer.step()
        self.steps += 1
        return {"reconstruction": lost.detach(), "kl": divergence.detach()}

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return the decoder's means for n draws of z, (n, *shape), in the data's range and dtype, without a graph."""
        check_count("n", n)
        if not self.steps:
            raise ValueError(
                "VAE: it has never been trained, its samples are noise; call fit_batch, or train with DGRPlugin"
            )
        training = self.decoder.training
        self.decoder.eval()
        device = next(self.decoder.parameters()).device
        z = torch.randn(n, self.latent, generator=generator)
        parts = [self.range.from_unit(2 * self.decoder(part.to(device)).sigmoid() - 1) for part in z.split(_CHUNK)]
        self.decoder.train(training)
        return check_samples(torch.cat(parts), self.data_range, type(self).__name__)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the optimizer's state and the step count."""
        return {"optimizer": self.optimizer.state_dict(), "steps": self.steps}

    def set_extra_state(self, state: Any) -> None:
        """Take the optimizer's state and the step count."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
