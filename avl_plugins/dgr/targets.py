"""What a solver's outputs mean: its answers to replayed inputs, as targets of the criterion or as probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from avl_plugins.tasks.likelihood import LIKELIHOODS, Likelihood, likelihood_of

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Targets", "choose_likelihood", "targets_of"]

Shape = Literal["classes", "values"]


@dataclass(frozen=True)
class Targets:
    """What the targets beside outputs (N, C, ...) are, so that answers can be given as such.

    Attributes:
        likelihood: of the outputs.
        shape: "classes": numbers of classes, without dimension 1; "values": shaped as the outputs.
        dtype: of the targets.
    """

    likelihood: ClassVar[Likelihood]
    shape: Shape = "classes"
    dtype: torch.dtype = torch.int64

    @classmethod
    def fit(cls, outputs: Tensor, y: Tensor) -> Self:
        """Return what these targets are; a ValueError says what fits to the outputs where they do not."""
        raise NotImplementedError

    def hard(self, old: Tensor, new: Tensor) -> Tensor:
        """Return old outputs as targets beside the new ones, of which there may be more: the likeliest."""
        raise NotImplementedError

    def soft_loss(self, old: Tensor, new: Tensor, temperature: float) -> Tensor:
        """Return the cross-entropy of old and new probabilities at a temperature T, times T^2 (Hinton et al. 2015)."""
        raise NotImplementedError

    def answered(self, old: Tensor, new: Tensor) -> Tensor:
        """Return the new outputs that the hard answers are about."""
        if self.shape == "classes" or new.dim() == 1:
            return new
        return new[:, : old.shape[1]]  # values that came later have no answer

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the likelihood's own criterion, the mean over samples and values."""
        raise NotImplementedError

    def classes(self, outputs: Tensor) -> Tensor | None:
        """Return the class that the outputs say of each sample, (N,); None where a sample has not just one."""
        return None

    def classes_in(self, y: Tensor) -> list[int]:
        """Return the classes that targets have, sorted; none where they are not about classes."""
        return []


class Categorical(Targets):
    """Softmax over dimension 1; targets are classes (N, ...), or probabilities (N, C, ...).

    Answers are among the classes known then: the old outputs of others are -inf.
    """

    likelihood = "categorical"

    @classmethod
    def fit(cls, outputs: Tensor, y: Tensor) -> Self:
        """Take integers without dimension 1, or floats shaped as the outputs."""
        if outputs.dim() > 1 and y.shape == outputs.shape[:1] + outputs.shape[2:] and not y.is_floating_point():
            return cls("classes", y.dtype)
        if outputs.dim() > 1 and y.shape == outputs.shape and outputs.shape[1] > 1 and y.is_floating_point():
            return cls("values", y.dtype)
        raise _misfit(cls.likelihood, outputs, y, "integers (N, ...) or probabilities (N, C, ...), C > 1")

    def hard(self, old: Tensor, new: Tensor) -> Tensor:
        """Return the class with the largest logit, one-hot where targets are probabilities."""
        labels = old.argmax(1)
        if self.shape == "classes":
            return labels
        return functional.one_hot(labels, new.shape[1]).movedim(-1, 1).to(self.dtype)

    def answered(self, old: Tensor, new: Tensor) -> Tensor:
        """Return all: none of the classes that came later is the right one."""
        return new

    def soft_loss(self, old: Tensor, new: Tensor, temperature: float) -> Tensor:
        """Return it with old probabilities over the classes known then, 0 for others, and new ones over all outputs."""
        known = old.isfinite().transpose(0, 1).flatten(1).any(1)
        target = (old[:, known] / temperature).softmax(1)
        scores = functional.log_softmax(new / temperature, 1)[:, : old.shape[1]][:, known]
        return -(temperature**2) * (target * scores).sum(1).mean()

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the cross-entropy."""
        return functional.cross_entropy(outputs, y)

    def classes(self, outputs: Tensor) -> Tensor | None:
        """Return the class with the largest logit, None for maps."""
        return outputs.argmax(1) if outputs.dim() == 2 else None

    def classes_in(self, y: Tensor) -> list[int]:
        """Return those that occur, or have a probability somewhere."""
        if self.shape == "values":
            y = (y > 0).transpose(0, 1).flatten(1).any(1).nonzero()
        return [int(label) for label in y[y >= 0].unique()]  # -100 is PyTorch's label of what has no class


class Bernoulli(Targets):
    """A logit for each value in [0, 1]; or for each class (N,), one against the rest, and a single one for 0 and 1.

    One-vs-rest is the binary cross-entropy as `one_vs_rest_loss` computes it.
    """

    likelihood = "bernoulli"

    @classmethod
    def fit(cls, outputs: Tensor, y: Tensor) -> Self:
        """Take values in [0, 1] of the outputs' shape, or classes (N,) beside logits (N, C)."""
        of_classes = outputs.dim() == 2 and y.shape == outputs.shape[:1]
        in_unit = bool((y >= 0).all() and (y <= 1).all())
        if of_classes and (in_unit if outputs.shape[1] == 1 else not y.is_floating_point()):
            return cls("classes", y.dtype)
        if y.shape == outputs.shape and in_unit:
            return cls("values", y.dtype)
        raise _misfit(cls.likelihood, outputs, y, "values in [0, 1] of the outputs' shape, or classes (N,)")

    def hard(self, old: Tensor, new: Tensor) -> Tensor:
        """Return 1 where a logit is above 0, or the class with the largest of several."""
        if self.shape == "values":
            return (old > 0).to(self.dtype)
        labels: Any = self.classes(old)
        return labels.to(self.dtype)

    def soft_loss(self, old: Tensor, new: Tensor, temperature: float) -> Tensor:
        """Return the binary cross-entropy, the mean over logits; old probabilities of later classes are 0."""
        new = self.answered(old, new)
        target = (old / temperature).sigmoid()
        if new.shape != old.shape:
            target = functional.pad(target, (0, new.shape[1] - old.shape[1]))
        return temperature**2 * functional.binary_cross_entropy_with_logits(new / temperature, target)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the binary cross-entropy."""
        if self.shape == "classes":
            y = functional.one_hot(y, outputs.shape[1]) if outputs.shape[1] > 1 else y[:, None]
        return functional.binary_cross_entropy_with_logits(outputs, y.to(outputs.dtype))

    def classes(self, outputs: Tensor) -> Tensor | None:
        """Return 0 or 1 where there is one logit, the largest one's class in one-vs-rest, None for several values."""
        if outputs[:1].numel() == 1:
            return (outputs.flatten() > 0).long()
        return outputs.argmax(1) if self.shape == "classes" else None

    def classes_in(self, y: Tensor) -> list[int]:
        """Return those that occur; of several values there are none."""
        return [int(label) for label in y.double().round().unique()] if y[:1].numel() == 1 else []


class Gaussian(Targets):
    """Values of which the outputs are the means; answers are the old outputs, and there are no soft ones beside."""

    likelihood = "gaussian"

    @classmethod
    def fit(cls, outputs: Tensor, y: Tensor) -> Self:
        """Take values of the outputs' shape."""
        if y.shape != outputs.shape:
            raise _misfit(cls.likelihood, outputs, y, "values of the outputs' shape")
        return cls("values", y.dtype)

    def hard(self, old: Tensor, new: Tensor) -> Tensor:
        """Return the outputs themselves."""
        return old

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the mean squared error."""
        return functional.mse_loss(outputs, y)


_KINDS: dict[Likelihood, type[Targets]] = {
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
}


def choose_likelihood(likelihood: Likelihood | None, criterion: Any) -> Likelihood:
    """Return the likelihood asked for, or with None that of the criterion.

    Raises:
        ValueError: The criterion says none, or another one than what was asked for, or takes probabilities.
    """
    name = getattr(criterion, "__name__", type(criterion).__name__)
    if isinstance(criterion, nn.BCELoss) or criterion is functional.binary_cross_entropy:
        raise ValueError(f"criterion must take logits, got {name}: use BCEWithLogitsLoss, on outputs without a sigmoid")
    certain = likelihood_of(criterion)
    if likelihood is None and certain is None:
        raise ValueError(
            f"likelihood must be one of {', '.join(map(repr, LIKELIHOODS))} where the criterion does not say what "
            f"outputs mean, got None with {name}: by it the old solver answers with classes, with 0 and 1, or with "
            "its outputs"
        )
    if None not in (likelihood, certain) and likelihood != certain:
        raise ValueError(f"likelihood must be {certain!r}, or None, with the criterion {name}, got {likelihood!r}")
    return likelihood or certain  # type: ignore[return-value]


def targets_of(likelihood: Likelihood, outputs: Any, y: Any) -> Targets:
    """Return what targets y are beside a solver's outputs.

    Raises:
        ValueError: They do not fit, or are no tensors.
    """
    if not (isinstance(outputs, Tensor) and isinstance(y, Tensor) and outputs.dim()):
        kinds = f"{type(outputs).__name__} and {type(y).__name__}"
        raise ValueError(f"outputs and targets must be tensors with the samples along dimension 0, got {kinds}")
    return _KINDS[likelihood].fit(outputs, y)


def targets_from_plain(plain: Any) -> Targets:
    """Return the targets of a state; classes where it is from before there were others.

    Raises:
        ValueError: They are none; other errors if they are no three names.
    """
    if plain is None:
        return Categorical()
    likelihood, shape, name = plain
    dtype = getattr(torch, name)
    if shape not in ("classes", "values") or not isinstance(dtype, torch.dtype):
        raise ValueError(f"targets are 'classes' or 'values' of a dtype, not {shape!r} of {name!r}")
    return _KINDS[likelihood](shape, dtype)


def targets_to_plain(targets: Targets) -> list[str]:
    """Return targets as plain values."""
    return [targets.likelihood, targets.shape, str(targets.dtype).removeprefix("torch.")]


def _misfit(likelihood: Likelihood, outputs: Tensor, y: Tensor, wanted: str) -> ValueError:
    return ValueError(
        f"targets of shape {tuple(y.shape)} and {y.dtype} do not fit outputs of shape {tuple(outputs.shape)} under "
        f"likelihood={likelihood!r}, which needs {wanted}"
    )
