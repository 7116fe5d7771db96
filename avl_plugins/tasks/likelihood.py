"""Which likelihood a loss function is the negative logarithm of, where that is certain."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch import nn
from torch.nn import functional

__all__ = ["LIKELIHOODS", "Likelihood", "likelihood_of"]

Likelihood = Literal["categorical", "bernoulli", "gaussian"]
LIKELIHOODS: tuple[Likelihood, ...] = ("categorical", "bernoulli", "gaussian")

_MODULES: dict[type[nn.Module], Likelihood] = {
    nn.CrossEntropyLoss: "categorical",
    nn.NLLLoss: "categorical",  # of log-probabilities, which are logits whose softmax is the probabilities
    nn.BCEWithLogitsLoss: "bernoulli",
    nn.MSELoss: "gaussian",
}
_FUNCTIONS: dict[Any, Likelihood] = {
    functional.cross_entropy: "categorical",
    functional.nll_loss: "categorical",
    functional.binary_cross_entropy_with_logits: "bernoulli",
    functional.mse_loss: "gaussian",
}


def likelihood_of(criterion: Any) -> Likelihood | None:
    """Return the likelihood of a model's outputs under which a criterion is -log p(y | outputs), None if not certain.

    PyTorch's cross-entropy is "categorical", its binary cross-entropy of logits "bernoulli", and its squared error
    "gaussian", as modules, functions or partial functions, whatever their weights are. A criterion of one's own says it
    in an attribute `likelihood`, as `one_vs_rest_loss` does.

    Args:
        criterion: (outputs, targets) -> loss.
    """
    while isinstance(criterion, partial):
        if criterion.args:  # it is not called with outputs and targets
            return None
        criterion = criterion.func
    own = getattr(criterion, "likelihood", None)
    if own in LIKELIHOODS:
        return own
    for kind, likelihood in _MODULES.items():  # with a forward of its own, a subclass or an instance may be any loss
        if isinstance(criterion, kind) and type(criterion).forward is kind.forward and "forward" not in vars(criterion):
            return likelihood
    return next((likelihood for function, likelihood in _FUNCTIONS.items() if criterion is function), None)
