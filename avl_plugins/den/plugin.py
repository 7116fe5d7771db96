"""Dynamically Expandable Networks as an Avalanche plugin."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from avl_plugins.checkpoint.resume import phase
from avl_plugins.data.serving import ServedFeatures
from avl_plugins.den.checks import check_experience, check_loss_on, check_use, each_layer
from avl_plugins.den.drift import Anchor, Before, anchors, drift_penalty, pull_back_
from avl_plugins.den.duplication import drifted_units, drifts, split_units
from avl_plugins.den.expansion import add_units, empty_units, remove_units
from avl_plugins.den.head_inputs import head_inputs
from avl_plugins.den.network import DynamicallyExpandableNetwork
from avl_plugins.den.phases import add_squares, join_groups, proximal_step, train_only
from avl_plugins.den.selection import units_with_a_path
from avl_plugins.den.stand_in import NewUnits, Selected, all_that_is_used
from avl_plugins.tasks.arguments import check_choice, check_count, check_each_layer, check_flag, check_number
from avl_plugins.tasks.checks import check_loss
from avl_plugins.tasks.owners import note_owner
from avl_plugins.tasks.states import FLAG, Entry, check_entries, is_count, is_number, list_of

__all__ = ["DENPlugin"]

STEPS = ("first", "full", "head", "retraining", "expansion", "drift", "split", "done")
"""What is being trained, in order; the first task has "first" alone, later ones "full" or "head" and what follows."""


def _is_layer(value: Any) -> bool:
    """Return whether a value is a weight and a bias, or None for that."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and isinstance(value[0], Tensor)
        and (value[1] is None or isinstance(value[1], Tensor))
    )


_ENTRIES: dict[str, Entry] = {
    "history": (
        'a list of dicts with a "label" each',
        list_of(lambda entry: isinstance(entry, dict) and isinstance(entry.get("label"), int)),
    ),
    "step": (f"one of {', '.join(STEPS)}", lambda value: isinstance(value, str) and value in STEPS),
    "weights_before": ("a weight, and a bias or None, for each layer", list_of(_is_layer)),
    "expanding": FLAG,
    "splitting": FLAG,
    "losses": ("a list of numbers", list_of(is_number)),
    "running": ("two numbers", lambda value: list_of(is_number)(value) and len(value) == 2),
    "groups": (
        "a dict of numbers of parameter groups",
        lambda value: isinstance(value, dict) and all(map(is_count, value.values())),
    ),
}


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
        group_lasso: gamma of Eq. 5.
        drift_lambda: lambda of Eq. 6.
        drift_step: "gradient" adds the drift penalty's gradient. "proximal" pulls weights back to where they were after
            the optimizer's step (`pull_back_`): stable for any lambda, where Adam makes weights tremble by the learning
            rate; the loss still shows the penalty.
        loss_threshold: tau.
        drift_threshold: sigma.
        expand_by: k, units added to each hidden layer; or a number for each of them.
        max_splits: Most units that are split in a layer, those that drifted furthest, or a number for each; None: no
            bound.
        phase_epochs: Epochs of expansion and of each training in 4; None: `train_epochs`.
        head_tolerance: The head is trained until its mean loss falls by less than this part from epoch to epoch.
        cache_bytes: What the new head reads of all training samples is computed once, not in each step of its training,
            if it takes at most so many bytes and `InMemoryLoaderPlugin` comes before this plugin; weights then differ
            by rounding. Where layers are random (dropout) steps compute it as ever. 0: never once.
        zero_tolerance: Weights of at most this size count as zero in selection.
        validation_stream: The loss that tau is compared with is that on the experience with the same number of this
            stream; None: on the training data.
        selective: Phases 1 and 2; False: all weights are trained in the strategy's epochs instead, with L1.
        retraining_drift: lambda of a drift penalty in 2 or in its place (0 in the paper; 0.5 / 2 in its code).
        expand: "dynamic"; "constant": k units for every task, trained without L1 and group lasso and all kept; None:
            none.
        split: Phase 4.

    Attributes:
        history: For each task a dict: "label", "selected" (inputs, then units of each layer), "loss" where expansion
            is switched on, and by layer "added", "removed", "drift" (the largest) and "split".

    Raises:
        TypeError: If an argument is of another kind; in `train()`, if the strategy's model is no
            `DynamicallyExpandableNetwork`.
        ValueError: If an argument is out of range; in `train()`, if `expand_by` or `max_splits` has not a number for
            each hidden layer, the strategy trains on several tasks at once, on parts of an online stream or in several
            processes, another plugin keeps something for each parameter, whose shape changes, or goes back to an
            earlier state, the plugin or network is another strategy's, too, parameters are frozen or not in the
            optimizer, the criterion is a sum, "proximal" does not know the optimizer, an experience or its validation
            data are empty, a label comes back, the loss is not finite, or a task selects no units.
    """

    def __init__(
        self,
        *,
        l1: float = 0.01,
        l2: float = 1e-4,
        group_lasso: float = 1.0,
        drift_lambda: float = 0.25,
        drift_step: Literal["gradient", "proximal"] = "gradient",
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
        check_choice("expand", expand, ("dynamic", "constant", None))
        check_choice("drift_step", drift_step, ("gradient", "proximal"))
        if validation_stream is not None and not (
            hasattr(validation_stream, "__len__") and hasattr(validation_stream, "__getitem__")
        ):
            raise TypeError(f"validation_stream must be a sequence of experiences, or None, got {validation_stream!r}")
        self.l1, self.l2, self.group_lasso = l1, l2, group_lasso
        self.drift_lambda, self.retraining_drift, self.drift_step = drift_lambda, retraining_drift, drift_step
        self.loss_threshold, self.drift_threshold = loss_threshold, drift_threshold
        self.expand_by, self.max_splits = expand_by, max_splits
        self.phase_epochs = phase_epochs
        self.head_tolerance, self.zero_tolerance = head_tolerance, zero_tolerance
        self.cache_bytes = cache_bytes
        self.validation_stream = validation_stream
        self.selective, self.expand, self.split = selective, expand, split
        self.history: list[dict[str, Any]] = []
        self.step = "done"
        self.weights_before: Before = []
        self._expanding = self._splitting = False
        self._losses: list[float] = []
        self._running: list[float] = [0.0, 0.0]
        self._groups: dict[str, int] = {}
        self._head_inputs: ServedFeatures | None = None
        self._anchors: list[Anchor] = []

    def state_dict(self) -> dict[str, Any]:
        """Return where in a task training is, the weights before it, and the history."""
        return {
            "history": [dict(entry) for entry in self.history],
            "step": self.step,
            "weights_before": [list(pair) for pair in self.weights_before],
            "expanding": self._expanding,
            "splitting": self._splitting,
            "losses": list(self._losses),
            "running": list(self._running),
            "groups": dict(self._groups),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave.

        Raises:
            ValueError: If an entry is missing, unknown or of another kind. Nothing has changed then.
        """
        check_entries("DENPlugin", state, _ENTRIES)
        self.history = [dict(entry) for entry in state["history"]]
        self.step = state["step"]
        self.weights_before = [(weight, bias) for weight, bias in state["weights_before"]]
        self._anchors = []  # of other parameters
        self._expanding, self._splitting = state["expanding"], state["splitting"]
        self._losses, self._running = list(state["losses"]), list(state["running"])
        self._groups = dict(state["groups"])

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse other models, training on all tasks at once, and plugins that cannot be beside this one."""
        check_use(strategy, self)
        self._head_inputs = strategy.model.given = None  # a run may have been interrupted

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
        """Begin the first phase."""
        note_owner(strategy, self, strategy.model)
        network: DynamicallyExpandableNetwork = strategy.model
        network.stand_in = None
        self._anchors = []
        self._losses, self._running = [], [0.0, 0.0]
        if network.stamp == 1:
            self.step = "first"
        else:
            self.step = "head" if self.selective else "full"
        self.weights_before = [layer.copies() for layer in network.hidden]
        label = network.newest
        self.history = [entry for entry in self.history if entry["label"] != label]
        self.history.append({"label": label, **{key: [] for key in ("selected", "added", "removed", "drift", "split")}})
        self._expanding = self._splitting = False
        if network.stamp > 1 and self.expand and self.validation_stream is not None:
            self._loss_before_expansion(strategy)  # so that it fails now if it does
        if self.step == "head":
            self._train_only(strategy, network.head_of(label))
        else:
            self._train_all(strategy)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """End the head's training when it has converged; before it, compute what it reads."""
        self._running = [0.0, 0.0]
        if self.step != "head":
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
        if strategy.model.stand_in is not None:
            strategy.model.stand_in.write_back()

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Hand over what the head reads."""
        if self._head_inputs is not None:
            strategy.model.given = self._head_inputs.latest()

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Forget it."""
        if self._head_inputs is not None:
            strategy.model.given = None

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the phase's penalty, and refuse a loss that is not finite."""
        if self.step == "head":
            self._running = [self._running[0] + float(strategy.loss.detach()), self._running[1] + 1]
        network: DynamicallyExpandableNetwork = strategy.model
        if self.step == "retraining" and self.l2:
            stand_in: Any = network.stand_in
            strategy.loss = strategy.loss + add_squares(stand_in.weights, self.l2)
        if weight := self._drift_weight():
            with torch.set_grad_enabled(self.drift_step == "gradient"):
                penalty = weight * drift_penalty(self._anchored(network))
            strategy.loss = strategy.loss + penalty
        check_loss(strategy, strategy.loss, hint=f"Lower the learning rate or drift_lambda (phase: {self.step})")

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Take the phase's proximal steps."""
        if self.drift_step == "proximal" and (weight := self._drift_weight()):
            pull_back_(self._anchored(strategy.model), strategy.optimizer, weight)
        if self.step == "retraining" or (self.step == "expansion" and self.expand == "constant"):
            return
        group = self.group_lasso if self.step == "expansion" else 0.0
        proximal_step(strategy, l1=self.l1, group_lasso=group)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Note the epoch's mean loss."""
        if self.step == "head":
            self._losses.append(self._running[0] / max(self._running[1], 1.0))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Run the phases after the first."""
        strategy._stop_training = False  # if it was set, then for the epochs that have ended
        network: DynamicallyExpandableNetwork = strategy.model
        epochs = strategy.train_epochs if self.phase_epochs is None else self.phase_epochs
        if network.stamp > 1:
            if self.selective:
                self._reach("retraining", strategy)
                self._run("retraining", strategy, strategy.train_epochs, kwargs)
            self._reach("expansion", strategy)
            if self._expanding:
                self._run("expansion", strategy, epochs, kwargs)
            self._reach("drift", strategy)
            if self.split:
                self._run("drift", strategy, epochs, kwargs)
            self._reach("split", strategy)
            if self._splitting:
                self._run("split", strategy, epochs, kwargs)
        self._reach("done", strategy)

    def after_training(self, strategy: Any, **kwargs: Any) -> None:
        """Close the task."""
        strategy.model.finish_task()

    def _reach(self, step: str, strategy: Any) -> None:
        """Do what comes before a phase, unless the checkpoint that training goes on from was written after it."""
        self._anchors = []
        if STEPS.index(self.step) < STEPS.index(step):
            getattr(self, f"_before_{step}")(strategy)
            self.step = step

    def _drift_weight(self) -> float:
        """Return lambda of the drift penalty in this phase."""
        if self.step in ("drift", "split"):
            return self.drift_lambda
        return self.retraining_drift if self.step in ("retraining", "full") else 0.0

    def _anchored(self, network: DynamicallyExpandableNetwork) -> list[Anchor]:
        """Return what the drift penalty is about, the same list all through a phase."""
        if not self._anchors:
            self._anchors = anchors(network, self.weights_before)
        return self._anchors

    def _run(self, step: str, strategy: Any, epochs: int, kwargs: dict[str, Any]) -> None:
        for _ in phase(strategy, f"den: {step}", epochs=epochs):
            strategy._before_training_epoch(**kwargs)
            if strategy._stop_training:
                break
            strategy.training_epoch(**kwargs)
            strategy._after_training_epoch(**kwargs)
        strategy._stop_training = False

    def _before_retraining(self, strategy: Any) -> None:
        network: DynamicallyExpandableNetwork = strategy.model
        units = units_with_a_path(network, tolerance=self.zero_tolerance)
        if any(len(own) == 0 for own in units):
            raise ValueError(
                f"l1: task {network.newest} selects {[len(own) for own in units]} inputs and units by layer; "
                f"{self.l1} drives too many weights to zero, lower it"
            )
        self._head_inputs = None
        self.history[-1]["selected"] = [len(own) for own in units]
        network.stand_in = Selected(network, units)
        self._train_only(strategy, network.stand_in)

    def _before_expansion(self, strategy: Any) -> None:
        network: DynamicallyExpandableNetwork = strategy.model
        loss = 0.0
        if self.expand:  # before what was trained is written back: the selected part is faster
            loss = self.history[-1]["loss"] = self._loss_before_expansion(strategy)
        self._write_back(network)
        self._expanding = self.expand == "constant" or (self.expand == "dynamic" and loss > self.loss_threshold)
        if self._expanding:
            counts = each_layer(self.expand_by, len(network.layers))
            add_units(network, counts)
            self.history[-1] |= {"added": counts, "removed": [0] * len(counts)}
            network.stand_in = NewUnits(network, counts)
            self._train_only(strategy, network.stand_in)

    def _loss_before_expansion(self, strategy: Any) -> float:
        experience = strategy.experience
        if self.validation_stream is None:
            return check_loss_on(strategy, "the experience", experience.dataset)
        return check_loss_on(
            strategy, "validation_stream", self.validation_stream[experience.current_experience].dataset
        )

    def _before_drift(self, strategy: Any) -> None:
        network: DynamicallyExpandableNetwork = strategy.model
        self._write_back(network)
        if self._expanding and self.expand == "dynamic":
            removed = []
            for index in reversed(range(len(network.layers))):
                empty = empty_units(network.hidden[index].layer.weight)
                stamps = network.hidden[index].stamps
                empty = empty[[stamps[unit] == network.stamp for unit in empty.tolist()]]
                remove_units(network, index, empty)
                removed.append(len(empty))
            self.history[-1]["removed"] = removed[::-1]
        self._train_all(strategy)

    def _before_split(self, strategy: Any) -> None:
        if not self.split:
            return
        network: DynamicallyExpandableNetwork = strategy.model
        self._write_back(network)
        moved = drifts(network, self.weights_before)
        most = each_layer(self.max_splits, len(moved))
        units = [drifted_units(own, self.drift_threshold, k) for own, k in zip(moved, most, strict=True)]
        self.history[-1] |= {"drift": [float(own.max()) for own in moved], "split": [len(own) for own in units]}
        self._splitting = any(len(own) for own in units)
        if self._splitting:
            split_units(network, units, self.weights_before)
            self._train_all(strategy)

    def _before_done(self, strategy: Any) -> None:
        self._write_back(strategy.model)
        self._train_only(strategy, strategy.model)
        self.weights_before = []

    def _train_all(self, strategy: Any) -> None:
        """Train all that the newest task uses."""
        network: DynamicallyExpandableNetwork = strategy.model
        network.stand_in = all_that_is_used(network)
        self._train_only(strategy, network if network.stand_in is None else network.stand_in)

    def _train_only(self, strategy: Any, part: nn.Module) -> None:
        train_only(strategy, part, self._groups)

    @staticmethod
    def _write_back(network: DynamicallyExpandableNetwork) -> None:
        if network.stand_in is not None:
            network.stand_in.write_back()
            network.stand_in = None
