"""Deep Generative Replay (Shin et al. 2017, arXiv:1705.08690): generators, scholar, plugin and strategy."""

from typing import TYPE_CHECKING

from avl_plugins._lazy import lazily

if TYPE_CHECKING:
    from avl_plugins.dgr.generator import Generator as Generator
    from avl_plugins.dgr.plugin import DGRPlugin as DGRPlugin
    from avl_plugins.dgr.scholar import Scholar as Scholar
    from avl_plugins.dgr.strategy import DGR as DGR
    from avl_plugins.dgr.vae import VAE as VAE
    from avl_plugins.dgr.wgan_gp import WGANGP as WGANGP

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "generator": ["Generator"],
        "plugin": ["DGRPlugin"],
        "scholar": ["Scholar"],
        "strategy": ["DGR"],
        "vae": ["VAE"],
        "wgan_gp": ["WGANGP"],
    },
)
