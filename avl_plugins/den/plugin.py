"""Dynamically Expandable Networks as an Avalanche plugin."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from avalanche.core import SupervisedPlugin

from avl_plugins.checkpoint.resume import phase as numbered
from avl_plugins.data.serving import ServedFeatures
from avl_plugins.den.checks import check_experience, check_use, loss_before_expansion
from avl_plugins.den.drift import Anchor, Before, anchors, drift_penalty, pull_back_
from avl_plugins.den.groups import join_groups, train_only
from avl_plugins.den.head_inputs import head_inputs
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.den.phases import HEAD, Phase, phases_of
from avl_plugins.den.state import checked_state
from avl_plugins.den.steps import add_squares, proximal_step
from avl_plugins.tasks.arguments import (
    check_choice,
    check_count,
    check_each_layer,
    check_flag,
    check_number,
    check_seed,
)
from avl_plugins.tasks.checks import check_loss
from avl_plugins.tasks.owners import note_owner
from avl_plugins.tasks.words import renamed, repr_of_arguments

__all__ = ["DENPlugin"]


@renamed(drift_step="penalty_step")
class DENPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]
    """Trains a `DynamicallyExpandableNetwork` (Yoon et al. 2018, arXiv:1708.01547) with any supervised strategy.

    The first task is trained with the L1 norm (Eq. 2). Each later one (Alg. 1) in four parts:

    1. head: its output weights alone, with L1 (Eq. 3), in the strategy's own epochs, at most `train_epochs`;
    2. retraining: the sub-network with a path to the outputs (Alg. 2, Eq. 4), `train_epochs` long;
    3. expansion, if the loss then exceeds tau: k units more in each layer, trained alone with L1 and group lasso
       (Eq. 5), those emptied removed again from the top layer down (Alg. 3);
    4. drift: all weights with the drift penalty (Eq. 6); units that moved more than sigma are split, and all
       trained again (Alg. 4).

    What follows 1 runs from `after_training_exp`, through the strategy's own epochs, so that metrics and loggers see
    it; `stop_training()` ends the phase that is being trained, and the next one begins. Every phase begins with fresh
    optimizer state. Thresholds of proximal steps are the learning rate times the coefficient, so that a mu of 0.01 is
    the authors' code's 1e-5 at a learning rate of 1e-3.

    Deviations: L1 is applied in 4, too, which would else fill the zeros that selection lives on (the paper has W "kept
    sparse throughout"). Where nothing is split, the second training of 4 is left out. A split leaves what the newest
    task computes as it is (see `split_units`; in the authors' code part of its head begins anew). What a removed unit
    has put out by its bias alone is lost, as in the authors' code.

    Args:
        l1: mu of Eq. 2, 3 and 5.
        l2: mu of Eq. 4; mu / 2 times the sum of squares.
        group_lasso: weight of group lasso, the norms of new units' incoming weights (Eq. 5).
        drift_lambda: lambda of Eq. 6.
        penalty_step: "gradient" adds the drift penalty's gradient. "proximal" pulls weights back to where they were
            after the optimizer's step (`pull_back_`): stable for any lambda, where Adam makes weights tremble by the
            learning rate; the loss still shows the penalty.
        loss_threshold: tau.
        drift_threshold: sigma.
        expand_by: k, units added to each hidden layer; or a number for each of them.
        max_splits: most units that are split in a layer, those that drifted furthest, or a number for each; None: no
            bound.
        phase_epochs: epochs of expansion and of each training in 4; None: `train_epochs`.
        head_tolerance: the head is trained until its mean loss falls by less than this part from epoch to epoch.
        cache_bytes: what the new head reads of all training samples is computed once, not in each step of its training,
            if it takes at most so many bytes and `InMemoryLoaderPlugin` comes before this plugin; weights then differ
            by rounding. Where layers are random (dropout) steps compute it as ever. 0: never once.
        zero_tolerance: weights of at most this size count as zero in selection.
        validation_stream: the loss that tau is compared with is that on the experience with the same number of this
            stream; None: on the training data.
        selective: phases 1 and 2; False: all weights are trained in the strategy's epochs instead, with L1.
        retraining_drift: lambda of a drift penalty in 2 or in its place (0 in the paper; 0.5 / 2 in its code).
        expand: "dynamic"; "constant": k units for every task, trained without L1 and group lasso and all kept; None:
            none.
        split: phase 4.
        seed: of the weights of new units, which a task's number and this determine. None: torch's global generator.

    Attributes:
        history: for each task a dict: "label", "selected" (inputs, then units of each layer), "loss" where expansion
            is switched on, and by layer "added", "removed", "drift" (the largest) and "split".
        phase: the `Phase` that is being trained, one of `phases.PHASES`; None outside.
        weights_before: weights and biases of the hidden layers before the task that is being trained.

    Raises:
        TypeError: If an argument is of another kind; in `train()`, if the strategy's model is no
            `DynamicallyExpandableNetwork`.
        ValueError: If an argument is out of range; in `train()`, if `expand_by` or `max_splits` has not a number for
            each hidden layer, the strategy trains on several tasks at once, on parts of an online stream or in several
            processes, another plugin keeps something for each parameter, whose shape changes, or goes back to an
            earlier state, the plugin or network is another strategy's, too, parameters are frozen or not in the
            optimizer, the criterion is a sum, "proximal" does not know the optimizer, an experience or its validation
            data are empty, a label comes back, the loss is not finite, or a task selects no units.

    Example:
        >>> import torch
        >>> from avalanche.benchmarks import tensors_benchmark
        >>> from avalanche.logging import BaseLogger
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> from avalanche.training.templates import SupervisedTemplate
        >>> from torch import nn
        >>> from avl_plugins.den import DENPlugin, DynamicallyExpandableNetwork
        >>> x, y = torch.randn(40, 4), torch.arange(40) % 2
        >>> data = [(x, y), (-x, y)]
        >>> benchmark = tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0, 1])
        >>> model = DynamicallyExpandableNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU()))
        >>> plugin = DENPlugin(loss_threshold=0.1, expand="constant", expand_by=2, split=False)
        >>> plugin
        DENPlugin(loss_threshold=0.1, expand_by=2, expand='constant', split=False)
        >>> strategy = SupervisedTemplate(
        ...     model=model,
        ...     optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        ...     plugins=[plugin],
        ...     evaluator=EvaluationPlugin(loggers=BaseLogger()),
        ... )
        >>> _ = strategy.train(benchmark.train_stream)
        >>> [entry["added"] for entry in plugin.history]
        [[], [2]]
    """

    def __init__(
        self,
        *,
        l1: float = 0.01,
        l2: float = 1e-4,
        group_lasso: float = 1.0,
        drift_lambda: float = 0.25,
        penalty_step: Literal["gradient", "proximal"] = "gradient",
        loss_threshold: float = 0.01,
        drift_threshold: float = 0.05,
        expand_by: int | Sequence[int] = 10,
        max_splits: int | Sequence[int] | None = 10,
        phase_epochs: int | None = None,
        head_tolerance: float = 1e-2,
        cache_bytes: int = 2**30,
        zero_tolerance: float = 0.0,
        validation_stream: Sequence[Any] | None = None,
        selective: bool = True,
        retraining_drift: float = 0.0,
        expand: Literal["dynamic", "constant"] | None = "dynamic",
        split: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in {
            "l1": l1,
            "l2": l2,
            "group_lasso": group_lasso,
            "drift_lambda": drift_lambda,
            "loss_threshold": loss_threshold,
            "drift_threshold": drift_threshold,
            "head_tolerance": head_tolerance,
            "zero_tolerance": zero_tolerance,
            "retraining_drift": retraining_drift,
        }.items():
            check_number(name, value, low=0)
        check_each_layer("expand_by", expand_by)
        check_each_layer("max_splits", max_splits, none="no bound")
        check_count("phase_epochs", phase_epochs, none="train_epochs")
        check_count("cache_bytes", cache_bytes, low=0)
        check_flag("selective", selective)
        check_flag("split", split)
        check_seed("seed", seed, none="torch's global generator")
        check_choice("expand", expand, ("dynamic", "constant", None))
        check_choice("penalty_step", penalty_step, ("gradient", "proximal"))
        if validation_stream is not None and not (
            hasattr(validation_stream, "__len__") and hasattr(validation_stream, "__getitem__")
        ):
            raise TypeError(f"validation_stream must be a sequence of experiences, or None, got {validation_stream!r}")
        self.l1, self.l2, self.group_lasso = l1, l2, group_lasso
        self.drift_lambda, self.retraining_drift, self.penalty_step = drift_lambda, retraining_drift, penalty_step
        self.loss_threshold, self.drift_threshold = loss_threshold, drift_threshold
        self.expand_by, self.max_splits = expand_by, max_splits
        self.phase_epochs = phase_epochs
        self.head_tolerance, self.zero_tolerance = head_tolerance, zero_tolerance
        self.cache_bytes = cache_bytes
        self.validation_stream = validation_stream
        self.selective, self.expand, self.split, self.seed = selective, expand, split, seed
        self.history: list[dict[str, Any]] = []
        self.phase: Phase | None = None
        self.weights_before: Before = []
        self._losses: list[float] = []
        self._running: list[float] = [0.0, 0.0]
        self._groups: dict[str, int] = {}
        self._head_inputs: ServedFeatures | None = None
        self._given: AbstractContextManager[None] | None = None
        self._anchors: list[Anchor] = []

    __repr__ = repr_of_arguments

    @property
    def step(self) -> str:
        """Name of the current phase, "done" outside; deprecated, `phase` is the phase itself."""
        warnings.warn("DENPlugin.step is DENPlugin.phase now, a Phase or None", DeprecationWarning, stacklevel=2)
        return "done" if self.phase is None else self.phase.name

    def state_dict(self) -> dict[str, Any]:
        """Return where in a task training is, the weights before it, and the history."""
        return {
            "history": [dict(entry) for entry in self.history],
            "phase": None if self.phase is None else self.phase.name,
            "weights_before": [list(pair) for pair in self.weights_before],
            "losses": list(self._losses),
            "running": list(self._running),
            "groups": dict(self._groups),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave, also that of an earlier version.

        Raises:
            ValueError: If an entry is missing, unknown or of another kind. Nothing has changed then.
        """
        phases = {phase.name: phase for task in (1, 2) for phase in phases_of(self, task)}
        state = checked_state(state, list(phases))
        self.history = [dict(entry) for entry in state["history"]]
        self.phase = phases.get(state["phase"])
        self.weights_before = [(weight, bias) for weight, bias in state["weights_before"]]
        self._anchors = []  # of other parameters
        self._losses, self._running = list(state["losses"]), list(state["running"])
        self._groups = dict(state["groups"])

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse other models, training on all tasks at once, and plugins that cannot be beside this one."""
        check_use(strategy, self)
        self.after_forward(strategy)  # a run may have been interrupted

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse unfit experiences; sort a new head into the optimizer's groups where there are several.

        Avalanche cannot.
        """
        check_experience(strategy, self.validation_stream if self.expand else None)
        if len(strategy.optimizer.param_groups) > 1:
            if strategy.optimized_param_id is None:
                strategy.make_optimizer(reset_optimizer_state=True)
            strategy.model = strategy.model_adaptation()  # the template's comes later and finds nothing to do
            join_groups(strategy.model, strategy.optimizer)
            strategy.optimized_param_id = dict(strategy.model.named_parameters())

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin the task and its first phase."""
        note_owner(strategy, self, strategy.model)
        network: DynamicallyExpandableNetwork = strategy.model
        network.drop_stand_in()
        self._losses, self._running = [], [0.0, 0.0]
        self.weights_before = [layer.copies() for layer in network.hidden]
        label = network.newest
        self.history = [entry for entry in self.history if entry["label"] != label]
        self.history.append({"label": label, **{key: [] for key in ("selected", "added", "removed", "drift", "split")}})
        if network.stamp > 1 and self.expand and self.validation_stream is not None:
            loss_before_expansion(self, strategy)  # so that it fails now if it does
        self._begin(phases_of(self, network.stamp)[0], strategy)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """End the head's training when it has converged; before it, compute what it reads."""
        self._running = [0.0, 0.0]
        if self.phase is not HEAD:
            return
        if len(self._losses) > 1:
            last, now = self._losses[-2:]
            if last - now < self.head_tolerance * abs(last):
                strategy.stop_training()
                return
        if self._head_inputs is None and self.cache_bytes:
            self._head_inputs = head_inputs(
                strategy.model, strategy.dataloader, device=strategy.device, limit=self.cache_bytes
            )

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Evaluate earlier tasks with the weights that they share as the phase has trained them so far."""
        strategy.model.write_back(keep=True)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Hand over what the head reads of the batch that was served."""
        if self._head_inputs is not None and (given := self._head_inputs.latest()) is not None:
            self._given = strategy.model.given_features(given)
            self._given.__enter__()

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Forget what the head reads."""
        if self._given is not None:
            self._given.__exit__(None, None, None)
            self._given = None

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the phase's penalties, and refuse a loss that is not finite."""
        if self.phase is None:
            return
        if self.phase is HEAD:
            self._running = [self._running[0] + float(strategy.loss.detach()), self._running[1] + 1]
        if l2 := self.phase.l2(self):
            strategy.loss = strategy.loss + add_squares(strategy.model.stand_in.weights, l2)
        if drift_lambda := self.phase.drift(self):
            with torch.set_grad_enabled(self.penalty_step == "gradient"):
                penalty = drift_lambda * drift_penalty(self._anchored(strategy.model))
            strategy.loss = strategy.loss + penalty
        hint = f"Lower the learning rate or drift_lambda (phase: {self.phase.name})"
        check_loss(strategy, strategy.loss, hint=hint)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Take the phase's proximal steps."""
        if self.phase is None:
            return
        if self.penalty_step == "proximal" and (drift_lambda := self.phase.drift(self)):
            pull_back_(self._anchored(strategy.model), strategy.optimizer, drift_lambda)
        stand_in = strategy.model.stand_in
        proximal_step(
            strategy.optimizer,
            l1=self.phase.l1(self),
            group_lasso=self.phase.group_lasso(self),
            incoming=() if stand_in is None else stand_in.incoming,
        )

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Note the epoch's mean loss."""
        if self.phase is HEAD:
            self._losses.append(self._running[0] / max(self._running[1], 1.0))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Run the phases after the first; those that were complete in a checkpoint are left out."""
        strategy._stop_training = False  # if it was set, then for the epochs that have ended
        network: DynamicallyExpandableNetwork = strategy.model
        first, *others = phases_of(self, network.stamp)
        if self.phase is first:
            self._finish(strategy)
        else:
            others = others[others.index(self.phase) :]  # type: ignore[arg-type]
        for phase in others:
            if phase is self.phase or self._begin(phase, strategy):
                self._run(phase, strategy, kwargs)
                self._finish(strategy)
        self.phase, self.weights_before = None, []
        train_only(strategy, network, self._groups)

    def after_training(self, strategy: Any, **kwargs: Any) -> None:
        """Close the task."""
        strategy.model.finish_task()

    def _begin(self, phase: Phase, strategy: Any) -> bool:
        """Do what comes before a phase; returns whether there is anything to train."""
        part = phase.begin(self, strategy)
        if part is None:
            return False
        self.phase, self._anchors, self._head_inputs = phase, [], None
        train_only(strategy, part, self._groups)
        return True

    def _run(self, phase: Phase, strategy: Any, kwargs: dict[str, Any]) -> None:
        epochs = strategy.train_epochs if phase.full_length or self.phase_epochs is None else self.phase_epochs
        for _ in numbered(strategy, f"den: {phase.name}", epochs=epochs):
            strategy._before_training_epoch(**kwargs)
            if strategy._stop_training:
                break
            strategy.training_epoch(**kwargs)
            strategy._after_training_epoch(**kwargs)
        strategy._stop_training = False

    def _finish(self, strategy: Any) -> None:
        """Do what comes after the current phase."""
        if self.phase is not None:
            self.phase.finish(self, strategy)

    def _anchored(self, network: DynamicallyExpandableNetwork) -> list[Anchor]:
        """Return what the drift penalty is about, the same list all through a phase."""
        if not self._anchors:
            self._anchors = anchors(network, self.weights_before)
        return self._anchors
