"""Which likelihood a criterion is the negative logarithm of, where that is certain."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from avalanche.training.templates.problem_type import SupervisedProblem
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional

from avl_plugins.ewc.likelihood import Categorical, Likelihood, make_likelihood

GivenLikelihood = str | Callable[[Tensor], Distribution] | None
"""A name, a callable from the outputs to a distribution, or None for that of the criterion."""

_MODULES: dict[type[nn.Module], str] = {
    nn.CrossEntropyLoss: "categorical",
    nn.BCEWithLogitsLoss: "bernoulli",
    nn.MSELoss: "gaussian",
}
_FUNCTIONS: dict[Callable[..., Tensor], str] = {
    functional.cross_entropy: "categorical",
    functional.binary_cross_entropy_with_logits: "bernoulli",
    functional.mse_loss: "gaussian",
}


def criterion_likelihood(criterion: Any) -> str | None:
    """Return the name of a criterion's likelihood; None where it is not certain.

    Weights and label smoothing leave it what it is. A subclass of a known module is what that is unless it has a
    `forward` of its own.
    """
    if isinstance(criterion, partial) and not criterion.args:
        return criterion_likelihood(criterion.func)
    for known, likelihood in _MODULES.items():
        if isinstance(criterion, known):
            own = type(criterion).forward is not known.forward or "forward" in vars(criterion)
            return None if own or type(criterion).__call__ is not nn.Module.__call__ else likelihood
    den = sys.modules.get("avl_plugins.den.loss")  # methods do not import each other
    if den is not None and criterion is den.one_vs_rest_loss:
        return "bernoulli"
    return next((likelihood for known, likelihood in _FUNCTIONS.items() if criterion is known), None)


def strategy_likelihood(strategy: Any, given: GivenLikelihood) -> Likelihood:
    """Return the likelihood that a strategy's Fisher is of: the one given, or else the one of its criterion.

    Raises:
        ValueError: none is given and the criterion's is not certain, or the one given contradicts the criterion.
    """
    criterion, name = _criterion(strategy)
    certain = criterion_likelihood(criterion)
    if given is None:
        if hasattr(strategy, "fisher_batches"):
            raise ValueError(
                f"likelihood: {type(strategy).__name__} has no criterion that says what its network's outputs mean: "
                "pass likelihood=policy (avl_plugins.rl.policy) for an actor-critic; for Q-learning 'gaussian', or "
                "'categorical' for a Boltzmann policy"
            )
        if certain is None:
            raise ValueError(
                f"likelihood: the criterion {name} does not say for certain of which p(y | x) the Fisher is: pass "
                "likelihood='categorical' (outputs are logits or log-probabilities of classes), 'bernoulli' (logits "
                "of yes or no), 'gaussian' (means of numbers), or a callable from the outputs to a "
                "torch.distributions.Distribution; importance='uniform' needs none"
            )
        given = certain
    elif isinstance(given, str) and certain not in (None, given):
        raise ValueError(
            f"likelihood={given!r} contradicts the criterion {name}, which is that of likelihood={certain!r}: leave "
            "likelihood out"
        )
    elif isinstance(given, str) and (isinstance(criterion, nn.BCELoss) or criterion is functional.binary_cross_entropy):
        raise ValueError(
            f"likelihood={given!r} contradicts the criterion {name}, which takes probabilities: leave the sigmoid out "
            "of the model and use BCEWithLogitsLoss, or pass the callable "
            "likelihood=lambda p: Independent(Bernoulli(probs=p), 1)"
        )
    ignored = _setting(criterion, "ignore_index")
    return Categorical(ignored) if given == "categorical" and isinstance(ignored, int) else make_likelihood(given)


def is_regression(strategy: Any, given: GivenLikelihood) -> bool:
    """Whether a strategy's targets are numbers, not classes, as far as criterion and likelihood say."""
    return (given or criterion_likelihood(_criterion(strategy)[0])) == "gaussian"


def sums_over_batch(strategy: Any) -> bool:
    """Whether a strategy's criterion says that it is a sum over the mini-batch, not a mean."""
    return _setting(_criterion(strategy)[0], "reduction") == "sum"


def _criterion(strategy: Any) -> tuple[Any, str]:
    """Return the criterion of a strategy and its name; None where its loss is made otherwise."""
    if getattr(type(strategy), "criterion", None) is not SupervisedProblem.criterion or "criterion" in vars(strategy):
        return None, f"{type(strategy).__name__}.criterion()"
    criterion = strategy._criterion
    described = criterion.func if isinstance(criterion, partial) else criterion
    return criterion, getattr(described, "__name__", type(described).__name__)


def _setting(criterion: Any, name: str) -> Any:
    return criterion.keywords.get(name) if isinstance(criterion, partial) else getattr(criterion, name, None)
