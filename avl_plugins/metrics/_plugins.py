"""Finding the plugin whose doings a metric shows."""

from typing import Any, TypeVar

Plugin = TypeVar("Plugin")


def find_plugin(strategy: Any, kind: type[Plugin], metrics: str) -> Plugin:
    """Return the strategy's plugin of this kind; a ValueError says that `metrics` needs one."""
    for plugin in strategy.plugins:
        if isinstance(plugin, kind):
            return plugin
    raise ValueError(f"{metrics} needs a strategy with a {kind.__name__}: add it to plugins")
