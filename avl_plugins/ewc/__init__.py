"""Elastic Weight Consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796)."""

from typing import TYPE_CHECKING

from avl_plugins._lazy import lazily

if TYPE_CHECKING:
    from avl_plugins.ewc.fisher import diagonal_fisher as diagonal_fisher
    from avl_plugins.ewc.kronecker import KroneckerFisher as KroneckerFisher
    from avl_plugins.ewc.kronecker import kronecker_fisher as kronecker_fisher
    from avl_plugins.ewc.kronecker_penalty import KroneckerPenalty as KroneckerPenalty
    from avl_plugins.ewc.overlap import fisher_overlap as fisher_overlap
    from avl_plugins.ewc.penalty import QuadraticPenalty as QuadraticPenalty
    from avl_plugins.ewc.plugin import EWCPlugin as EWCPlugin
    from avl_plugins.ewc.rules import register_fisher_rule as register_fisher_rule
    from avl_plugins.ewc.strategy import EWC as EWC

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "fisher": ["diagonal_fisher"],
        "kronecker": ["KroneckerFisher", "kronecker_fisher"],
        "kronecker_penalty": ["KroneckerPenalty"],
        "overlap": ["fisher_overlap"],
        "penalty": ["QuadraticPenalty"],
        "plugin": ["EWCPlugin"],
        "rules": ["register_fisher_rule"],
        "strategy": ["EWC"],
    },
)
