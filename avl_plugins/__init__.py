"""EWC, Progressive Networks, Deep Generative Replay and DEN for Avalanche."""

from avl_plugins.ewc.fisher import diagonal_fisher as diagonal_fisher
from avl_plugins.ewc.overlap import fisher_overlap as fisher_overlap
from avl_plugins.ewc.rules import register_fisher_rule as register_fisher_rule
