r"""The Fisher information matrix of a network, block by block as Kronecker products.

For a layer with weights W, inputs a (with a 1 appended for the bias) and gradients g of log p(y | x) at its outputs,
the Fisher of W, row after row, is E[g g^T (x) a a^T]. Martens & Grosse 2015 (arXiv:1503.05671) take the two apart,

    F  ~  G (x) A,      A = E_n[a a^T],   G = E_n E_y[g g^T],

which is exact for one sample, and where g does not depend on a (linear networks). Blocks between layers are left out.
Unlike the diagonal it keeps how a layer's weights act together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from avl_plugins.ewc.factors import FACTORED, FactorSums, LayerSums
from avl_plugins.ewc.fisher import check_finite_fisher, sum_over_samples
from avl_plugins.ewc.kronecker_block import KroneckerBlock
from avl_plugins.ewc.subset import Selectable
from avl_plugins.tasks.arguments import check_choice, check_number

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class KroneckerFisher:
    """A Fisher information matrix without the blocks between layers.

    Attributes:
        blocks: the Kronecker-factored blocks by layer name.
        rest: the diagonal of all other parameters by their name, each of the parameter's shape.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        >>> fisher = kronecker_fisher(model, [(torch.randn(20, 3), torch.arange(20) % 4)])
        >>> list(fisher.blocks), list(fisher.rest)
        (['0'], ['1.weight', '1.bias'])
        >>> list(fisher.diagonal())
        ['0.weight', '0.bias', '1.weight', '1.bias']
    """

    blocks: dict[str, KroneckerBlock]
    rest: dict[str, Tensor]

    def diagonal(self) -> dict[str, Tensor]:
        """The diagonal by parameter name, each of the parameter's shape."""
        return {n: f for block in self.blocks.values() for n, f in block.diagonal().items()} | self.rest

    def restricted(self, names: Collection[str]) -> KroneckerFisher:
        """The Fisher of those of the parameters that are in `names`."""
        kept = {layer: block for layer, block in self.blocks.items() if any(n in names for n in block.shapes)}
        return KroneckerFisher(
            {layer: block.restricted(names) for layer, block in kept.items()},
            {n: f for n, f in self.rest.items() if n in names},
        )

    def scaled(self, scale: float) -> KroneckerFisher:
        """The Fisher times a number >= 0."""
        return KroneckerFisher(
            {layer: block.scaled(scale) for layer, block in self.blocks.items()},
            {n: f * scale for n, f in self.rest.items()},
        )

    def damped(self, damping: float) -> KroneckerFisher:
        """The Fisher with a number >= 0 added to its diagonal; see `kronecker_fisher`."""
        return KroneckerFisher(
            {layer: block.damped(damping) for layer, block in self.blocks.items()},
            {n: f + damping if f.any() else f for n, f in self.rest.items()},
        )

    def to(self, parameters: Mapping[str, Tensor]) -> KroneckerFisher:
        """The same in the parameters' dtypes and on their devices."""
        return KroneckerFisher(
            {layer: block.to(parameters[next(iter(block.shapes))]) for layer, block in self.blocks.items()},
            {n: f.to(parameters[n]) for n, f in self.rest.items()},
        )


def kronecker_fisher(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    labels: Literal["exact", "sampled", "empirical"] = "exact",
    likelihood: Literal["categorical", "bernoulli", "gaussian"] | Callable[[Tensor], Distribution] = "categorical",
    max_samples: int | None = None,
    generator: torch.Generator | None = None,
    damping: float = 0.0,
) -> KroneckerFisher:
    r"""Kronecker factors of every Linear, Conv1d and Conv2d layer, and the diagonal of all other parameters.

    Where a layer's weights are used at several positions of a sample (convolutions, Linear on sequences) it is the
    expand setting (Grosse & Martens 2016, arXiv:1602.01407; Eschenhagen et al. 2023, arXiv:2311.00636): positions
    count as samples, A is the mean over them and G their sum. Each group of a convolution has factors of its own. In
    a mini-batch with several tasks, A is the mean over the samples that go through the layer, G over all of them.

    A layer that is called more than once in a forward pass, or whose weights are also used elsewhere, gets its diagonal
    instead, as normalisations, embeddings and layers of other types do, from the same passes: one forward and, with C
    classes, at most C - 1 backward. What is left as it was, and of what the result is independent, is as in
    `diagonal_fisher`.

    Args:
        model: see `diagonal_fisher`, as for all that follow.
        batches: likewise.
        labels: "exact", "sampled" or "empirical".
        likelihood: "categorical", "bernoulli", "gaussian" or a callable.
        max_samples: size of a uniformly random subset, None for all.
        generator: for sampled labels and the subset.
        damping: delta >= 0, added to the Fisher's diagonal where the Fisher is not zero; in a block by its factors,
            (G + sqrt(delta)/pi I) (x) (A + pi sqrt(delta) I) with pi^2 the ratio of the mean eigenvalues of A and G
            (Martens & Grosse 2015, sec. 6.3).

    Returns:
        Every parameter that requires gradients is in one block or in `rest`; there it is zero if no output depends on
        it.

    Raises:
        ValueError: as in `diagonal_fisher`; or a layer turns out to be called more than once in a later batch, and
            `batches` cannot be read again.
        TypeError: as in `diagonal_fisher`.

    Example:
        >>> model, x = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0]])
        >>> _ = nn.init.zeros_(model.weight)
        >>> block = kronecker_fisher(model, [(x, torch.tensor([1]))]).blocks[""]  # the model itself is the layer
        >>> block.inputs.tolist(), block.outputs.tolist()
        ([[[1.0, 0.0], [0.0, 0.0]]], [[[0.25, -0.25], [-0.25, 0.25]]])
    """
    check_choice("labels", labels, ("exact", "sampled", "empirical"))
    check_number("damping", damping, low=0)
    if generator is None:
        generator = torch.Generator().manual_seed(torch.initial_seed())
    start, apart = generator.get_state(), set[str]()
    while True:
        layers: dict[str, LayerSums] = {}
        totals, count = sum_over_samples(
            model,
            batches.only(torch.arange(batches.n_samples)) if isinstance(batches, Selectable) else batches,
            partial(FactorSums, layers=layers, apart=apart),
            labels=labels,
            likelihood=likelihood,
            max_samples=max_samples,
            generator=generator,
        )
        mixed = layers.keys() & apart
        if not mixed:
            break
        if isinstance(batches, Iterator) and not isinstance(batches, Selectable):
            raise ValueError(
                f"layers {sorted(mixed)} are called once for some samples and otherwise for others, so they have no "
                "Kronecker factors, and batches cannot be read again for their diagonal: pass a list or a DataLoader"
            )
        log.info("reading the data again: layers %s are not called once for all samples", sorted(mixed))
        generator.set_state(start)
    blocks = {name: sums.block(count) for name, sums in layers.items() if sums.positions}
    for block in blocks.values():
        for factor in (block.inputs, block.outputs):
            check_finite_fisher({next(iter(block.shapes)): factor})
    blocks = {name: block for name, block in blocks.items() if block.inputs.any() and block.outputs.any()}
    factored = {n for block in blocks.values() for n in block.shapes}
    rest = {n: total / count for n, total in totals.items() if n not in factored}
    check_finite_fisher(rest)
    layers_of_rest = {n.rpartition(".")[0] for n, f in rest.items() if f.any()}
    without = [n for n in layers_of_rest if type(model.get_submodule(n)) in FACTORED]
    if without:
        log.info(
            "layers %s get their diagonal instead of Kronecker factors: they are not called exactly once in a forward "
            "pass, with a row a sample, or their weights are used elsewhere, too",
            sorted(without),
        )
    fisher = KroneckerFisher(blocks, rest).damped(damping) if damping else KroneckerFisher(blocks, rest)
    return fisher.to(dict(model.named_parameters()))
