"""Deep Generative Replay as an Avalanche plugin."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from avl_plugins.dgr.data import read, survey, untouched_random_state
from avl_plugins.dgr.frozen import detached_copy
from avl_plugins.dgr.generated import Generated
from avl_plugins.dgr.generator import Generator, check_generator
from avl_plugins.dgr.scholar import (
    Answers,
    Kind,
    Scholar,
    Solver,
    replay_loss,
    solver_from_state,
    solver_state,
)
from avl_plugins.dgr.sources import Memory, Noise, Replay, Source
from avl_plugins.dgr.state import all_or_nothing, check_state, fitting
from avl_plugins.dgr.targets import choose_likelihood, targets_of
from avl_plugins.tasks.arguments import check_choice, check_count, check_flag, check_number, check_seed
from avl_plugins.tasks.boundaries import current_task, finished_task, parts_so_far
from avl_plugins.tasks.checks import (
    check_criterion,
    check_loss,
    experience_name,
    refuse_distributed,
    refuse_empty,
    refuse_meta_learning,
)
from avl_plugins.tasks.likelihood import LIKELIHOODS, Likelihood
from avl_plugins.tasks.owners import note_owner, refuse_shared
from avl_plugins.tasks.words import renamed, repr_of_arguments

__all__ = ["DGRPlugin"]

log = logging.getLogger(__name__)


@renamed(labels="answers")
class DGRPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]
    """Deep Generative Replay (Shin et al. 2017, arXiv:1705.08690).

    The scholar H = (G, S) of the tasks so far, a generator and a copy of the solver, teaches the next solver (Eq. 1):

        r E_{(x, y) ~ D_t} [L(S(x), y)] + (1 - r) E_{x' ~ G_{t-1}} [L(S(x'), S_{t-1}(x'))].

    While the strategy trains, `mbatch` and `mb_output` are those of the real batch; before the backward pass
    (r - 1) L(real) + (1 - r) L(replayed) is added to the loss, so that other plugins' penalties stay as they are.
    After a task the generator learns from its inputs and samples of the generator before, in the same ratio, and then
    generator and solver are copied. A task is an experience; in online streams with known boundaries it is the original
    experience, and in joint training it is all of them.

    In the class-incremental case old answers are among the classes known then. A `MultiTaskModule` answers with every
    old head, and the loss is the mean over heads. The solver sees replayed batches apart from real ones, which matters
    to BatchNorm. Generators, and `replay` "exact" and "noise", learn from the data with the transforms for evaluation.

    Where the generator has no `data_range`, the first task's data give it, and later ones widen it, with a log line;
    the generator before keeps its own. The data of each task are read once before it, to be compared with it.

    Args:
        generator: G, see `Generator`; `WGANGP` is the paper's. Not needed, and not trained, with `replay` "exact" or
            "noise".
        replay: "generated"; "exact": real past inputs, with the old solver's answers (ER); "noise": Gaussian inputs.
        replay_ratio: r, the weight of the current task (the paper has none printed): "1/t" at task t, or a number.
        answers: "hard": the old solver's class; "soft": its probabilities at `temperature`, 0 for later classes.
        temperature: of soft answers.
        generator_iterations: calls of `fit_batch` after each task.
        replay_batch_size: replayed inputs a training step; None: as many as real ones.
        balanced: replay all classes that the old solver answers with about equally often, from four times as many
            samples; the method does not need it.
        chunk: inputs that are sampled and answered at a time. It is a number of inputs, not bytes, as what is drawn
            depends on it.
        likelihood: what outputs mean: "categorical", classes by softmax; "bernoulli", a logit for each value or class,
            answered by 1 where it is above 0 or, soft, by its probability; "gaussian", values, answered by the old
            outputs. None: what the criterion says where that is certain (cross-entropy, binary cross-entropy of logits,
            squared error), with a log line.
        seed: of what is drawn for replay and for the generator's batches. None: `torch.initial_seed()`.

    Attributes:
        scholar: H of the tasks so far; None before the first has ended.
        tasks: tasks that have ended.
        parts: in an online stream, how many parts of the current task have been trained on; 0 between tasks.
        classes: labels of the classes so far; empty where targets are no classes.
        model: the strategy's, from its first hook or a load on. `scholar` needs it after a bare `load_state_dict`.
        generator_losses: of the latest task, lists by name, one value an iteration.
        last_replay_loss: mean loss on the latest replayed batch; 0-d.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If an argument is out of range. Before anything is trained: if plugin or generator belong to another
            strategy, the criterion is a sum or its likelihood unknown, an experience is empty, data are not finite or
            outside the range that was declared, the generator does not fit to them, or targets do not fit to outputs.
            While training: if the loss, or the generator's losses or samples, are not finite, or these are outside its
            range.

    Example:
        >>> from avl_plugins.dgr import VAE, mlp_decoder, mlp_encoder
        >>> generator = VAE(encoder=mlp_encoder((64,), 8), decoder=mlp_decoder(8, (64,)), latent=8)
        >>> DGRPlugin(generator=generator, answers="soft", generator_iterations=500)  # for a strategy's `plugins`
        DGRPlugin(generator=<VAE>, answers='soft', generator_iterations=500)
    """

    def __init__(
        self,
        *,
        generator: Generator | None = None,
        replay: Replay = "generated",
        replay_ratio: Literal["1/t"] | float = "1/t",
        answers: Kind = "hard",
        temperature: float = 2.0,
        generator_iterations: int = 3000,
        replay_batch_size: int | None = None,
        balanced: bool = False,
        chunk: int = 2048,
        likelihood: Likelihood | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("replay", replay, ("generated", "exact", "noise"))
        check_generator(generator, needed=replay == "generated")
        if isinstance(replay_ratio, str):
            check_choice("replay_ratio", replay_ratio, ("1/t",), " (or a number, the weight of the current task)")
        else:
            check_number("replay_ratio", replay_ratio, low=0, high=1, open_low=True)
        check_choice("answers", answers, ("hard", "soft"))
        check_number("temperature", temperature, low=0, open_low=True)
        check_count("generator_iterations", generator_iterations)
        check_count("replay_batch_size", replay_batch_size, none="as many as real ones")
        check_flag("balanced", balanced)
        check_count("chunk", chunk)
        check_choice("likelihood", likelihood, (None, *LIKELIHOODS))
        check_seed("seed", seed)
        self.replay, self.replay_ratio = replay, replay_ratio
        self.answers, self.temperature = answers, temperature
        self.generator_iterations = generator_iterations
        self.replay_batch_size, self.chunk = replay_batch_size, chunk
        self.balanced = balanced
        self.likelihood = likelihood
        self.seed = seed
        self.source: Source = {"exact": Memory, "noise": Noise}.get(replay, lambda: Generated(generator))()
        self.model: nn.Module | None = None
        self.tasks = self.parts = 0
        self.classes: list[int] = []
        self.task_labels: list[int] = []
        self.last_replay_loss: Tensor | None = None
        self._scholar: Scholar | None = None
        self._random = torch.Generator()
        self._seeded = False
        self._pool: Answers | None = None
        self._used = 0
        self._before_chunk: Tensor | None = None
        """State of the random draws before the chunk in use was sampled, from which it can be sampled again."""
        self._saved_chunk: Any = None
        self._saved_solver: Any = None
        self._shape: list[int] | None = None
        """Of the inputs of past tasks."""
        self._likelihood: Likelihood | None = None
        """The one in use; None before training."""
        self._checked = False
        """Whether the first mini-batch of the task has been looked at."""

    __repr__ = repr_of_arguments

    @property
    def scholar(self) -> Scholar | None:
        """H of the tasks so far; None before the first has ended.

        Raises:
            ValueError: It was loaded, and the model is not known yet, or another one.
        """
        if self._saved_solver is not None:
            if self.model is None:
                raise ValueError(
                    "scholar: the state that was loaded has the solver's weights without its model; set `model` of the "
                    "plugin to the strategy's, or load with load_checkpoint"
                )
            self.scholar = Scholar(self.source.sampler(), solver_from_state(self.model, self._saved_solver))
        return self._scholar

    @scholar.setter
    def scholar(self, scholar: Scholar | None) -> None:
        self._scholar, self._saved_solver = scholar, None

    def restored(self, strategy: Any) -> None:
        """Take note of the model, after a checkpoint has been loaded."""
        self.model = strategy.model

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse strategies that it cannot serve, and settle what outputs mean."""
        refuse_distributed("DGR")
        refuse_meta_learning(strategy, "DGR")
        check_criterion(strategy, "DGR")
        if sum(isinstance(plugin, DGRPlugin) for plugin in strategy.plugins) > 1:
            raise ValueError("plugins: there are two DGRPlugins, and each would weigh the real loss anew; use one")
        self._settle_likelihood(strategy)
        refuse_shared(strategy, "DGR", plugin=self, generator=self.source.generator)
        self.model = strategy.model

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse an empty experience before a data loader is made of it; put a loaded scholar together."""
        refuse_empty(strategy, "DGR")
        self.model = strategy.model
        _ = self.scholar  # before the model grows

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Look at the task's data before its first part, and seed the draws for replay, once."""
        self.model = strategy.model
        self.source.move(strategy.device)
        if self.scholar is not None:
            self.scholar.solver.to(strategy.device)
        if parts_so_far(strategy.experience, self.parts) == 1:
            self._look_at_data(strategy)
            self._checked = False
        if not self._seeded:
            self._random.manual_seed(torch.initial_seed() if self.seed is None else self.seed)
            self._seeded = True

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse targets that do not fit to the outputs, at the first mini-batch of a task."""
        if self._checked:
            return
        targets = targets_of(self._settle_likelihood(strategy), strategy.mb_output, strategy.mb_y)
        if self.scholar is not None:
            before = self.scholar.solver.targets
            if (type(before), before.shape) != (type(targets), targets.shape):
                raise ValueError(
                    f"targets of {experience_name(strategy)} are {targets.likelihood} {targets.shape}, and those of "
                    f"the tasks before were {before.likelihood} {before.shape}, as the old solver's answers are"
                )
        if self.balanced and targets.classes(strategy.mb_output) is None:
            raise ValueError("balanced must be False, got True: outputs do not say one class for each input")
        try:
            detached_copy(strategy.model)
        except Exception as error:
            raise ValueError(f"model: DGR keeps a copy of the solver, and it cannot be copied: {error}") from error
        self._checked = True
        note_owner(strategy, self, self.source.generator)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add (r - 1) L(real) + (1 - r) L(replayed)."""
        if self.scholar is not None:
            ratio = self.ratio
            replayed = self._next_answers(strategy, self.replay_batch_size or len(strategy.mb_x))
            # Model calls set nothing on the strategy, so that metrics see the real batch.
            loss = replay_loss(
                strategy.model,
                replayed,
                answers=self.answers,
                temperature=self.temperature,
                criterion=strategy._criterion,
            )
            self.last_replay_loss = loss.detach()
            strategy.loss = strategy.loss + (ratio - 1) * strategy.criterion() + (1 - ratio) * loss
        check_loss(strategy, strategy.loss)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Train the generator at the end of a task, then copy generator and solver."""
        parts = parts_so_far(strategy.experience, self.parts)
        task = finished_task(strategy, parts)
        if task is None:
            self.parts = parts
            return
        self._pool = self._saved_chunk = None
        x, y = read(task.dataset)
        iterations = self.generator_iterations
        self.source.learn(strategy, x, ratio=self.ratio, iterations=iterations, random=self._random)
        if isinstance(strategy.model, MultiTaskModule):
            self.task_labels = sorted({*self.task_labels, *task.labels})
        solver = Solver(strategy.model, classes=None, task_labels=self.task_labels)
        with untouched_random_state():
            outputs = solver.logits(x[:8].to(strategy.device))[0][1]
        solver.targets = targets_of(self._settle_likelihood(strategy), outputs, y[:8].to(strategy.device))
        self.classes = solver.classes = sorted({*self.classes, *solver.targets.classes_in(y)})
        self.scholar = Scholar(self.source.sampler(), solver)
        self.tasks, self.parts, self._shape = self.tasks + 1, 0, list(x.shape[1:])

    @property
    def generator(self) -> Any:
        """G as it learns; None where nothing is generated."""
        return self.source.generator

    @property
    def generator_losses(self) -> dict[str, list[float]]:
        """The generator's losses of the latest task, lists by name, one value an iteration."""
        return self.source.losses

    @property
    def ratio(self) -> float:
        """Weight r of the task being learnt; 1 for the first."""
        if self.tasks == 0:
            return 1.0
        return 1 / (self.tasks + 1) if self.replay_ratio == "1/t" else float(self.replay_ratio)

    def state_dict(self) -> dict[str, Any]:
        """Return generator, scholar, and where the random draws are."""
        solver = self._saved_solver if self._scholar is None else solver_state(self._scholar.solver)
        return {
            **dict.fromkeys(("generator", "old_generator", "source", "range_read", "old_range")),
            "tasks": self.tasks,
            "parts": self.parts,
            "classes": list(self.classes),
            "task_labels": list(self.task_labels),
            "solver": None if solver is None else dict(solver),
            "random": self._random.get_state(),
            "seeded": self._seeded,
            "chunk": self._saved_chunk if self._pool is None else [self._before_chunk, len(self._pool), self._used],
            "losses": {},
            "shape": self._shape,
            **self.source.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave; the solver is put together when it is asked for.

        Raises:
            ValueError: Entries are missing, unknown or of another kind, or do not fit. Plugin and generator are then as
                before, as after any other error.
        """
        state = check_state(state)
        if (state["source"] is None) != (self.replay == "generated"):
            raise ValueError(f"replay: this plugin has {self.replay!r}, and the state is that of another one")
        with all_or_nothing(self):
            self.source.load_state_dict(state)
            with fitting("random"):
                self._random.set_state(state["random"].cpu())
            self.tasks, self.parts = state["tasks"], state["parts"]
            self.classes, self.task_labels = list(state["classes"]), list(state["task_labels"])
            self.scholar, self._saved_solver = None, state["solver"]
            self._seeded, self._shape = state["seeded"], state["shape"]
            self._pool, self._saved_chunk = None, state["chunk"]

    def _settle_likelihood(self, strategy: Any) -> Likelihood:
        chosen = choose_likelihood(self.likelihood, strategy._criterion)
        if chosen != self._likelihood:
            log.info("the old solver answers under likelihood=%r", chosen)
            self._likelihood = chosen
        return chosen

    def _next_answers(self, strategy: Any, n: int) -> Answers:
        """Return the next n replayed inputs and answers, from a chunk that is sampled when the last one is used up."""
        if self._saved_chunk is not None:
            before, size, used = self._saved_chunk
            now = self._random.get_state()
            self._random.set_state(before)
            self._fill(strategy, size)
            self._random.set_state(now)
            self._used, self._saved_chunk = used, None
        if self._pool is None or self._used + n > len(self._pool):
            self._fill(strategy, max(self.chunk, n))
        pool: Any = self._pool
        self._used += n
        return pool.rows(self._used - n, self._used)

    def _fill(self, strategy: Any, size: int) -> None:
        scholar: Any = self.scholar
        self._before_chunk, self._used = self._random.get_state(), 0
        self._pool = scholar.sample(size, self._random, device=strategy.device, balanced=self.balanced)

    def _look_at_data(self, strategy: Any) -> None:
        """Refuse a task's data that could not be replayed, before a solver is trained on them."""
        name, found = experience_name(strategy), survey(current_task(strategy).experiences)
        shape = list(found.some.shape[1:])
        if self._shape not in (None, shape):
            raise ValueError(f"inputs of {name} have the shape {shape}, and the replayed ones have {self._shape}")
        self.source.look(found, name, strategy.device)
