"""EWC, Progressive Networks, Deep Generative Replay and DEN for Avalanche.

Metrics are in `avl_plugins.metrics`.
"""

from avl_plugins.checkpoint.file import load_checkpoint as load_checkpoint
from avl_plugins.checkpoint.file import save_checkpoint as save_checkpoint
from avl_plugins.checkpoint.resume import CheckpointEvery as CheckpointEvery
from avl_plugins.checkpoint.resume import Resumable as Resumable
from avl_plugins.data.loading import InMemoryLoaderPlugin as InMemoryLoaderPlugin
from avl_plugins.den.loss import one_vs_rest_loss as one_vs_rest_loss
from avl_plugins.den.network import DynamicallyExpandableNetwork as DynamicallyExpandableNetwork
from avl_plugins.den.plugin import DENPlugin as DENPlugin
from avl_plugins.den.strategy import DEN as DEN
from avl_plugins.dgr.generator import Generator as Generator
from avl_plugins.dgr.plugin import DGRPlugin as DGRPlugin
from avl_plugins.dgr.scholar import Scholar as Scholar
from avl_plugins.dgr.strategy import DGR as DGR
from avl_plugins.dgr.vae import VAE as VAE
from avl_plugins.dgr.wgan_gp import WGANGP as WGANGP
from avl_plugins.ewc.fisher import diagonal_fisher as diagonal_fisher
from avl_plugins.ewc.kronecker import KroneckerFisher as KroneckerFisher
from avl_plugins.ewc.kronecker import kronecker_fisher as kronecker_fisher
from avl_plugins.ewc.kronecker_penalty import KroneckerPenalty as KroneckerPenalty
from avl_plugins.ewc.overlap import fisher_overlap as fisher_overlap
from avl_plugins.ewc.penalty import QuadraticPenalty as QuadraticPenalty
from avl_plugins.ewc.plugin import EWCPlugin as EWCPlugin
from avl_plugins.ewc.rules import register_fisher_rule as register_fisher_rule
from avl_plugins.ewc.strategy import EWC as EWC
from avl_plugins.growth.parameters import grow_parameter as grow_parameter
from avl_plugins.progressive.figure import sensitivity_figure as sensitivity_figure
from avl_plugins.progressive.network import ProgressiveNetwork as ProgressiveNetwork
from avl_plugins.progressive.perturbation import average_perturbation_sensitivity as average_perturbation_sensitivity
from avl_plugins.progressive.plugin import ProgressivePlugin as ProgressivePlugin
from avl_plugins.progressive.pruning import prune_laterals as prune_laterals
from avl_plugins.progressive.pruning import pruning_curve as pruning_curve
from avl_plugins.progressive.sensitivity import afs_spectrum as afs_spectrum
from avl_plugins.progressive.sensitivity import average_fisher_sensitivity as average_fisher_sensitivity
from avl_plugins.progressive.sensitivity import effective_maps as effective_maps
from avl_plugins.progressive.strategy import Progressive as Progressive
