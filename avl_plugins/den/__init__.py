"""Dynamically Expandable Networks (Yoon et al. 2018, arXiv:1708.01547): network, phases, plugin and strategy."""

from typing import TYPE_CHECKING

from avl_plugins._lazy import lazily

if TYPE_CHECKING:
    from avl_plugins.den.loss import one_vs_rest_loss as one_vs_rest_loss
    from avl_plugins.den.network import DynamicallyExpandableNetwork as DynamicallyExpandableNetwork
    from avl_plugins.den.phases import Phase as Phase
    from avl_plugins.den.plugin import DENPlugin as DENPlugin
    from avl_plugins.den.strategy import DEN as DEN

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "loss": ["one_vs_rest_loss"],
        "network": ["DynamicallyExpandableNetwork"],
        "phases": ["Phase"],
        "plugin": ["DENPlugin"],
        "strategy": ["DEN"],
    },
)
