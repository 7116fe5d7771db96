"""The figure of sensitivities: which layers of which columns a task relies on (Rusu et al. 2016, fig. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from avl_plugins.progressive.perturbation import PerturbationSensitivity
from avl_plugins.progressive.sensitivity import FisherSensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sensitivity_figure(
    sensitivity: FisherSensitivity | PerturbationSensitivity,
    *,
    layers: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> Figure:
    """Draw a cell for each depth (rows, the input at the top) and column, coloured by its share of the depth.

    The number in it is AFS(i, j) or APS(i, j). In the cells of a `FisherSensitivity` there is a bar for each map,
    AFS(i, j, m), on one scale for each row. matplotlib is imported here and not before.

    Args:
        sensitivity: what `average_fisher_sensitivity` or `average_perturbation_sensitivity` returned.
        layers: names of the depths.
        columns: names of the columns.

    Raises:
        ValueError: If there are not as many names as depths or columns.

    Example:
        >>> import torch
        >>> from avl_plugins.progressive import FisherSensitivity, sensitivity_figure
        >>> fisher = {(0, 0): torch.ones(2), (0, 1): torch.ones(2)}
        >>> figure = sensitivity_figure(FisherSensitivity(1, "layer", fisher, means=fisher), columns=["pong", "soup"])
        >>> [panel.get_title() for panel in figure.axes]
        ['pong', 'soup']
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    depths, width = sensitivity.shape
    layers = [f"depth {i}" for i in range(depths)] if layers is None else layers
    columns = [f"column {j}" for j in range(width)] if columns is None else columns
    for name, given, n in (("layers", layers, depths), ("columns", columns, width)):
        if len(given) != n:
            raise ValueError(f"{name} must be {n} names, got {len(given)}")
    measure, maps = "APS", None
    if isinstance(sensitivity, FisherSensitivity):
        measure, maps = "AFS", sensitivity.maps
    figure = Figure(figsize=(1.9 * width + 1.1, 1.1 * depths + 0.8), layout="constrained")
    figure.suptitle(f"{measure} of task {sensitivity.label}", fontsize="medium")
    panels = figure.subplots(depths, width, squeeze=False, sharey="row")
    colours = colormaps["Blues"]
    for i in range(depths):
        total = float(sensitivity.layers[i].sum())
        for j in range(width):
            value, panel = float(sensitivity.layers[i, j]), panels[i, j]
            share = value / total if total > 0 else 0.0
            panel.set_facecolor(colours(0.6 * share))  # light enough for bars and text
            panel.set(xticks=[], yticks=[])
            if maps is not None:
                panel.bar(range(len(maps[i, j])), maps[i, j].tolist(), width=1, color="tab:red")
                panel.set_xlim(-0.5, len(maps[i, j]) - 0.5)
            panel.text(0.97, 0.95, f"{value:.2f}", transform=panel.transAxes, ha="right", va="top", fontsize="small")
            if i == 0:
                panel.set_title(columns[j], fontsize="small")
        if maps is not None:  # room for the number above the bars
            panels[i, 0].set_ylim(0, 1.4 * max(float(maps[i, j].max()) for j in range(width)) or 1.0)
        panels[i, 0].set_ylabel(layers[i], fontsize="small")
    return figure
