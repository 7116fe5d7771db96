"""Metrics for Avalanche's `EvaluationPlugin`, one family a file."""

from typing import TYPE_CHECKING

from avl_plugins._lazy import lazily

if TYPE_CHECKING:
    from avl_plugins.metrics.auroc import auroc_metrics as auroc_metrics
    from avl_plugins.metrics.auroc import mean_auroc as mean_auroc
    from avl_plugins.metrics.capacity import capacity_metrics as capacity_metrics
    from avl_plugins.metrics.capacity import count_parameters as count_parameters
    from avl_plugins.metrics.columns import column_metrics as column_metrics
    from avl_plugins.metrics.den import den_metrics as den_metrics
    from avl_plugins.metrics.den import growth_figure as growth_figure
    from avl_plugins.metrics.den import growth_table as growth_table
    from avl_plugins.metrics.ewc import ewc_metrics as ewc_metrics
    from avl_plugins.metrics.forgetting import chaudhry_forgetting_metrics as chaudhry_forgetting_metrics
    from avl_plugins.metrics.forgetting import forgetting as forgetting
    from avl_plugins.metrics.learning_curve import learning_curve_area as learning_curve_area
    from avl_plugins.metrics.learning_curve import transfer_score as transfer_score
    from avl_plugins.metrics.progressive import sensitivity_metrics as sensitivity_metrics
    from avl_plugins.metrics.replay import replay_metrics as replay_metrics
    from avl_plugins.metrics.rl import return_metrics as return_metrics
    from avl_plugins.metrics.rl import rollout_metrics as rollout_metrics
    from avl_plugins.metrics.transfer import transfer_metrics as transfer_metrics

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "auroc": ["auroc_metrics", "mean_auroc"],
        "capacity": ["capacity_metrics", "count_parameters"],
        "columns": ["column_metrics"],
        "den": ["den_metrics", "growth_figure", "growth_table"],
        "ewc": ["ewc_metrics"],
        "forgetting": ["chaudhry_forgetting_metrics", "forgetting"],
        "learning_curve": ["learning_curve_area", "transfer_score"],
        "progressive": ["sensitivity_metrics"],
        "replay": ["replay_metrics"],
        "rl": ["return_metrics", "rollout_metrics"],
        "transfer": ["transfer_metrics"],
    },
)
