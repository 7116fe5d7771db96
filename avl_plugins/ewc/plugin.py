"""Elastic Weight Consolidation as an Avalanche plugin."""

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import Any, Literal, get_args

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avl_plugins.data.tensors import batches_in_memory
from avl_plugins.ewc.checks import (
    explains_avalanche_arguments,
    warn_if_class_incremental,
    warn_if_sum,
    warn_if_unstable,
)
from avl_plugins.ewc.criterion import GivenLikelihood, is_regression, strategy_likelihood
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
from avl_plugins.ewc.evaluating import refuse_batch_statistics
from avl_plugins.ewc.first_batch import check_first_batch
from avl_plugins.ewc.fisher import Labels
from avl_plugins.ewc.importance import copied_generator, is_zero, uniform_importances, why_zero
from avl_plugins.ewc.likelihood import Likelihood, make_likelihood
from avl_plugins.ewc.samples import without_attributes
from avl_plugins.ewc.selection import Selection, check_selection, leaves, select
from avl_plugins.ewc.state import read_state
from avl_plugins.tasks.arguments import check_callable, check_choice, check_count, check_flag, check_number, check_seed
from avl_plugins.tasks.boundaries import Task, current_task, finished_task, is_part, parts_so_far
from avl_plugins.tasks.checks import (
    check_loss,
    experience_name,
    refuse_distributed,
    refuse_empty,
    refuse_meta_learning,
)
from avl_plugins.tasks.labels import check_labels_differ
from avl_plugins.tasks.owners import note_owner, refuse_shared
from avl_plugins.tasks.protocols import ActsInEnvironments
from avl_plugins.tasks.words import renamed, repr_of_arguments

log = logging.getLogger(__name__)


@renamed(labels="fisher_labels", step="penalty_step")
@explains_avalanche_arguments("EWCPlugin(ewc_lambda=...)")
class EWCPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]
    r"""Elastic Weight Consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3).

    While task T is trained, the loss is that of its data plus

        sum_{t < T} sum_i ewc_lambda/2 F_{t,i} (theta_i - theta*_{t,i})^2,

    theta*_t being the parameters at the end of task t and F_t the diagonal of the Fisher information there. The sum is
    held as one quadratic (`QuadraticPenalty`): memory and time do not grow with the number of tasks. A task ends with
    each experience; in online streams with known boundaries, with the last sub-experience, and the Fisher then comes
    from the whole of the original experience; all experiences of joint training are one task.

    `strategy.loss` holds loss plus penalty, so metrics show the objective. The penalty is one term of the loss's graph
    over the parameters that take part in the current experience: heads of other tasks get no gradient, so optimizers
    with momentum leave them alone. Buffers (BatchNorm's running statistics) are not protected. EWC is for task- and
    domain-incremental training; it fails in class-incremental training, of which it warns.

    Args:
        ewc_lambda: lambda of the paper, >= 0. The attribute may be set between experiences: it multiplies each task's
            Fisher when that task ends. A value goes with one estimator (`fisher_labels`), and is not Avalanche's.
        fisher_labels: "exact" (expectation over the model's own labels), "sampled", "empirical", or "batch" (squared
            gradient of the batch mean, Avalanche's importances, for comparison); see `diagonal_fisher`. Not given by
            the paper.
        importance: "fisher", or "uniform": F = 1 for every parameter that got a gradient, the paper's L2 arm.
        mode: "separate" is the paper, one anchor per task. "online" is Schwarz et al. 2018, eq. 8 and 9: the penalty
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
        fisher_data: strategy -> batches (x, y) or (x, y, t) for the Fisher, e.g. from a replay buffer. Default: the
            task's states where the strategy acts in environments (`avl_plugins.rl`), else the experience's data set
            under its *eval* transforms, in order, put together by its `collate_fn`.
        fisher_batch_size: samples per batch in that default; only `fisher_labels` "batch" depends on it. None:
            `train_mb_size` for "batch", else what `batches_in_memory` finds fit, 1000 where samples are small.
        likelihood: "categorical", "bernoulli", "gaussian" or a callable; see `diagonal_fisher`. None: the one that the
            criterion is the negative logarithm of, where that is certain: "categorical" for cross-entropy and the
            negative log-likelihood of log-probabilities, "bernoulli" for binary cross-entropy with logits and
            `one_vs_rest_loss`, "gaussian" for the mean squared error. It has to be given for any other criterion, and
            for a strategy that acts in environments unless that says it (`fisher_likelihood()`).
        curvature: "diagonal" is the paper. "kronecker" keeps how the weights of a layer act together
            (`kronecker_fisher`, `KroneckerPenalty`) and is Ritter et al. 2018 (arXiv:1805.07810): F_t has a block per
            layer, which takes in^2 + out^2 numbers in place of in x out. With mode "separate" the sum is exact, and
            memory and time grow with the number of tasks; with "online" factors are summed, and they do not.
        damping: added to the diagonal of F, for curvature "kronecker"; see `kronecker_fisher`.
        penalty_step: "gradient" adds the penalty's gradient. "proximal" pulls the parameters to the penalty's centre
            after the optimizer's step (`proximal_step_`): stable for any lambda; the loss still shows the penalty. With
            curvature "kronecker" it needs mode "online" and SGD.
        include: parameters to protect: glob patterns over names, or (name, parameter) -> bool. None: all trainable.
        exclude: parameters to leave out, likewise.
        zero_fisher: what to do about a task whose Fisher is zero everywhere: "warn" and give it no term, or "raise".
        seed: seeds the subset and the sampled labels. None: `torch.initial_seed()`. The global state is not used.

    Attributes:
        tasks: how many tasks have ended.
        penalty: the `QuadraticPenalty` or `KroneckerPenalty`, lambda (and gamma) included.
        importances: the diagonal of F of the latest task by parameter name, after `normalise`, without lambda.
        fisher_seconds: wall time of the latest Fisher computation.
        last_penalty: the penalty's value at the latest training step, lambda included; 0-d.

    Raises:
        TypeError: an argument of another kind, positional ones, or Avalanche's `decay_factor` and
            `keep_importance_data`. At the first mini-batch: a model that does not return one tensor.
        ValueError: an argument is out of range. Before anything is trained: an empty experience, a likelihood that is
            not certain, contradicts the criterion or does not fit outputs and targets, a strategy that calls the model
            otherwise than the Fisher does, a model without trainable parameters, one that lacks protected parameters
            or has smaller ones, an optimizer that "proximal" does not know, a meta-learning strategy, a distributed
            run, a second strategy. Later, leaving everything as it was before the hook: a loss or a Fisher that is NaN
            or infinite.

    Example:
        >>> from avalanche.benchmarks import tensors_benchmark
        >>> from avalanche.training import Naive
        >>> from torch import nn
        >>> tasks = [(torch.randn(40, 4), torch.arange(40) % 2) for _ in range(2)]
        >>> benchmark = tensors_benchmark(train_tensors=tasks, test_tensors=tasks, task_labels=[0, 0])
        >>> model = nn.Linear(4, 2)
        >>> plugin = EWCPlugin(ewc_lambda=100, penalty_step="proximal")
        >>> plugin
        EWCPlugin(ewc_lambda=100, penalty_step='proximal')
        >>> strategy = Naive(
        ...     model=model,
        ...     optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        ...     plugins=[plugin],
        ...     evaluator=None,
        ... )
        >>> _ = strategy.train(benchmark.train_stream)
        >>> plugin.tasks, {name: tuple(fisher.shape) for name, fisher in plugin.importances.items()}
        (2, {'weight': (2, 4), 'bias': (2,)})
    """

    def __init__(
        self,
        *,
        ewc_lambda: float,
        fisher_labels: Labels = "exact",
        importance: Literal["fisher", "uniform"] = "fisher",
        mode: Literal["separate", "online"] = "separate",
        gamma: float = 1.0,
        normalise: bool = False,
        revisits: Literal["add", "replace"] = "add",
        protect: Callable[[Any], bool] | None = None,
        max_samples: int | None = None,
        fisher_data: Callable[[Any], Iterable[Any]] | None = None,
        fisher_batch_size: int | None = None,
        likelihood: GivenLikelihood = None,
        curvature: Curvature = "diagonal",
        damping: float = 0.0,
        penalty_step: Literal["gradient", "proximal"] = "gradient",
        include: Selection | None = None,
        exclude: Selection | None = None,
        zero_fisher: Literal["warn", "raise"] = "warn",
        seed: int | None = None,
    ):
        super().__init__()
        check_number("ewc_lambda", ewc_lambda, low=0)
        check_choice("fisher_labels", fisher_labels, get_args(Labels))
        check_choice("importance", importance, ("fisher", "uniform"))
        check_choice("mode", mode, ("separate", "online"), " (Huszar's version: mode='online', gamma=1.0)")
        check_number("gamma", gamma, low=0, high=1, open_low=True)
        if gamma != 1 and mode != "online":
            raise ValueError(f"gamma={gamma} has no effect with mode={mode!r}: use mode='online'")
        check_flag("normalise", normalise)
        check_choice("revisits", revisits, ("add", "replace"))
        if revisits == "replace" and mode != "separate":
            raise ValueError("revisits='replace' needs mode='separate': mode='online' has one term for all tasks")
        check_callable("protect", protect, "strategy -> bool", none="always")
        check_count("max_samples", max_samples, none="all")
        check_callable("fisher_data", fisher_data, "strategy -> batches", none="the experience's data")
        check_count("fisher_batch_size", fisher_batch_size, none="what fits")
        if likelihood is not None:
            make_likelihood(likelihood)
        check_choice("penalty_step", penalty_step, ("gradient", "proximal"))
        check_curvature(
            curvature,
            damping=damping,
            fisher_labels=fisher_labels,
            importance=importance,
            mode=mode,
            penalty_step=penalty_step,
        )
        check_choice("zero_fisher", zero_fisher, ("warn", "raise"))
        check_seed("seed", seed)
        self.ewc_lambda = ewc_lambda
        self.fisher_labels = fisher_labels
        self.importance = importance
        self.mode, self.gamma, self.normalise = mode, gamma, normalise
        self.revisits, self.protect = revisits, protect
        self.max_samples = max_samples
        self.fisher_data = fisher_data
        self.fisher_batch_size = fisher_batch_size
        self.likelihood = likelihood
        self.curvature, self.damping = curvature, damping
        self.penalty_step = penalty_step
        self.include = check_selection("include", include)
        self.exclude = check_selection("exclude", exclude)
        self.zero_fisher, self.seed = zero_fisher, seed
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
        self._said_likelihood: str | None = None  # in the log
        self._unchecked = False  # whether the task's first mini-batch is still to be looked at
        self._active: set[str] | None = None  # parameters this experience's loss depends on; None: not known yet
        self._idle: dict[str, Tensor] = {}  # the others, between before_backward and after_backward
        self._idle_value: Tensor | None = None  # their part of the penalty, and its constant

    __repr__ = repr_of_arguments

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse runs that EWC cannot serve."""
        refuse_distributed("EWC")
        refuse_meta_learning(strategy, "EWC")
        refuse_shared(strategy, "EWC", plugin=self, gone=False)

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse an empty experience before a data loader is made of it."""
        refuse_empty(strategy, "EWC")

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Check that penalty, model, criterion and optimizer fit together; warn of settings that are known to fail."""
        check_number("ewc_lambda", self.ewc_lambda, low=0)
        begins = not is_part(strategy.experience) or strategy.experience.is_first_subexp
        if begins:
            self._active = self._idle_value = None  # of an experience that an error ended
        check_number("ewc_lambda", self.ewc_lambda, low=0)  # it may have been set since
        parameters = dict(strategy.model.named_parameters())
        select(parameters, self.include, self.exclude)
        self.penalty.check(parameters)
        if self.revisits == "replace" and not isinstance(strategy, ActsInEnvironments):
            check_labels_differ(current_task(strategy).experiences[0])
        if self.importance == "fisher":
            self._likelihood(strategy)
            acts = isinstance(strategy, ActsInEnvironments) and self.fisher_data is None
            if acts and self.fisher_labels in ("empirical", "batch"):
                raise ValueError(
                    f"fisher_labels={self.fisher_labels!r} needs targets, of which {type(strategy).__name__} has none: "
                    "use fisher_labels='exact' or 'sampled'"
                )
            if self.fisher_labels != "batch":
                refuse_batch_statistics(strategy.model)
            self._unchecked = begins
        if self.penalty_step == "proximal":
            check_proximal(self.penalty, strategy.optimizer)
        elif "unstable" not in self._warned and warn_if_unstable(self.penalty, strategy.optimizer, parameters):
            self._warned.add("unstable")
        if "sum" not in self._warned and warn_if_sum(strategy):
            self._warned.add("sum")
        of_classes = begins and "classes" not in self._warned and not is_regression(strategy, self.likelihood)
        if of_classes and warn_if_class_incremental(self._classes, current_task(strategy)):
            self._warned.add("classes")
        note_owner(strategy, self)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Look at a task's first mini-batch: what the Fisher would refuse later is refused here."""
        if self._unchecked:
            own_data = self.fisher_data is not None
            check_first_batch(
                strategy, labels=self.fisher_labels, likelihood=self._likelihood(strategy), own_data=own_data
            )
            self._unchecked = False

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the penalty to `strategy.loss`; with penalty_step="proximal" its value only, no gradient."""
        parameters = dict(strategy.model.named_parameters())
        if self._active is None:
            used = leaves(strategy.loss)
            self._active = {name for name, p in parameters.items() if id(p) in used}
            self._idle_value = None
        self._idle = {name: p for name, p in parameters.items() if name not in self._active}
        with torch.set_grad_enabled(self.penalty_step == "gradient"):
            value = self._value(parameters, self._active)
        loss = strategy.loss + value
        check_loss(strategy, loss, hint=_DIVERGED)
        strategy.loss = loss
        self.last_penalty = value.detach()

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Take in parameters whose gradient the first step's graph did not show: another head, a hidden graph."""
        late = {name: p for name, p in self._idle.items() if p.grad is not None}
        self._idle = {}
        if not late:
            return
        if self.penalty_step == "gradient":
            self.penalty.add_gradient_(dict(strategy.model.named_parameters()), names=late)
        self._active = (self._active or set()) | late.keys()
        self._idle_value = None

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Pull the parameters to the centre after the optimizer's step, with penalty_step="proximal"."""
        if self.penalty_step == "proximal":
            pull_(self.penalty, strategy.optimizer, dict(strategy.model.named_parameters()))

    def _value(self, parameters: Mapping[str, Tensor], active: set[str]) -> Tensor:
        """The whole penalty, differentiable in the active parameters; the idle ones' part is computed once."""
        if self._idle_value is None:
            self._idle_value = self.penalty.distance_without(parameters, active).detach() + self.penalty.constant
        return self.penalty.distance(parameters, active) + self._idle_value

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Measure the task's importances and add its penalty."""
        parts = parts_so_far(strategy.experience, self._parts)
        task = finished_task(strategy, parts)
        if task is None:
            self._parts = parts
            return
        self._consolidate(strategy, task)

    def switch_task(self, strategy: Any, **kwargs: Any) -> None:
        """End the task `strategy.label`: a strategy of `avl_plugins.rl` has recognised another one."""
        self._consolidate(strategy, current_task(strategy))

    def _consolidate(self, strategy: Any, task: Task) -> None:
        """Measure a task's importances and add its penalty."""
        measurable = not isinstance(strategy, ActsInEnvironments) or strategy.measurable()
        if not measurable or (self.protect is not None and not self.protect(strategy)):
            if not measurable:
                log.info("task %d gets no term: it has been met for too short a time", strategy.label)
            self._active = self._idle_value = None
            return
        parameters = dict(strategy.model.named_parameters())
        generator = copied_generator(self._generator, self.seed)  # an error leaves ours as it was
        started = perf_counter()
        fisher = self._measured(strategy, task, parameters, generator)
        if zero := is_zero(diagonal_of(fisher)):
            why = why_zero(experience_name(strategy), self.max_samples)
            if self.zero_fisher == "raise":
                raise ValueError(why)
            warnings.warn(f"{why}; it gets no term. zero_fisher='raise' makes this an error", UserWarning, stacklevel=2)
        elif self.normalise:
            fisher = with_mean_one(fisher)
        seconds = perf_counter() - started
        if self.mode == "online":
            self.penalty.recentre(fisher, parameters, scale=self.ewc_lambda, decay=self.gamma)
        elif self.revisits == "replace" and not zero:
            term: Any = make_penalty(self.curvature)
            term.merge(fisher, parameters, scale=self.ewc_lambda)
            label = _label(strategy, task, self.tasks)
            # The latest is last: parameters only grow, and folding takes the smaller shapes first.
            terms = {other: t for other, t in self._terms.items() if other != label} | {label: term}
            self.penalty, self._terms = type(self.penalty).joined(terms.values()), terms
        elif not zero:
            self.penalty.merge(fisher, parameters, scale=self.ewc_lambda)
        self.tasks += 1
        self.importances, self.fisher_seconds, self._generator = dict(diagonal_of(fisher)), seconds, generator
        self._active = self._idle_value = None

    def _measured(self, strategy: Any, task: Task, parameters: Mapping[str, Any], generator: torch.Generator) -> Any:
        protected = select(parameters, self.include, self.exclude)
        if self.importance == "uniform":  # a head that no sample went through belongs to another task
            active = protected.keys() if self._active is None else self._active
            return uniform_importances({n: p for n, p in protected.items() if n in active})
        return measured(
            self.curvature,
            strategy.model,
            self._batches(strategy, task),
            protected,
            damping=self.damping,
            labels=self.fisher_labels,
            likelihood=self._likelihood(strategy),
            max_samples=self.max_samples,
            generator=generator,
        )

    def _batches(self, strategy: Any, task: Task) -> Iterable[Any]:
        if self.fisher_data is not None:
            return self.fisher_data(strategy)
        if isinstance(strategy, ActsInEnvironments):
            return strategy.fisher_batches()
        size = self.fisher_batch_size or (strategy.train_mb_size if self.fisher_labels == "batch" else None)
        batches = batches_in_memory(task.dataset, size)  # in the eval transform group: no augmentation
        return without_attributes(batches, task_labels=hasattr(task.experiences[0], "task_labels"))

    def _likelihood(self, strategy: Any) -> Likelihood:
        likelihood = strategy_likelihood(strategy, self.likelihood)
        name = type(likelihood).__name__.lower()
        if self.likelihood is None and name != self._said_likelihood and not isinstance(strategy, ActsInEnvironments):
            log.info("EWC's likelihood is %r, that of the criterion", name)
            self._said_likelihood = name
        return likelihood

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
                an entry is not what it should be; it is named. The plugin is then as before.
        """
        settings = ("mode", "gamma", "revisits", "curvature")
        found = read_state(state, {name: getattr(self, name) for name in settings})
        public = ("penalty", "tasks", "importances", "fisher_seconds", "last_penalty")
        new = {name if name in public else f"_{name}": value for name, value in found.items()}
        self.__dict__.update(new, _idle_value=None)  # at once: an interrupt leaves no half of it


_DIVERGED = (
    "Lower the learning rate; if EWC's penalty, which is part of it, has diverged, penalty_step='proximal' is stable "
    "for any ewc_lambda"
)


def _label(strategy: Any, task: Task, number: int) -> int:
    """The label of the task that ends; where it has several, a number that is no label."""
    if isinstance(strategy, ActsInEnvironments):
        return int(strategy.label)
    return task.labels[0] if len(task.labels) == 1 else -1 - number
