"""The likelihood that a strategy's Fisher is of: the one given, or else the one that its criterion stands for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from avalanche.training.templates.problem_type import SupervisedProblem
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional

from avl_plugins.ewc.likelihood import Categorical, Likelihood, make_likelihood
from avl_plugins.tasks.likelihood import likelihood_of
from avl_plugins.tasks.protocols import ActsInEnvironments

GivenLikelihood = str | Callable[[Tensor], Distribution] | None
"""A name, a callable from the outputs to a distribution, or None for that of the criterion."""


def strategy_likelihood(strategy: Any, given: GivenLikelihood) -> Likelihood:
    """Return the likelihood that a strategy's Fisher is of.

    Raises:
        ValueError: none is given and the criterion's is not certain, or the one given contradicts the criterion.
    """
    if isinstance(strategy, ActsInEnvironments):
        return _agents_likelihood(strategy, given)
    criterion, name = criterion_of(strategy), _criterion_name(strategy)
    certain = likelihood_of(criterion)
    if given is None and certain is None:
        raise ValueError(
            f"likelihood: the criterion {name} does not say for certain of which p(y | x) the Fisher is: pass "
            "likelihood='categorical' (outputs are logits or log-probabilities of classes), 'bernoulli' (logits of yes "
            "or no), 'gaussian' (means of numbers), or a callable from the outputs to a "
            "torch.distributions.Distribution; importance='uniform' needs none"
        )
    if isinstance(given, str) and certain not in (None, given):
        raise ValueError(
            f"likelihood={given!r} contradicts the criterion {name}, which is that of likelihood={certain!r}: leave "
            "likelihood out"
        )
    if isinstance(given, str) and _is(criterion, nn.BCELoss, functional.binary_cross_entropy):
        raise ValueError(
            f"likelihood={given!r} contradicts the criterion {name}, which takes probabilities: leave the sigmoid out "
            "of the model and use BCEWithLogitsLoss, or pass the callable "
            "likelihood=lambda p: Independent(Bernoulli(probs=p), 1)"
        )
    chosen = make_likelihood(given or certain)  # type: ignore[arg-type]
    ignored = _setting(criterion, "ignore_index")
    return Categorical(ignored) if isinstance(chosen, Categorical) and isinstance(ignored, int) else chosen


def takes_log_probabilities(strategy: Any) -> bool:
    """Whether a strategy's criterion takes the model's outputs for log-probabilities."""
    return _is(criterion_of(strategy), nn.NLLLoss, functional.nll_loss)


def is_regression(strategy: Any, given: GivenLikelihood) -> bool:
    """Whether a strategy's targets are numbers, not classes, as far as likelihood and criterion say."""
    return (given or likelihood_of(criterion_of(strategy))) == "gaussian"


def sums_over_batch(strategy: Any) -> bool:
    """Whether a strategy's criterion says that it is a sum over the mini-batch, not a mean."""
    return _setting(criterion_of(strategy), "reduction") == "sum"


def criterion_of(strategy: Any) -> Any:
    """Return the criterion that a strategy's loss is; None where it has a method of its own for that."""
    own = getattr(type(strategy), "criterion", None) is not SupervisedProblem.criterion
    return None if own or "criterion" in vars(strategy) else strategy._criterion


def _agents_likelihood(strategy: Any, given: GivenLikelihood) -> Likelihood:
    name, default = type(strategy).__name__, strategy.fisher_likelihood()
    if given is None and default is None:
        raise ValueError(
            f"likelihood must be given for {name}, whose outputs may be taken for the means of normal distributions "
            "('gaussian') or for logits ('categorical'), got None"
        )
    if isinstance(given, str) and default is not None:
        raise ValueError(
            f"likelihood={given!r} contradicts {name}, not all of whose outputs say what to do: leave likelihood out, "
            "or pass a callable that takes its part of them"
        )
    return make_likelihood(default if given is None else given)


def _criterion_name(strategy: Any) -> str:
    criterion = criterion_of(strategy)
    if criterion is None:
        return f"{type(strategy).__name__}.criterion()"
    while isinstance(criterion, partial):
        criterion = criterion.func
    return getattr(criterion, "__name__", type(criterion).__name__)


def _is(criterion: Any, module: type[nn.Module], function: Callable) -> bool:
    while isinstance(criterion, partial):
        criterion = criterion.func
    return isinstance(criterion, module) or criterion is function


def _setting(criterion: Any, name: str) -> Any:
    while isinstance(criterion, partial):
        if name in criterion.keywords:
            return criterion.keywords[name]
        criterion = criterion.func
    return getattr(criterion, name, None)
