"""Progressive Networks (Rusu et al. 2016, arXiv:1606.04671)."""

from typing import TYPE_CHECKING

from avl_plugins._lazy import lazily

if TYPE_CHECKING:
    from avl_plugins.progressive.figure import sensitivity_figure as sensitivity_figure
    from avl_plugins.progressive.network import ProgressiveNetwork as ProgressiveNetwork
    from avl_plugins.progressive.perturbation import PerturbationSensitivity as PerturbationSensitivity
    from avl_plugins.progressive.perturbation import (
        average_perturbation_sensitivity as average_perturbation_sensitivity,
    )
    from avl_plugins.progressive.plugin import ProgressivePlugin as ProgressivePlugin
    from avl_plugins.progressive.pruning import prune_laterals as prune_laterals
    from avl_plugins.progressive.pruning import pruning_curve as pruning_curve
    from avl_plugins.progressive.sensitivity import FisherSensitivity as FisherSensitivity
    from avl_plugins.progressive.sensitivity import afs_spectrum as afs_spectrum
    from avl_plugins.progressive.sensitivity import average_fisher_sensitivity as average_fisher_sensitivity
    from avl_plugins.progressive.sensitivity import effective_maps as effective_maps
    from avl_plugins.progressive.strategy import Progressive as Progressive

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "figure": ["sensitivity_figure"],
        "network": ["ProgressiveNetwork"],
        "perturbation": ["PerturbationSensitivity", "average_perturbation_sensitivity"],
        "plugin": ["ProgressivePlugin"],
        "pruning": ["prune_laterals", "pruning_curve"],
        "sensitivity": ["FisherSensitivity", "afs_spectrum", "average_fisher_sensitivity", "effective_maps"],
        "strategy": ["Progressive"],
    },
)
