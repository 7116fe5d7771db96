"""One-vs-rest: a logit for each class, or one for a binary task, and the binary cross-entropy; a task's mean loss."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from avl_plugins.data.loading import batches_in_memory

__all__ = ["mean_loss", "one_vs_rest_loss", "one_vs_rest_targets"]


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
    """Return the binary cross-entropy of logits (N, C) and classes (N,), the mean over both; a `criterion`.

    Example:
        >>> import torch
        >>> from avl_plugins.den import one_vs_rest_loss
        >>> one_vs_rest_loss(torch.zeros(4, 3), torch.tensor([0, 1, 2, 2]))  # log 2, as every logit says one half
        tensor(0.6931)
    """
    return binary_cross_entropy_with_logits(logits, one_vs_rest_targets(logits, y))


one_vs_rest_loss.likelihood = "bernoulli"  # type: ignore[attr-defined]


@torch.no_grad()
def mean_loss(strategy: Any, label: int, dataset: Any, batch_size: int = 1000) -> float:
    """Return the strategy's criterion on a task's data, in evaluation mode; modes are left as they were."""
    network, total, count = strategy.model, 0.0, 0
    training = network.training
    network.eval()
    for x, y, *_ in batches_in_memory(dataset, batch_size):
        logits = network(x.to(strategy.device), label)
        total += float(strategy._criterion(logits, y.to(strategy.device))) * len(x)
        count += len(x)
    network.train(training)
    return total / count
