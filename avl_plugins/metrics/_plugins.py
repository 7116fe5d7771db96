"""What metrics ask of a strategy: the plugin whose doings they show, and the place of a value on the x axis."""

from typing import Any, TypeVar

Plugin = TypeVar("Plugin")


def find_plugin(strategy: Any, kind: type[Plugin], metrics: str) -> Plugin:
    """Return the strategy's plugin of this kind; a ValueError says that `metrics` needs one."""
    for plugin in strategy.plugins:
        if isinstance(plugin, kind):
            return plugin
    raise ValueError(f"{metrics} needs a strategy with a {kind.__name__}: add it to plugins")


def position(strategy: Any) -> int:
    """Return the x of a value logged now: agent steps in reinforcement learning, training iterations else.

    It never decreases: Weights & Biases drops what comes at a smaller x than something before.
    """
    return getattr(strategy, "steps", strategy.clock.train_iterations)
