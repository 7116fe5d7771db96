"""Metrics for Avalanche's `EvaluationPlugin`, one family a file.

What a method does is logged under its name ("ewc/...", "progressive/...", "dgr/...", "den/..."), sizes under
"capacity/" and forgetting under "forgetting/", so that TensorBoard, which sorts by name, shows accuracies first. Images
and figures are `Picture`s, which every one of Avalanche's loggers takes.
"""

from avl_plugins.metrics.auroc import auroc_metrics, mean_auroc
from avl_plugins.metrics.capacity import capacity_metrics, count_parameters
from avl_plugins.metrics.columns import column_metrics
from avl_plugins.metrics.den import den_metrics, growth_figure, growth_table
from avl_plugins.metrics.ewc import ewc_metrics
from avl_plugins.metrics.forgetting import chaudhry_forgetting_metrics, forgetting
from avl_plugins.metrics.learning_curve import learning_curve_area, transfer_score
from avl_plugins.metrics.pictures import Picture
from avl_plugins.metrics.progressive import sensitivity_metrics
from avl_plugins.metrics.replay import replay_metrics
from avl_plugins.metrics.rl import return_metrics, rollout_metrics
from avl_plugins.metrics.transfer import transfer_metrics

__all__ = [
    "Picture",
    "auroc_metrics",
    "capacity_metrics",
    "chaudhry_forgetting_metrics",
    "column_metrics",
    "count_parameters",
    "den_metrics",
    "ewc_metrics",
    "forgetting",
    "growth_figure",
    "growth_table",
    "learning_curve_area",
    "mean_auroc",
    "replay_metrics",
    "return_metrics",
    "rollout_metrics",
    "sensitivity_metrics",
    "transfer_metrics",
    "transfer_score",
]
