"""Weight noise along the Fisher, as in Fig. 3C of the EWC paper (arXiv:1612.00796): what its experiments share.

The noise is Gaussian, with a new draw whenever the network is used. Three covariances: uniform; the inverse Fisher
(F + damping)^-1; uniform within the null space of the Fisher. The paper does not say how they are scaled, nor the
damping and the null space's threshold. Here the noise's standard deviation is that of a weight whose Fisher is zero:
sigma^2 I, the same within the null space, and sigma^2 damping (F + damping)^-1. The damping is in units of the mean
Fisher, and the weights whose Fisher is below it are the null space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

from benchmarks.harness.experiment import Row, Run
from benchmarks.harness.papers import in_paper, paper
from benchmarks.report.table import mean_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COVARIANCES = ("uniform", "inverse-fisher", "null-space")


def noise_variance(covariance: str, fisher: Any, damping: float) -> Any:
    """Variance of each weight's noise for standard deviation 1: 1 where the Fisher is zero."""
    import torch

    damping = damping * fisher.mean()
    if covariance == "uniform":
        return torch.ones_like(fisher)
    if covariance == "inverse-fisher":
        return damping / (fisher + damping)
    return (fisher < damping).to(fisher)


class NoisyWeights:
    """The weights of a network, to which noise is added, always to the ones that it was made with.

    Args:
        model: The network.
        variance: Of each weight's noise for standard deviation 1, in the order of `model.parameters()`.
        seed: Of the draws.
    """

    def __init__(self, model: Any, variance: Any, seed: int) -> None:
        import torch
        from torch.nn.utils import parameters_to_vector

        self.model = model
        self.weights = parameters_to_vector(model.parameters()).detach()
        self.deviation = variance.sqrt()
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, noise: float) -> None:
        """Give the network its weights with a new draw of noise of this standard deviation."""
        import torch

        draw = torch.randn(len(self.weights), generator=self.generator).to(self.weights) * self.deviation * noise
        self._set(self.weights + draw)

    def restore(self) -> None:
        """Give the network its own weights."""
        self._set(self.weights)

    def _set(self, weights: Any) -> None:
        import torch
        from torch.nn.utils import vector_to_parameters

        with torch.no_grad():
            vector_to_parameters(weights.clone(), self.model.parameters())


def half(noises: Sequence[float], scores: Sequence[float]) -> float:
    """Noise at which the score is half of the unperturbed one, by interpolation over log noise.

    Raises ValueError where no such noise is among `noises`.
    """
    for k in range(1, len(scores)):
        if scores[k] < 0.5 <= scores[k - 1]:
            share = (scores[k - 1] - 0.5) / (scores[k - 1] - scores[k])
            return float(noises[k - 1] * (noises[k] / noises[k - 1]) ** share)
    raise ValueError(
        f"the score does not fall to half between noise {noises[0]:g} and {noises[-1]:g}; raise highest_noise, or "
        f"lower lowest_noise if the first score ({scores[0]:g}) is below half already"
    )


def noise_rows(runs: Sequence[Run], note: str) -> list[Row]:
    """Noise that halves the score, and how much more of it the Fisher's covariances allow.

    Args:
        runs: With a covariance as arm, and measurements `half` and `half_norm`, the root mean variance over all weights
            in place of the standard deviation; not a number where the score does not fall to half.
        note: Beside the first rows.
    """
    numbers = paper("ewc")["fig3c"]
    table = [
        mean_row(
            runs,
            arm,
            "noise that halves the score",
            value=lambda run: run.measurements["half"],
            paper=in_paper(numbers, f"half_{arm.replace('-', '_')}"),
            note=note,
        )
        for arm in COVARIANCES
    ]
    uniform = {run.seed: run.measurements["half"] for run in runs if run.arm == "uniform"}
    comparable = [run for run in runs if run.seed in uniform] or runs
    for key, text in (
        ("half", "half-score noise / uniform's"),
        ("half_norm", "half-score noise / uniform's, at equal norm"),
    ):
        table += [
            mean_row(
                comparable,
                arm,
                text,
                value=partial(relative, key=key, to=uniform),
                paper=numbers["half_ratio"] if key == "half" else None,
                target=(">=", 3.0) if (arm, key) == ("inverse-fisher", "half") else None,
            )
            for arm in COVARIANCES[1:]
        ]
    return table


def relative(run: Run, key: str, to: Mapping[int, float]) -> float:
    """Noise that the run tolerates relative to what the run of the same seed in `to` does."""
    return run.measurements[key] / to.get(run.seed, math.nan)


def noise_figure(runs: Sequence[Run], title: str) -> Figure:
    """Score over noise: measured on the left, the paper's agent on the right."""
    import numpy as np
    from matplotlib.figure import Figure

    numbers = paper("ewc")["fig3c"]
    fig = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = fig.subplots(1, 2, sharey=True)
    for arm, colour in zip(COVARIANCES, cycle(("tab:blue", "tab:red", "tab:green", "tab:orange")), strict=False):
        own = [run.measurements for run in runs if run.arm == arm]
        if own:
            left.semilogx(own[0]["noise"], np.mean([m["score"] for m in own], 0), "-o", ms=3, color=colour, label=arm)
        if (theirs := in_paper(numbers, arm.replace("-", "_"))) is not None:
            right.semilogx(numbers["noise"], theirs, "--x", color=colour, label=arm)
    for panel, text in ((left, f"{title}, measured"), (right, "Breakout agent, paper")):
        panel.axhline(0.5, color="grey", lw=0.5)
        panel.set(xlabel="standard deviation of the weight noise", title=text)
    left.set(ylabel="score relative to unperturbed")
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize="small")
    return fig
