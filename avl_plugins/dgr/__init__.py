"""Deep Generative Replay (Shin et al. 2017, arXiv:1705.08690): generators, scholar, plugin and strategy."""

from typing import TYPE_CHECKING

from avl_plugins._lazy import lazily

if TYPE_CHECKING:
    from avl_plugins.dgr.generator import Generator as Generator
    from avl_plugins.dgr.networks import conv_critic as conv_critic
    from avl_plugins.dgr.networks import conv_decoder as conv_decoder
    from avl_plugins.dgr.networks import conv_encoder as conv_encoder
    from avl_plugins.dgr.networks import mlp_critic as mlp_critic
    from avl_plugins.dgr.networks import mlp_decoder as mlp_decoder
    from avl_plugins.dgr.networks import mlp_encoder as mlp_encoder
    from avl_plugins.dgr.plugin import DGRPlugin as DGRPlugin
    from avl_plugins.dgr.scholar import Answers as Answers
    from avl_plugins.dgr.scholar import Scholar as Scholar
    from avl_plugins.dgr.scholar import Solver as Solver
    from avl_plugins.dgr.scholar import replay_loss as replay_loss
    from avl_plugins.dgr.strategy import DGR as DGR
    from avl_plugins.dgr.vae import VAE as VAE
    from avl_plugins.dgr.wgan_gp import WGANGP as WGANGP

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "generator": ["Generator"],
        "networks": ["conv_critic", "conv_decoder", "conv_encoder", "mlp_critic", "mlp_decoder", "mlp_encoder"],
        "plugin": ["DGRPlugin"],
        "scholar": ["Answers", "Scholar", "Solver", "replay_loss"],
        "strategy": ["DGR"],
        "vae": ["VAE"],
        "wgan_gp": ["WGANGP"],
    },
)
