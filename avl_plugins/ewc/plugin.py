"""Elastic Weight Consolidation as an Avalanche plugin."""

import logging
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import Any, Literal, Self

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avl_plugins.data.tensors import batches_in_memory
from avl_plugins.ewc.checks import (
    check_choice,
    check_finite_loss,
    check_number,
    experience_name,
    refuse_avalanche_arguments,
    refuse_meta_learning,
    warn_if_class_incremental,
    warn_if_unstable,
)
from avl_plugins.ewc.curvature import (
    Curvature,
    Penalty,
    check_curvature,
    check_proximal,
    diagonal_of,
    make_penalty,
    measured,
    pull_,
    with_mean_one,
)
from avl_plugins.ewc.fisher import Labels
from avl_plugins.ewc.importance import (
    check_not_zero,
    copied_generator,
    finished_task,
    uniform_importances,
)
from avl_plugins.ewc.selection import Selection, leaves, select

_log = logging.getLogger(__name__)


class EWCPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]
    r"""Elastic Weight Consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3).

    While task T is trained, the loss is that of its data plus

        sum_{t < T} sum_i ewc_lambda/2 F_{t,i} (theta_i - theta*_{t,i})^2,

    theta*_t being the parameters at the end of task t and F_t the diagonal of the Fisher information there. The sum is
    held as one quadratic (`QuadraticPenalty`): memory and time do not grow with the number of tasks. A task ends with
    each experience; in online streams with known boundaries, with the last sub-experience, and the Fisher then comes
    from the whole of the original experience.

    `strategy.loss` holds loss plus penalty, so metrics show the objective. The penalty is one term of the loss's graph
    over the parameters that take part in the current experience: heads of other tasks get no gradient, so optimizers
    with momentum leave them alone. Buffers (BatchNorm's running statistics) are not protected. EWC is for task- and
    domain-incremental training; it fails in class-incremental training, of which it warns.

    Args:
        ewc_lambda: lambda of the paper, >= 0. The attribute may be set between experiences: it multiplies each task's
            Fisher when that task ends. A value goes with one estimator (`labels`), and is not Avalanche's.
        labels: "exact" (expectation over the model's own labels), "sampled", "empirical", or "batch" (squared gradient
            of the batch mean, Avalanche's importances, for comparison); see `diagonal_fisher`. Not given by the paper.
        importance: "fisher", or "uniform": F = 1 for every parameter that got a gradient, the paper's L2 arm.
        mode: "separate" is the paper, one anchor a task. "online" is Schwarz et al. 2018, eq. 8 and 9: the penalty
            lambda/2 gamma F* (theta - theta*)^2 with F* <- gamma F* + F and theta* the latest optimum; with gamma = 1
            it is Huszar's recursive Laplace approximation (arXiv:1712.03847).
        gamma: forgetting factor of mode "online", in (0, 1].
        normalise: divide each task's F by its mean over the protected parameters, so that tasks weigh the same
            (Schwarz et al. normalise but do not say how).
        revisits: what becomes of a task's term when its label comes back. "add": it stays, and another is added.
            "replace": the new one takes its place, as in the paper's Atari agent (app. 4.2), which visits games again
            and again; the terms are then held one by one, memory growing with the number of tasks. The old term stays
            in the loss while its task is trained again, until that ends. It needs mode="separate".
        protect: strategy -> whether the task that ends gets a term at all, for example only after a number of steps in
            it (`lambda strategy: strategy.steps_of[strategy.label] >= 5_000_000`). None: always.
        max_samples: use a uniformly random subset of this many samples for the Fisher.
        fisher_data: strategy -> batches (x, y) or (x, y, t) for the Fisher, e.g. from a replay buffer. Default: what
            the strategy's own `fisher_batches()` returns, if it has that (`avl_plugins.rl`: states of the task), else
            the experience's data set under its *eval* transforms, in order, put together by its `collate_fn`.
        fisher_batch_size: samples a batch in that default; only labels "batch" depend on it. None: `train_mb_size` for
            "batch", else what `batches_in_memory` finds fit, 1000 where samples are small.
        likelihood: "categorical", "bernoulli", "gaussian" or a callable; see `diagonal_fisher`.
        curvature: "diagonal" is the paper. "kronecker" keeps how the weights of a layer act together
            (`kronecker_fisher`, `KroneckerPenalty`) and is Ritter et al. 2018 (arXiv:1805.07810): F_t has a block a
            layer, which takes in^2 + out^2 numbers in place of in x out. With mode="separate" the sum is exact, and
            memory and time grow with the number of tasks; with "online" factors are summed, and they do not.
        damping: added to the diagonal of F, for curvature "kronecker"; see `kronecker_fisher`.
        step: "gradient" adds the penalty's gradient. "proximal" pulls the parameters to the penalty's centre after the
            optimizer's step (`proximal_step_`): stable for any lambda; the loss still shows the penalty. With curvature
            "kronecker" it needs mode "online" and SGD.
        include: parameters to protect: glob patterns over names, or (name, parameter) -> bool. None: all trainable.
        exclude: parameters to leave out, likewise.
        seed: seeds the subset and the sampled labels. None: `torch.initial_seed()`. The global state is not used.

    Attributes:
        tasks: how many tasks have ended.
        penalty: the `QuadraticPenalty` or `KroneckerPenalty`, lambda (and gamma) included.
        importances: F of the latest task by parameter name, after `normalise`, without lambda; its diagonal, where F
            has more.
        fisher_seconds: wall time of the latest Fisher computation.
        last_penalty: the penalty's value at the latest training step, lambda included; 0-d.

    Raises:
        TypeError: positional arguments, or Avalanche's `decay_factor` and `keep_importance_data`.
        ValueError: an argument is out of range. While training, leaving everything as it was before the hook: a loss
            or a Fisher that is NaN or infinite, an all-zero Fisher, an empty experience, a model without trainable
            parameters, one that lacks protected parameters or has smaller ones, an optimizer that "proximal" does not
            know, a meta-learning strategy.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse Avalanche's arguments with an explanation, which Python's own TypeError would not give."""
        refuse_avalanche_arguments(args, kwargs)
        return super().__new__(cls)

    def __init__(
        self,
        *,
        ewc_lambda: float,
        labels: Labels = "exact",
        importance: Literal["fisher", "uniform"] = "fisher",
        mode: Literal["separate", "online"] = "separate",
        gamma: float = 1.0,
        normalise: bool = False,
        revisits: Literal["add", "replace"] = "add",
        protect: Callable[[Any], bool] | None = None,
        max_samples: int | None = None,
        fisher_data: Callable[[Any], Iterable[Any]] | None = None,
        fisher_batch_size: int | None = None,
        likelihood: Any = "categorical",
        curvature: Curvature = "diagonal",
        damping: float = 0.0,
        step: Literal["gradient", "proximal"] = "gradient",
        include: Selection | None = None,
        exclude: Selection | None = None,
        seed: int | None = None,
    ):
        super().__init__()
        check_number("ewc_lambda", ewc_lambda, low=0)
        check_choice("labels", labels, ("exact", "sampled", "empirical", "batch"))
        check_choice("importance", importance, ("fisher", "uniform"))
        check_choice("mode", mode, ("separate", "online"), " (Huszar's version: mode='online', gamma=1.0)")
        check_choice("step", step, ("gradient", "proximal"))
        check_choice("revisits", revisits, ("add", "replace"))
        if revisits == "replace" and mode != "separate":
            raise ValueError("revisits='replace' needs mode='separate': mode='online' has one term for all tasks")
        check_number("gamma", gamma, low=0, high=1, open_low=True)
        if gamma != 1 and mode != "online":
            raise ValueError(f"gamma={gamma} has no effect with mode={mode!r}: use mode='online'")
        if not callable(likelihood):
            check_choice("likelihood", likelihood, ("categorical", "bernoulli", "gaussian"))
        for argument, size in (("max_samples", max_samples), ("fisher_batch_size", fisher_batch_size)):
            if size is not None:
                check_number(argument, size, low=1, integer=True)
        check_curvature(curvature, damping=damping, labels=labels, importance=importance, mode=mode, step=step)
        self.ewc_lambda = ewc_lambda
        self.labels = labels
        self.importance = importance
        self.mode, self.gamma, self.normalise = mode, gamma, normalise
        self.revisits, self.protect = revisits, protect
        self.max_samples = max_samples
        self.fisher_data = fisher_data
        self.fisher_batch_size = fisher_batch_size
        self.likelihood = likelihood
        self.curvature, self.damping = curvature, damping
        self.step = step
        self.include, self.exclude, self.seed = include, exclude, seed
        self.penalty: Any = make_penalty(curvature)
        self._terms: dict[int, Penalty] = {}  # by task label, with revisits="replace"
        self.tasks = 0
        self.importances: dict[str, Tensor] = {}
        self.fisher_seconds = 0.0
        self.last_penalty = torch.zeros(())
        self._generator: torch.Generator | None = None
        self._parts = 0  # of an online stream's task
        self._classes: dict[int, set[int]] = {}  # task label -> classes trained under it
        self._warned: set[str] = set()
        self._active: set[str] | None = None  # parameters this experience's loss depends on; None: not known yet
        self._idle: dict[str, Tensor] = {}  # the others, between before_backward and after_backward
        self._idle_value: Tensor | None = None  # their part of the penalty, and its constant

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse an empty experience before a data loader is made of it."""
        dataset = getattr(strategy.experience, "dataset", None)
        if dataset is not None and len(dataset) == 0:
            raise ValueError(f"{experience_name(strategy)} is empty: EWC cannot measure what it would have to protect")

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Check that penalty, model and optimizer fit together; warn of settings that are known to fail."""
        refuse_meta_learning(strategy)
        if getattr(strategy.experience, "is_first_subexp", True):
            self._active = self._idle_value = None  # of an experience that an error ended
        parameters = dict(strategy.model.named_parameters())
        select(parameters, self.include, self.exclude)
        self.penalty.check(parameters)
        if self.step == "proximal":
            check_proximal(self.penalty, strategy.optimizer)
        elif "unstable" not in self._warned and warn_if_unstable(self.penalty, strategy.optimizer, parameters):
            self._warned.add("unstable")
        if "classes" not in self._warned and warn_if_class_incremental(self._classes, strategy.experience):
            self._warned.add("classes")

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the penalty to `strategy.loss`; with step="proximal" its value only, no gradient."""
        parameters = dict(strategy.model.named_parameters())
        if self._active is None:
            used = leaves(strategy.loss)
            self._active = {name for name, p in parameters.items() if id(p) in used}
            self._idle_value = None
        self._idle = {name: p for name, p in parameters.items() if name not in self._active}
        with torch.set_grad_enabled(self.step == "gradient"):
            value = self._value(parameters, self._active)
        loss = strategy.loss + value
        check_finite_loss(strategy, loss, value)
        strategy.loss = loss
        self.last_penalty = value.detach()

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Take in parameters whose gradient the first step's graph did not show: another head, a hidden graph."""
        late = {name: p for name, p in self._idle.items() if p.grad is not None}
        self._idle = {}
        if not late:
            return
        if self.step == "gradient":
            self.penalty.add_gradient_(dict(strategy.model.named_parameters()), names=late)
        self._active = (self._active or set()) | late.keys()
        self._idle_value = None

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """With step="proximal": pull the parameters to the centre after the optimizer's step."""
        if self.step == "proximal":
            pull_(self.penalty, strategy.optimizer, dict(strategy.model.named_parameters()))

    def _value(self, parameters: Mapping[str, Tensor], active: set[str]) -> Tensor:
        """The whole penalty, differentiable in the active parameters; the idle ones' part is computed once."""
        if self._idle_value is None:
            self._idle_value = self.penalty.distance_without(parameters, active).detach() + self.penalty.constant
        return self.penalty.distance(parameters, active) + self._idle_value

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Measure the task's importances and add its penalty."""
        parts = 1 if getattr(strategy.experience, "is_first_subexp", True) else self._parts + 1
        task = finished_task(strategy.experience, parts)
        if task is None:
            self._parts = parts
            return
        self._consolidate(strategy, task)

    def switch_task(self, strategy: Any, **kwargs: Any) -> None:
        """End the task `strategy.label`: a strategy of `avl_plugins.rl` has recognised another one."""
        self._consolidate(strategy, strategy.experience)

    def _consolidate(self, strategy: Any, task: Any) -> None:
        """Measure a task's importances and add its penalty."""
        measurable = not hasattr(strategy, "measurable") or strategy.measurable()  # agents say so
        if not measurable or (self.protect is not None and not self.protect(strategy)):
            if not measurable:
                _log.info("task %d gets no term: it has been met for too short a time", strategy.label)
            self._active = self._idle_value = None
            return
        parameters = dict(strategy.model.named_parameters())
        protected = select(parameters, self.include, self.exclude)
        generator = copied_generator(self._generator, self.seed)  # an error leaves ours as it was
        started = perf_counter()
        if self.importance == "uniform":  # a head that no sample went through belongs to another task
            active = protected.keys() if self._active is None else self._active
            fisher: Any = uniform_importances({n: p for n, p in protected.items() if n in active})
        else:
            fisher = measured(
                self.curvature,
                strategy.model,
                self._batches(strategy, task),
                protected,
                damping=self.damping,
                labels=self.labels,
                likelihood=self.likelihood,
                max_samples=self.max_samples,
                generator=generator,
            )
        check_not_zero(diagonal_of(fisher), experience_name(strategy))
        if self.normalise:
            fisher = with_mean_one(fisher)
        seconds = perf_counter() - started
        if self.revisits == "replace":
            term: Any = make_penalty(self.curvature)
            term.merge(fisher, parameters, scale=self.ewc_lambda)
            label = _label(strategy, self.tasks)
            # The latest is last: parameters only grow, and folding takes the smaller shapes first.
            terms = {other: t for other, t in self._terms.items() if other != label} | {label: term}
            self.penalty, self._terms = type(self.penalty).joined(terms.values()), terms
        elif self.mode == "separate":
            self.penalty.merge(fisher, parameters, scale=self.ewc_lambda)
        else:
            self.penalty.recentre(fisher, parameters, scale=self.ewc_lambda, decay=self.gamma)
        self.tasks += 1
        self.importances, self.fisher_seconds, self._generator = dict(diagonal_of(fisher)), seconds, generator
        self._active = self._idle_value = None

    def _batches(self, strategy: Any, task: Any) -> Iterable[Any]:
        if self.fisher_data is not None:
            return self.fisher_data(strategy)
        if hasattr(strategy, "fisher_batches"):
            return strategy.fisher_batches()
        size = self.fisher_batch_size or (strategy.train_mb_size if self.labels == "batch" else None)
        return batches_in_memory(task.dataset, size)  # in the eval transform group: no augmentation

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors: the penalty and all that a resumed run needs to go on as if not interrupted."""
        return {
            "mode": self.mode,
            "gamma": float(self.gamma),
            "revisits": self.revisits,
            "curvature": self.curvature,
            "penalty": self.penalty.state_dict(),
            "terms": {label: term.state_dict() for label, term in self._terms.items()},
            "tasks": self.tasks,
            "importances": dict(self.importances),
            "fisher_seconds": self.fisher_seconds,
            "last_penalty": self.last_penalty,
            "generator": None if self._generator is None else self._generator.get_state(),
            "parts": self._parts,
            "classes": {task: sorted(classes) for task, classes in self._classes.items()},
            "warned": sorted(self._warned),
            "active": None if self._active is None else sorted(self._active),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the state of `state_dict()`. Names and shapes are checked against the model before the next training.

        Raises:
            ValueError: entries are missing or unknown, the state is of another mode, gamma, revisits or curvature, or
                the penalty in it is not valid (its `load_state_dict`). The plugin is then as before.
        """
        state = {"curvature": "diagonal", **state}  # states from before there was another
        if state.keys() != self.state_dict().keys():
            odd = sorted(state.keys() ^ self.state_dict().keys())
            raise ValueError(f"this is not the state of an EWCPlugin: entries missing or unknown: {odd}")
        for name in ("mode", "gamma", "revisits", "curvature"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the state was saved with {name}={state[name]!r}, this plugin has {name}={getattr(self, name)!r}: "
                    "build it with the same"
                )
        saved = state["generator"]
        generator = None if saved is None else torch.Generator().set_state(saved.cpu())
        terms = {label: make_penalty(self.curvature) for label in state["terms"]}
        for label, term in terms.items():
            term.load_state_dict(state["terms"][label])
        self.penalty.load_state_dict(state["penalty"])
        self._terms = terms
        self.tasks = state["tasks"]
        self.importances = {name: f.clone() for name, f in state["importances"].items()}
        self.fisher_seconds = state["fisher_seconds"]
        self.last_penalty = state["last_penalty"].clone()
        self._generator = generator
        self._parts = state["parts"]
        self._classes = {task: set(classes) for task, classes in state["classes"].items()}
        self._warned = set(state["warned"])
        self._active = None if state["active"] is None else set(state["active"])
        self._idle_value = None


def _label(strategy: Any, number: int) -> int:
    """The label of the task that ends; its number where it has none."""
    if hasattr(strategy, "fisher_batches"):  # of avl_plugins.rl
        return int(strategy.label)
    labels = set(getattr(strategy.experience, "task_labels", None) or ())
    return int(labels.pop()) if len(labels) == 1 else number
