"""What the Fisher would refuse after the training, refused at the first mini-batch."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.templates.problem_type import SupervisedProblem
from torch import Tensor
from torch.utils.data import Subset

from avl_plugins.data.tensors import batches_in_memory
from avl_plugins.ewc.criterion import takes_log_probabilities
from avl_plugins.ewc.evaluating import evaluating
from avl_plugins.ewc.likelihood import Categorical, Likelihood
from avl_plugins.ewc.samples import by_task, is_multi_task, parse, without_attributes
from avl_plugins.ewc.sums import outputs_of
from avl_plugins.tasks.boundaries import current_task
from avl_plugins.tasks.protocols import ActsInEnvironments

SAMPLES = 32
"""How many are looked at."""


def check_first_batch(strategy: Any, *, labels: str, likelihood: Likelihood, own_data: bool) -> None:
    """Look at what the model gets and gives in training, and at what the Fisher reads of the task's data.

    The model runs in eval mode, on some samples of the data, or of the mini-batch of an agent.

    Args:
        strategy: in `before_forward`.
        labels: of the Fisher.
        likelihood: of the Fisher.
        own_data: whether the Fisher is of data that the user gives, whose form the mini-batch does not show.

    Raises:
        TypeError: the model does not return one tensor with a row a sample.
        ValueError: outputs and targets do not fit the likelihood or each other, or the model is called otherwise in
            training than it is for the Fisher.
    """
    agent = isinstance(strategy, ActsInEnvironments)
    model, device = strategy.model, strategy.device
    with evaluating(model, device), torch.no_grad():
        if not agent and type(strategy).forward is not SupervisedProblem.forward:
            _check_forward(strategy, own_data)
        if agent:
            batch = (strategy.mbatch[0][:SAMPLES], None, strategy.mbatch[-1][:SAMPLES])
        elif not own_data:
            batch = _some(current_task(strategy).experiences[0])
        else:
            return
        for x, y, task in by_task(model, parse(model, batch), device):
            z = outputs_of(model, x, task)
            likelihood.check(z, y, labels)
            if isinstance(likelihood, Categorical) and takes_log_probabilities(strategy):
                _check_log_probabilities(z)


def _some(experience: Any) -> Any:
    """A batch from all over an experience's data, often sorted by class, as the Fisher reads it."""
    dataset = experience.dataset
    chosen = torch.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).long().tolist()
    subset = dataset.subset(chosen) if isinstance(dataset, AvalancheDataset) else Subset(dataset, chosen)
    batches = without_attributes(batches_in_memory(subset), task_labels=hasattr(experience, "task_labels"))
    return next(iter(batches))


def _check_forward(strategy: Any, own_data: bool) -> None:
    """Refuse a strategy whose own `forward` calls the model on more, or on something else, than the Fisher does."""
    calls: list[tuple[tuple, dict, Any]] = []
    hook = strategy.model.register_forward_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    try:
        output = strategy.forward()
    finally:
        hook.remove()
    own, allowed = f"{type(strategy).__name__}.forward()", 2 if is_multi_task(strategy.model) else 1
    for args, kwargs, returned in calls:
        inputs = [value for value in (*args, *kwargs.values()) if value is not None]
        if len(inputs) > allowed:
            raise ValueError(
                f"{own} calls the model with {len(inputs)} inputs, and EWC's Fisher would with "
                f"{'inputs and task labels' if allowed == 2 else 'one'}, silently without the others: let the model "
                "read all that it needs from the one tensor x"
            )
        if inputs and not own_data and not _same(inputs[0], strategy.mb_x):
            raise ValueError(
                f"{own} does not call the model on the mini-batch's inputs as they are, which EWC's Fisher would: "
                "change them in the model or in the data set's transforms, or pass fisher_data, a function that "
                "returns batches of what the model gets"
            )
        if isinstance(returned, Tensor) and isinstance(output, Tensor) and returned.numel() != output.numel():
            raise ValueError(
                f"{own} returns {tuple(output.shape)} where the model returns {tuple(returned.shape)}, of which EWC's "
                "Fisher would be: select outputs in the model, or pass a callable likelihood that does"
            )


def _check_log_probabilities(z: Tensor) -> None:
    if float(z.logsumexp(1).abs().max()) > 0.01:
        raise ValueError(
            "the criterion takes log-probabilities of classes, and the model's outputs are none: end it with "
            "nn.LogSoftmax(1), or use CrossEntropyLoss, which takes logits"
        )


def _same(a: Any, b: Tensor) -> bool:
    return a is b or (isinstance(a, Tensor) and a.shape == b.shape and bool((a == b).all()))
