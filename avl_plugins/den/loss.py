"""One-vs-rest: a logit for each class, or one for a binary task, and the binary cross-entropy."""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

__all__ = ["one_vs_rest_loss", "one_vs_rest_targets"]


def one_vs_rest_targets(logits: Tensor, y: Tensor) -> Tensor:
    """Return what each logit (N, C) should say, 0 or 1: y itself for a single one, else whether y is the class.

    Raises:
        ValueError: If a single logit is to tell more than the classes 0 and 1, or a class has none.
    """
    outputs = logits.shape[1]
    if len(y) and int(y.max()) >= max(outputs, 2):
        raise ValueError(f"y: there is a class {int(y.max())}, and {outputs} logits tell {max(outputs, 2)} classes")
    targets = y[:, None] if outputs == 1 else one_hot(y, outputs)
    return targets.to(logits.dtype)


def one_vs_rest_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the binary cross-entropy of logits (N, C) and classes (N,), the mean over both; a `criterion`."""
    return binary_cross_entropy_with_logits(logits, one_vs_rest_targets(logits, y))


one_vs_rest_loss.likelihood = "bernoulli"  # type: ignore[attr-defined]
