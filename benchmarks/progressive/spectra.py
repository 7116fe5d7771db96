"""Progressive Networks, appendix B: sorted sensitivities as columns are added, and laterals pruned by them.

The paper sorts the Average Fisher Sensitivities of the maps of layer 2 in Atari nets of two, three and four columns
of 12 maps: with more columns the spectrum over source maps gets sparser, and the newest column matters less. It
proposes to prune lateral connections and does not try it.

What we do: convolutional columns of 12 and 12 maps and a fully connected layer, V as wide as the paper's, learn
variants of MNIST in turn: noisy, mirrored, grey, and last one that is mirrored upside down. After each column from the
second on the sensitivities of its task are sorted; after the last, the source maps of each depth are cut, the
least sensitive first, and in random order for comparison. Adapters of equation 2 ("mlp") and equation 1 ("linear").
Deviations: digits instead of games, and classes instead of actions; the new column's own maps count as in the
paper's AFS, with the total Fisher of the layer over columns as the divisor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.harness.experiment import Context, Experiment, ImageData, Row, Run
from benchmarks.report.table import mean_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("mlp", "linear")
VARIANTS = ("noisy", "hflip", "base", "vflip")
DEPTH = 1
"""The second convolution, as in the paper's Fig. 12."""
KEEP = (1.0, 0.75, 0.5, 0.25, 0.1, 0.05, 0.0)


@dataclass(frozen=True)
class Settings:
    """Four variants of MNIST, one column each."""

    data: ImageData = "mnist"
    """Data set: mnist or digits."""
    maps: tuple[int, int] = (12, 12)
    """Feature maps of the two convolutions of a column."""
    units: int = 64
    """Units of the fully connected layer."""
    reduction: float = 1.0
    """The adapter's projection is this many times narrower than the layer it reads."""
    alpha_init: float = 1.0
    """First value of the adapters' scalars alpha."""
    images: int = 10000
    """Training images of each variant."""
    epochs: int = 3
    """Epochs on each variant."""
    batch_size: int = 64
    """Images in a mini-batch."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    sensitivity_images: int = 1000
    """Training images on which sensitivities are measured."""


def measure(settings: Settings, arm: str, seed: int, context: Context) -> dict[str, Any]:
    """Spectra of two, three and four columns, and accuracy against lateral parameters."""
    import torch

    from avl_plugins import (
        InMemoryLoaderPlugin,
        Progressive,
        ProgressiveNetwork,
        afs_spectrum,
        average_fisher_sensitivity,
        effective_maps,
    )
    from avl_plugins.data.loading import batches_in_memory
    from benchmarks.data.digit_variants import soup
    from benchmarks.training.models import conv_trunk, optimizer
    from benchmarks.training.supervised import load_arrays, make_evaluator

    torch.manual_seed(seed)
    arrays = load_arrays(settings.data, context)
    benchmark = soup(arrays, [(variant, settings.images) for variant in VARIANTS], seed=seed)
    trunk = conv_trunk(1, arrays.x_train.shape[1], settings.maps, settings.units)
    net = ProgressiveNetwork(
        trunk,
        adapter=arm,  # type: ignore[arg-type]
        reduction=settings.reduction,
        alpha_init=settings.alpha_init,
    )
    strategy = Progressive(
        model=net,
        optimizer=optimizer("adam", net, lr=settings.lr),
        train_mb_size=settings.batch_size,
        train_epochs=settings.epochs,
        eval_mb_size=1000,
        device=context.device,
        plugins=[InMemoryLoaderPlugin()],
        evaluator=make_evaluator(context),
        cache_bytes=2**32,
    )
    spectra: dict[str, Any] = {}
    for label, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        context.progress(label + 1, len(VARIANTS), f"column {label + 1}")
        if label == 0:
            continue
        images = next(batches_in_memory(experience.dataset, settings.sensitivity_images))
        afs = average_fisher_sensitivity(net, [images], label)
        spectrum = afs_spectrum(afs, DEPTH)
        spectra[str(label + 1)] = {
            "source": [round(float(v), 5) for v in spectrum.source],
            "columns": [[round(float(v), 5) for v in own] for own in spectrum.columns],
            "effective": effective_maps(spectrum.source) / len(spectrum.source),
            "newest": float(afs.layers[DEPTH, -1]),
            "layers": [[round(float(v), 4) for v in row] for row in afs.layers],
        }
    test = list(batches_in_memory(benchmark.test_stream[label].dataset, 1000))
    return {"spectra": spectra, "pruning": _pruning(net, afs, test, label, seed)}


def _pruning(net: Any, afs: Any, test: Any, label: int, seed: int) -> dict[str, Any]:
    """Test accuracy and lateral parameters for each share of source maps kept, by sensitivity and at random."""
    from dataclasses import replace

    import torch

    from avl_plugins import pruning_curve

    device = next(net.parameters()).device

    def accuracy(forward: Any) -> float:
        right = sum(int((forward(x.to(device)).argmax(1) == y.to(device)).sum()) for x, y, *_ in test)
        return right / sum(len(y) for _, y, *_ in test)

    generator = torch.Generator().manual_seed(seed)
    at_random = replace(
        afs, fisher={p: torch.rand(len(f), generator=generator).double() for p, f in afs.fisher.items()}
    )
    return {
        name: [
            {"keep": p.keep, "kept": p.kept, "total": p.total, "accuracy": round(p.score, 4)}
            for p in pruning_curve(net, label, by, accuracy, keep=KEEP)
        ]
        for name, by in (("sensitivity", afs), ("random", at_random))
    }


def effective(run: Run, columns: int) -> float:
    """Effective share of source maps with so many columns: 1 where all are used alike."""
    return run.measurements["spectra"][str(columns)]["effective"]


def newest(run: Run, columns: int) -> float:
    """AFS of the newest of so many columns."""
    return run.measurements["spectra"][str(columns)]["newest"]


def loss_at(run: Run, keep: float, by: str = "sensitivity") -> float:
    """Accuracy lost when this share of source maps is kept."""
    points = {point["keep"]: point["accuracy"] for point in run.measurements["pruning"][by]}
    return points[1.0] - points[keep]


def rows(runs: Sequence[Run]) -> list[Row]:
    """Sparseness by the number of columns, and what pruning costs."""
    table = []
    for arm in ARMS:
        table += [
            mean_row(
                runs,
                arm,
                "effective share of source maps, 4 columns - 2 columns",
                value=lambda run: effective(run, 4) - effective(run, 2),
                target=("<=", 0.0),
                note="paper: sparser with more columns",
            ),
            mean_row(
                runs,
                arm,
                "AFS of the newest column, 4 columns - 2 columns",
                value=lambda run: newest(run, 4) - newest(run, 2),
                target=("<=", 0.0),
                note="paper: less important with more columns",
            ),
            mean_row(
                runs,
                arm,
                "accuracy lost at 25 % of source maps, least sensitive cut - random cut",
                value=lambda run: loss_at(run, 0.25) - loss_at(run, 0.25, "random"),
                target=("<=", 0.0),
            ),
        ]
    for arm in ARMS:
        for columns in (2, 3, 4):
            table.append(
                mean_row(
                    runs,
                    arm,
                    f"effective share of source maps, {columns} columns",
                    value=partial(effective, columns=columns),
                )
            )
            table.append(
                mean_row(runs, arm, f"AFS of the newest of {columns} columns", value=partial(newest, columns=columns))
            )
        for keep in KEEP[1:]:
            table.append(
                mean_row(runs, arm, f"accuracy lost at {keep:.0%} of source maps", value=partial(loss_at, keep=keep))
            )
    return table


def figure(runs: Sequence[Run]) -> Figure:
    """Sorted sensitivities by the number of columns, and accuracy against lateral parameters kept."""
    import numpy as np
    from matplotlib.figure import Figure

    fig = Figure(figsize=(10, 6), layout="constrained")
    panels = fig.subplots(len(ARMS), 3)
    for (left, middle, right), arm in zip(panels, ARMS, strict=True):
        own = [run for run in runs if run.arm == arm]
        for columns in (2, 3, 4):
            found = [run.measurements["spectra"][str(columns)] for run in own]
            if not found:
                continue
            source = np.array([spectrum["source"] for spectrum in found]).mean(0)
            newest_column = np.array([spectrum["columns"][-1] for spectrum in found]).mean(0)
            left.plot(np.arange(1, len(source) + 1), source, "-o", ms=3, label=f"{columns} columns")
            middle.plot(np.arange(1, len(newest_column) + 1), newest_column, "-o", ms=3, label=f"{columns} columns")
        for name, style, text in (("sensitivity", "-o", "by sensitivity"), ("random", "--x", "at random")):
            curves = [run.measurements["pruning"][name] for run in own]
            if curves:
                kept = np.array([[p["kept"] / p["total"] for p in curve] for curve in curves]).mean(0)
                accuracy = np.array([[p["accuracy"] for p in curve] for curve in curves]).mean(0)
                right.plot(kept, accuracy, style, ms=4, label=f"cut {text}")
        left.set(ylabel=f"{arm}: AFS", xlabel="source maps, sorted", title="source maps of conv 2")
        middle.set(xlabel="maps, sorted", title="newest column's maps of conv 2")
        right.set(xlabel="lateral parameters kept", ylabel="test accuracy", title="pruning, 4 columns")
        for panel in (left, middle, right):
            panel.legend(fontsize="small")
    return fig


EXPERIMENT = Experiment(
    name="progressive-spectra",
    title="Progressive Networks, appendix B: spectra of sensitivity, and pruning by it",
    data="mnist",
    arms=ARMS,
    scales={
        "smoke": Settings(data="digits", maps=(4, 4), units=8, images=100, epochs=1, sensitivity_images=50),
        "cpu": Settings(),
        "paper": Settings(images=14000, epochs=20),
    },
    minutes={"smoke": 0.1, "cpu": 4, "paper": 40},
    measure=measure,
    rows=rows,
    figure=figure,
)
