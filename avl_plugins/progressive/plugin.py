"""Progressive networks in an Avalanche strategy."""

from contextlib import AbstractContextManager
from typing import Any

from avalanche.core import SupervisedPlugin

from avl_plugins.loading import InMemoryLoaderPlugin, TensorLoader
from avl_plugins.progressive.frozen import with_frozen_features
from avl_plugins.progressive.network import ProgressiveNetwork

__all__ = ["ProgressivePlugin"]


class ProgressivePlugin(SupervisedPlugin):
    """Trains a `ProgressiveNetwork` with any supervised strategy: the newest column, and nothing else.

    The network itself adds columns and freezes them. The plugin says early what cannot work, takes the frozen
    parameters and their state out of the optimizer, closes an experience (a label that comes back is then refused), and
    computes the frozen columns' features once an experience, if asked to.

    Args:
        cache_frozen: Compute the features of the frozen columns once at the start of an experience and serve
            them with the batches, so that a step costs the same whatever the depth of the frozen columns. Features of
            a sample computed in other batches differ in the last bits. Needs data that are the same each epoch.
        cache_bytes: Bound on the memory of these features.

    Raises:
        ValueError: If `cache_bytes` is negative; in `train()`, if the features do not fit into it, the data set's
            transforms are random or another plugin serves the batches.
        TypeError: In `train()`, if the strategy's model is no `ProgressiveNetwork`.
    """

    def __init__(self, *, cache_frozen: bool = False, cache_bytes: int = 2**32) -> None:
        super().__init__()
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes: expected at least 0, got {cache_bytes}")
        self.cache_frozen = cache_frozen
        self.cache_bytes = cache_bytes
        self._serving = False
        self._given: AbstractContextManager | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: what there is to know is in the network."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the empty state."""
        if state:
            raise ValueError(f"ProgressivePlugin has no state, got {sorted(state)}")

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse other models."""
        if not isinstance(strategy.model, ProgressiveNetwork):
            raise TypeError(
                f"ProgressivePlugin trains a ProgressiveNetwork, and the model is a {type(strategy.model).__name__}; "
                "pass model=ProgressiveNetwork(nn.Sequential(...)) with the layers before the output head"
            )

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Take frozen parameters out of the optimizer; compute the frozen columns' features."""
        for group in strategy.optimizer.param_groups:
            frozen = {id(p) for p in group["params"] if not p.requires_grad}
            for parameter in [p for p in group["params"] if id(p) in frozen]:
                strategy.optimizer.state.pop(parameter, None)
            group["params"] = [p for p in group["params"] if id(p) not in frozen]
        network: ProgressiveNetwork = strategy.model
        self._serving = self.cache_frozen and len(network.columns) > 1 and network.labels[-1] in _labels(strategy)
        if self._serving:
            with_frozen_features(network, _loader(strategy), device=strategy.device, limit=self.cache_bytes)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Hand over the features that came with the batch."""
        if self._serving:
            depths = len(strategy.model.columns[-1].stages)
            self._given = strategy.model.given_features(strategy.mbatch[2 : 2 + depths])
            self._given.__enter__()

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Forget them."""
        if self._given is not None:
            self._given.__exit__(None, None, None)
            self._given = None

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Close the task."""
        self._serving = False
        strategy.model.finish_task()


def _loader(strategy: Any) -> TensorLoader:
    """Return the loader from memory that serves the experience, put in place here if none is."""
    if not isinstance(strategy.dataloader, TensorLoader):
        try:
            InMemoryLoaderPlugin().before_training_exp(strategy)
        except ValueError as error:
            raise ValueError(f"cache_frozen: {error}") from error
    if not isinstance(strategy.dataloader, TensorLoader):
        raise ValueError("cache_frozen: the batches of a distributed run cannot be served from memory")
    return strategy.dataloader


def _labels(strategy: Any) -> set[int]:
    return {int(label) for label in strategy.experience.task_labels}
