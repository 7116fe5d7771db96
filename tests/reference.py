"""Slow, obviously right versions: one sample and one term at a time, in float64."""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

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
    for n in range(len(x)):
        for scalar, weight in _log_probabilities(model, x, y, n, labels, likelihood, task, uniforms):
            grads = torch.autograd.grad(scalar, list(parameters.values()), retain_graph=True, allow_unused=True)
            for name, grad in zip(parameters, grads, strict=True):
                if grad is not None:
                    fisher[name] += weight * grad**2
    return {name: f / len(x) for name, f in fisher.items()}


def block_reference(model: nn.Module, layer: str, x: Tensor, y: Tensor | None = None, **options: Any) -> Tensor:
    """The Fisher's block of one layer, dense: mean_n E_y of the gradient's outer product with itself.

    The gradient is that of the layer's parameters side by side, an output a row (weight, then bias), row after row.
    Options as in `fisher_reference`.
    """
    model = copy.deepcopy(model).double().eval()
    parameters = [p for p in model.get_submodule(layer).parameters() if p.requires_grad]
    options = {"labels": "exact", "likelihood": "categorical", "task": None, "uniforms": None} | options
    size = sum(p.numel() for p in parameters)
    block = torch.zeros(size, size, dtype=torch.float64)
    for n in range(len(x)):
        for scalar, weight in _log_probabilities(model, x, y, n, **options):
            grads = torch.autograd.grad(scalar, parameters, retain_graph=True)
            row = torch.cat([g.reshape(len(g), -1) for g in grads], 1).flatten()
            block += weight * torch.outer(row, row)
    return block / len(x)


def factors_reference(
    model: nn.Module, layer: str, x: Tensor, y: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """A and G of one layer that is called once, sample by sample and position by position, (groups, ..., ...).

    A is the mean over samples and positions, G the mean over samples of the sum over positions. Options as in
    `fisher_reference`.
    """
    model = copy.deepcopy(model).double().eval()
    options = {"labels": "exact", "likelihood": "categorical", "task": None, "uniforms": None} | options
    module = model.get_submodule(layer)
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        seen[:] = [args[0].detach(), output]
        return output.clone()

    module.register_forward_hook(hook)
    inputs: Any = 0.0
    outputs: Any = 0.0
    positions = 0
    for n in range(len(x)):
        for scalar, weight in _log_probabilities(model, x, y, n, **options):
            gradient = torch.autograd.grad(scalar, seen[1], retain_graph=True)[0]
            g = torch.stack([g for _, g in _positions(module, seen[0], gradient)])  # (positions, groups, outputs)
            outputs = outputs + weight * torch.einsum("tgo,tgp->gop", g, g)
        for a, _ in _positions(module, seen[0], seen[1].detach()):  # (groups, inputs)
            ones = a.new_ones(len(a), 1)
            a = torch.cat([part for name, part in (("weight", a), ("bias", ones)) if name in trained], 1)
            inputs = inputs + torch.einsum("gi,gj->gij", a, a)
            positions += 1
    return inputs / positions, outputs / len(x)


def _positions(module: Any, x: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For one sample: what each position's outputs are computed from, and the entries of `out` there."""
    if isinstance(module, nn.Linear):
        yield from zip(x.reshape(-1, 1, x.shape[-1]), out.reshape(-1, 1, out.shape[-1]), strict=True)
        return
    sizes = list(zip(module.kernel_size, module.stride, module.dilation, strict=True))
    before_and_after: list[int] = []
    for d, (kernel, _, dilation) in reversed(list(enumerate(sizes))):
        total = dilation * (kernel - 1)
        same = [total // 2, total - total // 2]
        before_and_after += same if module.padding == "same" else [module.padding[d]] * 2
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = nn.functional.pad(x, before_and_after, mode=mode)[0].unflatten(0, (module.groups, -1))
    out = out[0].unflatten(0, (module.groups, -1))
    for place in itertools.product(*map(range, out.shape[2:])):
        patch = tuple(
            slice(p * stride, p * stride + dilation * (kernel - 1) + 1, dilation)
            for p, (kernel, stride, dilation) in zip(place, sizes, strict=True)
        )
        yield x[(..., *patch)].flatten(1), out[(..., *place)]


def _log_probabilities(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None,
    n: int,
    labels: str,
    likelihood: str | Callable[[Tensor, Tensor], Tensor],
    task: int | None,
    uniforms: Tensor | None,
) -> Iterator[tuple[Tensor, float]]:
    """The scalars whose gradients' squares, so weighted, add up to a sample's Fisher."""
    sample = x[n : n + 1].double() if x.is_floating_point() else x[n : n + 1]
    output = (model(sample) if task is None else model(sample, task))[0]
    if labels == "empirical":
        assert y is not None
        yield _log_p(output, y[n], likelihood), 1.0
    elif labels == "sampled" and likelihood == "categorical":
        assert uniforms is not None
        cumulative = output.detach().softmax(-1).cumsum(-1)
        label = (cumulative <= uniforms[n].double()).sum().clamp(max=len(output) - 1)
        yield _log_p(output, label, likelihood), 1.0
    elif labels == "exact" and likelihood == "categorical":
        for label, probability in enumerate(output.detach().softmax(-1).tolist()):
            yield _log_p(output, torch.tensor(label), likelihood), probability
    elif labels == "exact" and likelihood == "bernoulli":
        for bits in range(2 ** output.numel()):
            outcome = torch.tensor([(bits >> k) & 1 for k in range(output.numel())]).view_as(output)
            log_p = _log_p(output, outcome, likelihood)
            yield log_p, float(log_p.detach().exp())
    elif labels == "exact" and likelihood == "gaussian":
        for component in output.flatten():  # E[(sum_k e_k J_k)^2] = sum_k J_k^2 for unit normal e
            yield component, 1.0
    else:
        raise NotImplementedError(f"labels={labels!r}, likelihood={likelihood!r}")


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
