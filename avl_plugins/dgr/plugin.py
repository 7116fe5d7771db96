"""Deep Generative Replay as an Avalanche plugin."""

from copy import deepcopy
from functools import partial
from math import isfinite
from typing import Any, Literal

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from avl_plugins.checkpoint.resume import phase
from avl_plugins.data.tensors import batches_in_memory, dataset_tensors
from avl_plugins.dgr.generator import Generator, check_samples, inside
from avl_plugins.dgr.scholar import (
    Answers,
    Labels,
    Scholar,
    Solver,
    replay_loss,
    solver_from_state,
    solver_state,
)
from avl_plugins.dgr.sources import Memory, Noise, Replay
from avl_plugins.tasks.labels import experience_classes, experience_labels

__all__ = ["DGRPlugin"]


class DGRPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]
    """Deep Generative Replay (Shin et al. 2017, arXiv:1705.08690).

    The scholar H = (G, S) of the tasks so far, a generator and a copy of the solver, teaches the next solver (Eq. 1):

        r E_{(x, y) ~ D_t} [L(S(x), y)] + (1 - r) E_{x' ~ G_{t-1}} [L(S(x'), S_{t-1}(x'))].

    While the strategy trains, `mbatch` and `mb_output` are those of the real batch; before the backward pass
    (r - 1) L(real) + (1 - r) L(replayed) is added to the loss, so that other plugins' penalties stay as they are.
    After an experience the generator learns from its inputs and samples of the generator before, in the same ratio,
    and then generator and solver are copied.

    In the class-incremental case old answers are among the classes known then. A `MultiTaskModule` answers with every
    old head, and the loss is the mean over heads. The solver sees replayed batches apart from real ones, which matters
    to BatchNorm.

    Where the generator has no `data_range`, the first experience's data give it. The data of each experience are read
    once before it, with the transforms for evaluation, to be compared with it.

    Args:
        generator: G, see `Generator`; `WGANGP` is the paper's. Not needed, and not trained, with `replay` "exact" or
            "noise".
        replay: "generated"; "exact": real past inputs, with the old solver's answers (ER); "noise": Gaussian inputs.
        replay_ratio: r, the weight of the current task (the paper has none printed): "1/t" at task t, or a number.
        labels: "hard": the old solver's class; "soft": its probabilities at `temperature`, 0 for later classes.
        temperature: of soft labels.
        generator_iterations: Calls of `fit_batch` after each experience.
        replay_batch_size: Replayed inputs a training step; None: as many as real ones.
        balanced: Replay all classes that the old solver answers with about equally often, from four times as many
            samples; the method does not need it.
        chunk: Inputs that are sampled and answered at a time.
        seed: Of what is drawn for replay and for the generator's batches. None: `torch.initial_seed()`.

    Attributes:
        scholar: H of the tasks so far; None before the first has ended.
        tasks: Experiences that have ended.
        generator_losses: Of the latest experience, lists by name, one value an iteration.
        last_replay_loss: Mean loss on the latest replayed batch; 0-d.

    Raises:
        TypeError: If `generator` is no `Generator`.
        ValueError: If an argument is out of range; before an experience, if it is empty, or its data are outside the
            generator's range; while training, if the generator's samples are not finite or outside its range.
    """

    def __init__(
        self,
        *,
        generator: Generator | None = None,
        replay: Replay = "generated",
        replay_ratio: Literal["1/t"] | float = "1/t",
        labels: Labels = "hard",
        temperature: float = 2.0,
        generator_iterations: int = 3000,
        replay_batch_size: int | None = None,
        balanced: bool = False,
        chunk: int = 2048,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if replay not in ("generated", "exact", "noise"):
            raise ValueError(f'replay: expected "generated", "exact" or "noise", got {replay!r}')
        if replay == "generated" and not isinstance(generator, Generator):
            raise TypeError(
                f"generator: expected a Generator such as WGANGP or VAE, got {type(generator).__name__}; it needs "
                "batch_size, data_range, fit_batch, sample, state_dict and load_state_dict"
            )
        if labels not in ("hard", "soft"):
            raise ValueError(f'labels: expected "hard" or "soft", got {labels!r}')
        if not (replay_ratio == "1/t" or (isinstance(replay_ratio, float | int) and 0 < replay_ratio <= 1)):
            raise ValueError(
                f'replay_ratio: expected "1/t" or a weight of the current task in (0, 1], got {replay_ratio!r}'
            )
        if not temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        for name, value in (
            ("generator_iterations", generator_iterations),
            ("replay_batch_size", replay_batch_size),
            ("chunk", chunk),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.generator = generator
        self.replay, self.replay_ratio = replay, replay_ratio
        self.labels, self.temperature = labels, temperature
        self.generator_iterations = generator_iterations
        self.replay_batch_size, self.chunk = replay_batch_size, chunk
        self.balanced = balanced
        self.seed = seed
        self.source: Any = {"exact": Memory, "noise": Noise}[replay]() if replay != "generated" else None
        self.scholar: Scholar | None = None
        self.tasks = 0
        self.classes: list[int] = []
        self.task_labels: list[int] = []
        self.generator_losses: dict[str, list[float]] = {}
        self.last_replay_loss: Tensor | None = None
        self._random = torch.Generator()
        self._seeded = False
        self._pool: Answers | None = None
        self._used = 0
        self._before_chunk: Tensor | None = None
        """State of the random draws before the chunk in use was sampled, from which it can be sampled again."""
        self._saved_chunk: Any = None
        self._old_generator: Any = None
        self._saved_solver: Any = None
        self._range_read: tuple[float, float] | None = None
        """The generator's range, where the first experience's data gave it."""

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Seed the draws for replay, once, and see that the generator's range is that of the data."""
        if len(strategy.experience.dataset) == 0:
            raise ValueError(f"experience {strategy.experience.current_experience}: it is empty, nothing can be learnt")
        if not self._seeded:
            self._random.manual_seed(torch.initial_seed() if self.seed is None else self.seed)
            self._seeded = True
        for generator in (self.generator, self._old_generator):
            _move(generator, strategy.device)
        if self.replay == "generated":
            self._check_data(strategy.experience.dataset)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add (r - 1) L(real) + (1 - r) L(replayed)."""
        self._restore_scholar(strategy)
        if self.scholar is None:
            return
        ratio = self.ratio
        answers = self._next_answers(strategy, self.replay_batch_size or len(strategy.mb_x))
        # Model calls set nothing on the strategy, so that metrics see the real batch.
        loss = replay_loss(
            strategy.model,
            answers,
            labels=self.labels,
            temperature=self.temperature,
            criterion=strategy._criterion,
        )
        self.last_replay_loss = loss.detach()
        strategy.loss = strategy.loss + (ratio - 1) * strategy.criterion() + (1 - ratio) * loss

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Train the generator, then copy generator and solver."""
        self._restore_scholar(strategy)
        self._pool = self._saved_chunk = None
        x = dataset_tensors(strategy.experience.dataset.eval())[0]
        if self.replay == "generated":
            self._train_generator(strategy, x)
        elif self.replay == "exact":
            self.source.add(x)
        elif self.tasks == 0:
            self.source.fit(x)
        experience = strategy.experience
        self.classes = sorted({*self.classes, *experience_classes(experience)})
        if isinstance(strategy.model, MultiTaskModule):
            self.task_labels = sorted({*self.task_labels, *experience_labels(experience)})
        self.tasks += 1
        solver = Solver(strategy.model, classes=self.classes, task_labels=self.task_labels)
        if self.replay == "generated":
            self._old_generator = _frozen_copy(self.generator)
        self.scholar, self._saved_solver = Scholar(self._sampler(), solver), None

    @property
    def ratio(self) -> float:
        """Weight r of the task being learnt; 1 for the first."""
        if self.tasks == 0:
            return 1.0
        return 1 / (self.tasks + 1) if self.replay_ratio == "1/t" else float(self.replay_ratio)

    def state_dict(self) -> dict[str, Any]:
        """Return generator, scholar, and where the random draws are."""
        solver = self._saved_solver if self.scholar is None else solver_state(self.scholar.solver)
        generated = self.replay == "generated" and self.tasks > 0
        return {
            "tasks": self.tasks,
            "classes": list(self.classes),
            "task_labels": list(self.task_labels),
            "generator": None if self.generator is None else dict(self.generator.state_dict()),
            "old_generator": dict(self._old_generator.state_dict()) if generated else None,
            "source": None if self.source is None else self.source.state_dict(),
            "solver": None if solver is None else dict(solver),
            "random": self._random.get_state(),
            "seeded": self._seeded,
            "chunk": self._saved_chunk if self._pool is None else [self._before_chunk, len(self._pool), self._used],
            "losses": {name: list(values) for name, values in self.generator_losses.items()},
            "range_read": self._range_read,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave; the solver is put together when training goes on."""
        if (state["source"] is None) != (self.source is None):
            raise ValueError(f"replay: this plugin has {self.replay!r}, and the state is that of another one")
        self._range_read = state["range_read"]
        if self.generator is not None and state["generator"] is not None:
            self.generator.load_state_dict(state["generator"])
            if self.generator.data_range is None and self._range_read is not None:  # its state may lack it
                self.generator.data_range = self._range_read
        if state["old_generator"] is not None:
            self._old_generator = _frozen_copy(self.generator)
            self._old_generator.load_state_dict(state["old_generator"])
        if self.source is not None:
            self.source.load_state_dict(state["source"])
        self.tasks = state["tasks"]
        self.classes, self.task_labels = list(state["classes"]), list(state["task_labels"])
        self.generator_losses = {name: list(values) for name, values in state["losses"].items()}
        self._saved_solver, self.scholar = state["solver"], None
        self._random.set_state(state["random"])
        self._seeded = state["seeded"]
        self._pool, self._saved_chunk = None, state["chunk"]

    def _sampler(self) -> Any:
        return partial(_checked_samples, self._old_generator) if self.replay == "generated" else self.source

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

    def _restore_scholar(self, strategy: Any) -> None:
        """Put a loaded scholar together; that needs the model, which a state_dict does not have."""
        if self._saved_solver is not None:
            solver = solver_from_state(strategy.model, self._saved_solver)
            self.scholar, self._saved_solver = Scholar(self._sampler(), solver), None

    def _check_data(self, dataset: Any) -> None:
        """Refuse data outside the generator's range, before a solver is trained on them; the first may set it."""
        generator: Any = self.generator
        # The eval transforms, as the generator learns from what they give; one pass, and little is held.
        ends = [[float(v) for v in x.aminmax()] for x, *_ in batches_in_memory(dataset)]
        low, high = (float(v) for v in torch.tensor(ends, dtype=torch.float64).aminmax())
        if generator.data_range is None:
            if not (isfinite(low) and isfinite(high) and low < high):
                raise ValueError(
                    f"data_range: it cannot be read from data with values from {low:g} to {high:g}; pass it to the "
                    "generator"
                )
            generator.data_range = self._range_read = (low, high)
        bounds = tuple(generator.data_range)
        if not inside(low, high, bounds):
            found = f"({bounds[0]:g}, {bounds[1]:g}), and the data have values from {low:g} to {high:g}"
            if bounds != self._range_read:
                raise ValueError(f"data_range: declared as {found}; declare the range they really have")
            raise ValueError(
                f"data_range: read from the first experience as {found}; pass data_range= to the generator, the range "
                "of all data to come"
            )

    def _train_generator(self, strategy: Any, x: Tensor) -> None:
        generator: Any = self.generator
        ratio, old = self.ratio, self.scholar
        n_real = max(1, round(ratio * generator.batch_size))
        n_old = generator.batch_size - n_real if old is not None else 0
        for iteration in phase(strategy, "dgr: generator", iterations=self.generator_iterations):
            if iteration == 0:
                self.generator_losses = {}
            rows = torch.randint(len(x), (n_real,), generator=self._random)
            replayed = None
            if old is not None and n_old:
                replayed = old.source(n_old, self._random).to(strategy.device)
            weight = ratio if replayed is not None else 1.0
            losses = generator.fit_batch(x[rows].to(strategy.device), replayed, weight)
            for key, value in losses.items():
                self.generator_losses.setdefault(key, []).append(float(value))


def _checked_samples(generator: Any, n: int, random: torch.Generator | None) -> Tensor:
    return check_samples(generator.sample(n, random), generator.data_range, type(generator).__name__)


def _move(generator: Any, device: torch.device) -> None:
    """Move a generator that is a module, and its optimizers' state, which `to` leaves where it was."""
    if not isinstance(generator, nn.Module):
        return
    state, before = generator.state_dict(), [p.device for p in generator.parameters()]
    generator.to(device)
    if [p.device for p in generator.parameters()] != before:
        generator.load_state_dict(state)  # optimizers put what they load beside their parameters


def _frozen_copy(generator: Any) -> Any:
    """Return a copy that is only sampled from."""
    copy = deepcopy(generator)
    if isinstance(copy, nn.Module):
        copy.requires_grad_(False)
    return copy
