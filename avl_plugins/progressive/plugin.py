"""Progressive networks in an Avalanche strategy."""

from contextlib import AbstractContextManager
from typing import Any

from avalanche.benchmarks import OnlineCLExperience
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import JointTraining

from avl_plugins.data.loading import InMemoryLoaderPlugin
from avl_plugins.data.sampling import NotServed
from avl_plugins.data.serving import ServedFeatures, TensorLoader
from avl_plugins.progressive.frozen import served_features
from avl_plugins.progressive.groups import drop_frozen, join_groups
from avl_plugins.progressive.network import ProgressiveNetwork
from avl_plugins.progressive.old_words import takes_cache_frozen
from avl_plugins.tasks.arguments import check_count
from avl_plugins.tasks.boundaries import finished_task, is_part, parts_so_far
from avl_plugins.tasks.checks import check_loss, refuse_distributed, refuse_empty
from avl_plugins.tasks.labels import experience_labels
from avl_plugins.tasks.owners import note_owner, refuse_shared
from avl_plugins.tasks.states import COUNT, check_entries
from avl_plugins.tasks.words import repr_of_arguments

__all__ = ["ProgressivePlugin"]


@takes_cache_frozen
class ProgressivePlugin(SupervisedPlugin):
    """Trains a `ProgressiveNetwork` with any supervised strategy: the newest column, and nothing else.

    The network itself adds columns and freezes them. The plugin says early what cannot work, takes the frozen
    parameters and their state out of the optimizer, closes a task (a label that comes back is then refused, if its
    `train()` was not interrupted), and computes the frozen columns' features once an experience, if asked to. The parts
    of an experience, in an online stream with known boundaries, are one task. In an optimizer with several parameter
    groups, which Avalanche cannot sort new columns into, each parameter joins the group of its like in the column
    before (see `join_groups`).

    Args:
        cache_bytes: the features of the frozen columns are computed once at the start of an experience and served with
            the batches, so that a step costs the same whatever the depth of the frozen columns, if they take at most so
            many bytes; else steps compute them, as the log says. Features of a sample computed in other batches differ
            in the last bits. Needs data that are the same in each epoch. 0: never.

    Raises:
        ValueError: If `cache_bytes` is negative; in `train()`, if the strategy trains on all tasks at once or in
            several processes, the plugin or network is another strategy's, too, an experience is empty or a part that
            cannot be told from a task, or the loss is not finite; if features are to be computed once, and the data
            set's transforms are random, or another plugin serves or changes the batches.
        TypeError: If an argument is of another kind; in `train()`, if the strategy's model is no `ProgressiveNetwork`.

    Example:
        >>> import torch
        >>> from avalanche.benchmarks import tensors_benchmark
        >>> from avalanche.logging import BaseLogger
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> from avalanche.training.templates import SupervisedTemplate
        >>> from torch import nn
        >>> from avl_plugins.progressive import ProgressiveNetwork, ProgressivePlugin
        >>> x, y = torch.randn(40, 4), torch.arange(40) % 2
        >>> data = [(x, y), (-x, y)]
        >>> benchmark = tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0, 1])
        >>> model = ProgressiveNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU()))
        >>> strategy = SupervisedTemplate(
        ...     model=model,
        ...     optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        ...     plugins=[ProgressivePlugin(cache_bytes=2**20)],
        ...     evaluator=EvaluationPlugin(loggers=BaseLogger()),
        ... )
        >>> _ = strategy.train(benchmark.train_stream)
        >>> [column.frozen for column in model.columns]
        [True, False]
        >>> ProgressivePlugin(cache_bytes=2**20)
        ProgressivePlugin(cache_bytes=1048576)
    """

    def __init__(self, *, cache_bytes: int = 0) -> None:
        super().__init__()
        check_count("cache_bytes", cache_bytes, low=0)
        self.cache_bytes = cache_bytes
        self._complete = False
        self._parts = 0
        self._loader: TensorLoader | None = None
        self._features: ServedFeatures | None = None
        self._given: AbstractContextManager | None = None

    __repr__ = repr_of_arguments

    def state_dict(self) -> dict[str, Any]:
        """Return how many parts of a task have been trained on; what else there is to know is in the network."""
        return {"parts": self._parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave; in earlier versions it was empty.

        Raises:
            ValueError: If an entry is unknown or of another kind. Nothing has changed then.
        """
        check_entries("ProgressivePlugin", state, {}, optional={"parts": COUNT})
        self._parts = state.get("parts", 0)

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse other models, training on all tasks at once or in several processes, and a loader that is too late."""
        if not isinstance(strategy.model, ProgressiveNetwork):
            raise TypeError(
                f"ProgressivePlugin trains a ProgressiveNetwork, and the model is a {type(strategy.model).__name__}; "
                "pass model=ProgressiveNetwork(nn.Sequential(...)) with the layers before the output head, not inside "
                "DataParallel or torch.compile"
            )
        if isinstance(strategy, JointTraining):
            raise ValueError(
                "JointTraining trains on all tasks at once, and a progressive network on one after the other; train "
                "a multi-head model jointly instead"
            )
        refuse_distributed("ProgressivePlugin")
        refuse_shared(strategy, "ProgressivePlugin", plugin=self)
        refuse_shared(strategy, "ProgressivePlugin", model=strategy.model, gone=False)
        plugins = list(strategy.plugins)
        if self.cache_bytes and any(isinstance(p, InMemoryLoaderPlugin) for p in plugins[plugins.index(self) :]):
            raise ValueError("cache_bytes: put InMemoryLoaderPlugin before ProgressivePlugin, which builds on it")
        self.after_forward(strategy)  # a run may have been interrupted

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Close the task before; refuse unfit experiences; sort parameters into the optimizer's groups, if several."""
        if self._complete:
            self._close(strategy)
        self._check_experience(strategy)
        if len(strategy.optimizer.param_groups) > 1:
            if strategy.optimized_param_id is None:
                strategy.make_optimizer(reset_optimizer_state=True)
            if set(experience_labels(strategy.experience)) - set(strategy.model.labels):
                strategy.model = strategy.model_adaptation()  # the template's comes later and finds nothing to do
            join_groups(strategy.model, strategy.optimizer)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Take frozen parameters out of the optimizer; compute the frozen columns' features."""
        note_owner(strategy, self, strategy.model)
        drop_frozen(strategy.optimizer)
        self._loader = self._features = None
        network: ProgressiveNetwork = strategy.model
        newest: Any = network.columns[-1]
        if self.cache_bytes and network.adapter is not None and len(network.columns) > 1 and not newest.frozen:
            found, loader = strategy.dataloader, _loader(strategy)
            self._features = served_features(network, loader, device=strategy.device, limit=self.cache_bytes)
            if self._features is None:
                strategy.dataloader = found
            else:
                self._loader = loader

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse a loader that has been put in the place of the one that serves the features."""
        if self._loader is not None and strategy.dataloader is not self._loader:
            raise ValueError(
                f"cache_bytes: a plugin after ProgressivePlugin uses a loader of its own, "
                f"{type(strategy.dataloader).__name__}, which serves no features of frozen columns; remove it, or "
                "train with cache_bytes=0"
            )

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Hand over the features of the batch that was served."""
        if self._features is not None and (given := self._features.latest()) is not None:
            self._given = strategy.model.given_features(given)
            self._given.__enter__()

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Forget the features of the batch."""
        if self._given is not None:
            self._given.__exit__(None, None, None)
        self._given = None

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse a loss that is not finite, before it reaches the newest column."""
        check_loss(strategy, strategy.loss)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note whether the task is complete; plugins after this one may still train on it, and be resumed in that."""
        self._parts = parts_so_far(strategy.experience, self._parts)
        self._complete = finished_task(strategy, self._parts) is not None

    def after_training(self, strategy: Any, **kwargs: Any) -> None:
        """Close the task, if it has ended."""
        if finished_task(strategy, self._parts) is not None:
            self._close(strategy)
        self._loader = self._features = None

    @staticmethod
    def _check_experience(strategy: Any) -> None:
        """Refuse empty experiences, and parts of an online stream that cannot be told from tasks."""
        refuse_empty(strategy, "ProgressivePlugin")
        experience: Any = strategy.experience
        if isinstance(experience, OnlineCLExperience):
            if not hasattr(experience, "task_labels"):
                raise ValueError(
                    "the parts of the online stream have no task labels: wrap it, with_task_labels(split_online_stream("
                    "...)), of avalanche.benchmarks"
                )
            if not is_part(experience) and not strategy.model.retrain:
                raise ValueError(
                    "the parts of the online stream cannot be told from tasks: make it with "
                    "access_task_boundaries=True, or the network with retrain=True, which goes on with a label's column"
                )

    def _close(self, strategy: Any) -> None:
        strategy.model.finish_task()
        self._complete = False


def _loader(strategy: Any) -> TensorLoader:
    """Return the loader from memory that serves the experience, put in place here if none is."""
    if isinstance(strategy.dataloader, TensorLoader):
        return strategy.dataloader
    try:
        return InMemoryLoaderPlugin().serve(strategy)
    except NotServed as why:
        raise ValueError(f"cache_bytes: {why}; train with cache_bytes=0") from why
