"""A scholar: a generator that gives inputs and a solver that answers them."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, Literal

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.func import functional_call

from avl_plugins.dgr.frozen import detached_copy
from avl_plugins.dgr.targets import Categorical, Targets, targets_from_plain, targets_to_plain
from avl_plugins.tasks.arguments import check_choice, check_count, check_flag, check_number
from avl_plugins.tasks.words import renamed

__all__ = ["Answers", "Kind", "Scholar", "Solver", "replay_loss"]

Kind = Literal["hard", "soft"]
"""Of answers."""
_CHUNK = 1000
_CLASSES = Categorical()


class Solver:
    """A solver as it was after a task: an answer machine without gradients, in evaluation mode.

    It keeps copies of the parameters and buffers; the module they are put into may have grown since.

    Args:
        model: the solver, x -> outputs, or (x, task label) -> outputs for a `MultiTaskModule`. Of a `DataParallel`, the
            module in it.
        classes: labels of the classes known by then; answers are among them if they are classes. None: all outputs.
        task_labels: heads known by then, for a `MultiTaskModule`.
        targets: what the outputs mean.
        tensors: its parameters and buffers by name; None: those that the model has now.

    Raises:
        ValueError: If the model lacks a parameter or buffer among `tensors`.

    Example:
        >>> solver = Solver(nn.Identity(), classes=[0, 2])  # class 1 is not known yet
        >>> solver.logits(torch.tensor([[1.0, 5.0, 2.0]]))
        [(None, tensor([[1., -inf, 2.]]))]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: Sequence[int] | None,
        task_labels: Sequence[int] = (),
        targets: Targets = _CLASSES,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.skeleton: nn.Module = detached_copy(model.module if isinstance(model, nn.DataParallel) else model).eval()
        now = {**dict(self.skeleton.named_parameters()), **dict(self.skeleton.named_buffers())}
        if tensors is None:
            self.tensors = {name: value.detach() for name, value in now.items()}
        else:
            if missing := sorted(tensors.keys() - now.keys()):
                raise ValueError(f"model: the old solver has {', '.join(missing[:3])}, and this one has not")
            device = next((value.device for value in now.values()), torch.device("cpu"))
            self.tensors = {name: value.to(device) for name, value in tensors.items()}
        self.classes = None if classes is None else sorted(set(classes))
        self.task_labels = list(task_labels)
        self.targets = targets

    @property
    def device(self) -> torch.device:
        """Where it is, and its inputs have to be; the CPU if it has no parameters."""
        return next((tensor.device for tensor in self.tensors.values()), torch.device("cpu"))

    def to(self, device: Any) -> "Solver":
        """Move it to a device, and return it."""
        self.skeleton.to(device)
        self.tensors = {name: value.to(device) for name, value in self.tensors.items()}
        return self

    @torch.no_grad()
    def logits(self, x: Tensor) -> list[tuple[int | None, Tensor]]:
        """Return (task label, outputs) of every head known then; (None, outputs) of a model without task labels."""
        heads: list[int | None] = list(self.task_labels) if isinstance(self.skeleton, MultiTaskModule) else [None]
        self.skeleton.eval()
        found = []
        for head in heads:
            parts = [
                functional_call(self.skeleton, self.tensors, (part,) if head is None else (part, head))
                for part in x.split(_CHUNK)
            ]
            out = torch.cat(parts)
            if head is None and self.classes is not None and self.targets.likelihood == "categorical":
                known = torch.zeros(out.shape[1], dtype=torch.bool, device=out.device)
                known[[c for c in self.classes if c < out.shape[1]]] = True
                out = out.masked_fill(~known.view(-1, *[1] * (out.dim() - 2)), float("-inf"))
            found.append((head, out))
        return found


class Answers:
    """What an old solver answers to replayed inputs: its outputs per head.

    Attributes:
        x: inputs (N, *shape).
        heads: (task label or None, outputs (N, ...)).
        targets: what the outputs mean.

    Example:
        >>> answers = Answers(torch.rand(3, 2), [(None, torch.eye(3))])
        >>> answers.rows(1, 3).classes()
        tensor([1, 2])
    """

    def __init__(self, x: Tensor, heads: Sequence[tuple[int | None, Tensor]], targets: Targets = _CLASSES) -> None:
        self.x, self.heads, self.targets = x, list(heads), targets

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int) -> "Answers":
        """Return some of them."""
        return self.at(slice(start, stop))

    def at(self, rows: Any) -> "Answers":
        """Return those in some rows, by a slice or a vector of their numbers."""
        return Answers(self.x[rows], [(head, out[rows]) for head, out in self.heads], self.targets)

    def to(self, device: Any) -> "Answers":
        """Return them on a device."""
        return Answers(self.x.to(device), [(head, out.to(device)) for head, out in self.heads], self.targets)

    def classes(self) -> Tensor | None:
        """Return the class that the first head says of each input, (N,); None where answers are no classes."""
        return self.targets.classes(self.heads[0][1])


@renamed(labels="answers")
def replay_loss(
    model: nn.Module,
    replayed: Answers,
    *,
    answers: Kind,
    temperature: float,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the mean loss of a model on replayed inputs with the old solver's answers, over its heads.

    "hard": the criterion on the likeliest targets: the class with the largest old logit, 1 where a binary logit is
    above 0, the old outputs where they are means. "soft": the cross-entropy of old and new probabilities at a
    temperature T, times T^2 (Hinton et al. 2015), see `Targets`. Old ones are over the classes known then and 0 for
    others, new ones over all of a head's outputs, so that replay speaks against classes that came later.

    Args:
        model: the new solver.
        replayed: inputs with the old one's outputs.
        answers: "hard" or "soft"; Gaussian ones are the same in both.
        temperature: T.
        criterion: (outputs, targets) -> mean loss; None: the likelihood's own.

    Example:
        >>> replayed = Answers(torch.ones(1, 2), [(None, torch.tensor([[3.0, -1.0]]))])
        >>> replay_loss(torch.zeros_like, replayed, answers="hard", temperature=1.0)
        tensor(0.6931)
    """
    targets = replayed.targets
    soft = answers == "soft" and targets.likelihood != "gaussian"
    criterion = criterion or targets.loss
    total = replayed.x.new_zeros(())
    for head, old in replayed.heads:
        new = model(replayed.x) if head is None else model(replayed.x, head)
        if soft:
            total = total + targets.soft_loss(old, new, temperature)
        else:
            new = targets.answered(old, new)
            total = total + criterion(new, targets.hard(old, new))
    return total / len(replayed.heads)


class Scholar:
    """H = (G, S): inputs from a generator, or from another source, with the answers of a solver.

    Args:
        source: n, generator -> (n, *shape).
        solver: the solver that answers.

    Example:
        >>> solver = Solver(nn.Linear(4, 3), classes=[0, 1])
        >>> scholar = Scholar(lambda n, generator: torch.rand(n, 4, generator=generator), solver)
        >>> scholar.sample(5).x.shape
        torch.Size([5, 4])
        >>> pupil = nn.Linear(4, 3)
        >>> len(scholar.teach(pupil, torch.optim.Adam(pupil.parameters()), iterations=20))
        20
    """

    def __init__(self, source: Callable[[int, torch.Generator | None], Tensor], solver: Solver) -> None:
        self.source, self.solver = source, solver

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, *, device: Any = None, balanced: bool = False
    ) -> Answers:
        """Return n replayed inputs with their answers, without a graph.

        Args:
            n: how many.
            generator: where random numbers come from.
            device: where the inputs go to be answered; None: where the solver is.
            balanced: draw four times as many and keep, as far as there are enough, as many of each class as of any
                other, the class being the answer of the solver's first head.

        Raises:
            ValueError: If `n` is below 1, or answers are no classes, which could be balanced.
        """
        check_count("n", n)
        check_flag("balanced", balanced)
        x = self.source(4 * n if balanced else n, generator).to(self.solver.device if device is None else device)
        answers = Answers(x, self.solver.logits(x), self.solver.targets)
        if not balanced:
            return answers
        classes = answers.classes()
        if classes is None:
            raise ValueError("balanced must be False, got True: the answers are not one class for each input")
        return answers.at(_balanced(classes, n))

    @renamed(labels="answers")
    def teach(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        iterations: int,
        batch_size: int = 128,
        answers: Kind = "hard",
        temperature: float = 2.0,
        generator: torch.Generator | None = None,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> list[float]:
        """Train another model on samples alone, as in table 1 of the paper, and return the loss at each iteration.

        Args:
            model: the pupil, with the solver's inputs and outputs.
            optimizer: its optimizer.
            iterations: how many steps.
            batch_size: samples in each.
            answers: "hard" or "soft", see `replay_loss`.
            temperature: of soft ones.
            generator: where random numbers come from.
            criterion: loss on hard answers; None: that of the solver's likelihood.

        Raises:
            TypeError: If an argument is of another kind.
            ValueError: If one is out of range; in training, if the loss is NaN or infinite.
        """
        check_count("iterations", iterations)
        check_count("batch_size", batch_size)
        check_choice("answers", answers, ("hard", "soft"))
        check_number("temperature", temperature, low=0, open_low=True)
        device = next(model.parameters()).device
        model.train()
        losses = []
        pool: Answers | None = None
        used = 0
        for _ in range(iterations):
            if pool is None or used + batch_size > len(pool):
                pool, used = self.sample(max(_CHUNK // batch_size, 1) * batch_size, generator).to(device), 0
            part = pool.rows(used, used + batch_size)
            used += batch_size
            optimizer.zero_grad()
            loss = replay_loss(model, part, answers=answers, temperature=temperature, criterion=criterion)
            losses.append(float(loss.detach()))
            if not isfinite(losses[-1]):
                raise ValueError(f"the loss is {losses[-1]:g} in iteration {len(losses)}: lower the learning rate")
            loss.backward()
            optimizer.step()
        return losses


def _balanced(labels: Tensor, n: int) -> Tensor:
    """Return n rows in order, with each class as often as the others where it is there: by its k-th occurrence."""
    occurrence = torch.zeros_like(labels)
    for label in labels.unique():
        here = labels == label
        occurrence[here] = torch.arange(int(here.sum()), device=labels.device)
    return occurrence.argsort(stable=True)[:n].sort().values


def solver_state(solver: Solver) -> Mapping[str, Any]:
    """Return a solver's state as tensors and plain values."""
    return {
        "tensors": solver.tensors,
        "classes": solver.classes,
        "task_labels": solver.task_labels,
        "targets": targets_to_plain(solver.targets),
    }


def solver_from_state(model: nn.Module, state: Mapping[str, Any]) -> Solver:
    """Make the solver of a state, for a model of its kind that may have grown since."""
    targets = targets_from_plain(state.get("targets"))
    own = {name: state[name] for name in ("tensors", "classes", "task_labels")}
    return Solver(model, targets=targets, **own)
