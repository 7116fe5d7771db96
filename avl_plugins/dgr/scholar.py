"""A scholar: a generator that gives inputs and a solver that answers them."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, log_softmax

__all__ = ["Answers", "Scholar", "Solver", "replay_loss"]

Labels = Literal["hard", "soft"]
_CHUNK = 1000


class Solver:
    """A solver as it was after a task: an answer machine without gradients, in evaluation mode.

    It keeps copies of the parameters and buffers; the module they are put into may have grown since.

    Args:
        model: The solver, x -> logits, or (x, task label) -> logits for a `MultiTaskModule`.
        classes: Labels of the classes known by then; answers are among them. None: all outputs.
        task_labels: Heads known by then, for a `MultiTaskModule`.
    """

    def __init__(self, model: nn.Module, *, classes: Sequence[int] | None, task_labels: Sequence[int] = ()) -> None:
        self.skeleton = deepcopy(model).eval().requires_grad_(False)
        self.tensors: dict[str, Tensor] = {
            name: value.detach().clone()
            for name, value in (*model.named_parameters(), *model.named_buffers())
        }  # fmt: skip
        self.classes = None if classes is None else sorted(set(classes))
        self.task_labels = list(task_labels)

    @property
    def device(self) -> torch.device:
        """Where it is, and its inputs have to be; the CPU if it has no parameters."""
        return next((tensor.device for tensor in self.tensors.values()), torch.device("cpu"))

    @torch.no_grad()
    def logits(self, x: Tensor) -> list[tuple[int | None, Tensor]]:
        """Return (task label, logits) of every head known then; (None, logits) of a model without task labels."""
        heads: list[int | None] = list(self.task_labels) if isinstance(self.skeleton, MultiTaskModule) else [None]
        self.skeleton.eval()
        found = []
        for head in heads:
            parts = [
                functional_call(self.skeleton, self.tensors, (part,) if head is None else (part, head))
                for part in x.split(_CHUNK)
            ]
            out = torch.cat(parts)
            if head is None and self.classes is not None:
                known = torch.zeros(out.shape[1], dtype=torch.bool, device=out.device)
                known[[c for c in self.classes if c < out.shape[1]]] = True
                out = out.masked_fill(~known, float("-inf"))
            found.append((head, out))
        return found


class Answers:
    """What an old solver answers to replayed inputs: per head, class labels or logits.

    Attributes:
        x: Inputs (N, *shape).
        heads: (task label or None, logits (N, classes)).
    """

    def __init__(self, x: Tensor, heads: Sequence[tuple[int | None, Tensor]]) -> None:
        self.x, self.heads = x, list(heads)

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int) -> "Answers":
        """Return some of them."""
        return Answers(self.x[start:stop], [(head, logits[start:stop]) for head, logits in self.heads])

    def to(self, device: Any) -> "Answers":
        """Return them on a device."""
        return Answers(self.x.to(device), [(head, logits.to(device)) for head, logits in self.heads])


def replay_loss(
    model: nn.Module,
    answers: Answers,
    *,
    labels: Labels,
    temperature: float,
    criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Tensor:
    """Return the mean loss of a model on replayed inputs with the old solver's answers, over its heads.

    "hard": the criterion on the class with the largest old logit. "soft": the cross-entropy of old and new
    probabilities at a temperature T, times T^2 (Hinton et al. 2015). The old ones are over the classes known then and 0
    for others, the new ones over all of a head's outputs, so that replay speaks against classes that came later.
    """
    total = answers.x.new_zeros(())
    for head, old in answers.heads:
        new = model(answers.x) if head is None else model(answers.x, head)
        if labels == "hard":
            total = total + criterion(new, old.argmax(1))
        else:
            known = old.isfinite().any(0)
            target = (old[:, known] / temperature).softmax(1)
            scores = log_softmax(new / temperature, 1)[:, : old.shape[1]][:, known]
            total = total - temperature**2 * (target * scores).sum(1).mean()
    return total / len(answers.heads)


class Scholar:
    """H = (G, S): inputs from a generator, or from another source, with the answers of a solver.

    Args:
        source: n, generator -> (n, *shape).
        solver: The solver that answers.
    """

    def __init__(self, source: Callable[[int, torch.Generator | None], Tensor], solver: Solver) -> None:
        self.source, self.solver = source, solver

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, *, device: Any = None, balanced: bool = False
    ) -> Answers:
        """Return n replayed inputs with their answers, without a graph.

        Args:
            n: How many.
            generator: Where random numbers come from.
            device: Where the inputs go to be answered; None: where the solver is.
            balanced: Draw four times as many and keep, as far as there are enough, as many of each class as of any
                other, the class being the answer of the solver's first head.
        """
        x = self.source(4 * n if balanced else n, generator).to(self.solver.device if device is None else device)
        answers = Answers(x, self.solver.logits(x))
        if not balanced:
            return answers
        rows = _balanced(answers.heads[0][1].argmax(1), n)
        return Answers(x[rows], [(head, logits[rows]) for head, logits in answers.heads])

    def teach(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        iterations: int,
        batch_size: int = 128,
        labels: Labels = "hard",
        temperature: float = 2.0,
        generator: torch.Generator | None = None,
        criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    ) -> list[float]:
        """Train another model on samples alone, as in table 1 of the paper, and return the loss at each iteration.

        Raises:
            ValueError: If `iterations` or `batch_size` is below 1.
        """
        for name, value in (("iterations", iterations), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
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
            loss = replay_loss(model, part, labels=labels, temperature=temperature, criterion=criterion)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
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
    return {"tensors": solver.tensors, "classes": solver.classes, "task_labels": solver.task_labels}


def solver_from_state(model: nn.Module, state: Mapping[str, Any]) -> Solver:
    """Make the solver of a state, for a model of its kind that may have grown since."""
    solver = Solver(model, classes=state["classes"], task_labels=state["task_labels"])
    solver.tensors = {name: value.to(next(model.parameters()).device) for name, value in state["tensors"].items()}
    return solver
