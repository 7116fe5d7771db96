"""Slow, obviously right versions: one sample and one term at a time, in float64."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def fisher_reference(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    labels: str = "exact",
    likelihood: str | Callable[[Tensor, Tensor], Tensor] = "categorical",
    task: int | None = None,
    uniforms: Tensor | None = None,
) -> dict[str, Tensor]:
    """mean_n E_y [(d log p(y | x_n) / d theta)^2], by parameter name, from a loop over single samples.

    The model is copied, made float64 and put in eval mode. `labels`:
    "exact"     expectation under the model (categorical, Bernoulli: outcomes enumerated; Gaussian: closed form),
    "sampled"   (categorical) class = the first whose cumulative probability exceeds `uniforms[n]`,
    "empirical" the given `y`.
    `task` is passed as `model(x, task)`; a callable `likelihood(output, y)` is log p of one sample (empirical only).
    """
    model = copy.deepcopy(model).double().eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def add_squared_gradient(scalar: Tensor, weight: float) -> None:
        grads = torch.autograd.grad(scalar, list(parameters.values()), retain_graph=True, allow_unused=True)
        for name, grad in zip(parameters, grads, strict=True):
            if grad is not None:
                fisher[name] += weight * grad**2

    for n in range(len(x)):
        sample = x[n : n + 1].double() if x.is_floating_point() else x[n : n + 1]
        output = (model(sample) if task is None else model(sample, task))[0]
        if labels == "empirical":
            assert y is not None
            add_squared_gradient(_log_p(output, y[n], likelihood), 1.0)
        elif labels == "sampled" and likelihood == "categorical":
            assert uniforms is not None
            cumulative = output.detach().softmax(-1).cumsum(-1)
            label = (cumulative <= uniforms[n].double()).sum().clamp(max=len(output) - 1)
            add_squared_gradient(_log_p(output, label, likelihood), 1.0)
        elif labels == "exact" and likelihood == "categorical":
            for label, probability in enumerate(output.detach().softmax(-1).tolist()):
                add_squared_gradient(_log_p(output, torch.tensor(label), likelihood), probability)
        elif labels == "exact" and likelihood == "bernoulli":
            for bits in range(2 ** output.numel()):
                outcome = torch.tensor([(bits >> k) & 1 for k in range(output.numel())]).view_as(output)
                log_p = _log_p(output, outcome, likelihood)
                add_squared_gradient(log_p, float(log_p.detach().exp()))
        elif labels == "exact" and likelihood == "gaussian":
            for component in output.flatten():  # E[(sum_k e_k J_k)^2] = sum_k J_k^2 for unit normal e
                add_squared_gradient(component, 1.0)
        else:
            raise NotImplementedError(f"labels={labels!r}, likelihood={likelihood!r}")
    return {name: f / len(x) for name, f in fisher.items()}


def _log_p(output: Tensor, y: Tensor, likelihood: str | Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    if callable(likelihood):
        return likelihood(output, y)
    if likelihood == "categorical":
        return output.log_softmax(-1)[int(y)]
    if likelihood == "bernoulli":
        return (y * output.sigmoid().log() + (1 - y) * (-output).sigmoid().log()).sum()
    if likelihood == "gaussian":
        return -0.5 * ((y - output) ** 2).sum()
    raise NotImplementedError(likelihood)


class QuadraticReference:
    """sum_t lambda_t/2 F_t (theta - theta_t)^2 with every F_t and theta_t kept and every term written."""

    def __init__(self) -> None:
        self.terms: list[tuple[float, dict[str, Tensor], dict[str, Tensor]]] = []

    def add(self, importances: dict[str, Tensor], anchor: dict[str, Tensor], scale: float = 1.0) -> None:
        copies = ({k: v.detach().clone() for k, v in d.items()} for d in (importances, anchor))
        self.terms.append((scale, *copies))  # type: ignore[arg-type]

    def value(self, parameters: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for scale, importances, anchor in self.terms:
            for name, importance in importances.items():
                old_region = tuple(slice(0, n) for n in importance.shape)
                difference = parameters[name][old_region] - anchor[name]
                total = total + 0.5 * scale * (importance * difference**2).sum()
        return total


def train_reference(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    penalty: QuadraticReference,
) -> list[float]:
    """One pass of plain training on cross entropy plus the explicit penalty; returns each step's loss."""
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y) + penalty.value(dict(model.named_parameters()))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
