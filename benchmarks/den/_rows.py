"""Rows of the DEN tables: AUROC and capacity by arm, and how DEN compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from benchmarks.harness.experiment import Row, Run
from benchmarks.harness.search import edge_note, tried
from benchmarks.report.table import Target, mean_row, paired_row


def auroc_at_end(run: Run) -> float:
    """Mean AUROC over all tasks after the last."""
    return fmean(run.measurements["matrix"][-1])


def capacity(run: Run) -> float:
    """Number of weights relative to the base network."""
    return run.measurements["capacity"]


def first_drop(run: Run) -> float:
    """What the first task has lost at the end."""
    matrix = run.measurements["matrix"]
    return matrix[0][0] - matrix[-1][0]


def mean_units(run: Run, kind: str, layer: int) -> float:
    """Units "selected", "added" or "split" in a hidden layer, from 1, the mean over tasks from the second on.

    Tasks for which the network was not expanded count with none added.
    """
    found = [row[kind] for row in run.measurements["growth"] if row["layer"] == layer]
    known = [value or 0 for value in found] if kind == "added" else [value for value in found if value is not None]
    return fmean(known) if known else 0.0


def loss_before_expansion(run: Run) -> float:
    """Return the loss that was compared with tau, the mean over tasks from the second on; nan without any."""
    found = [row["loss"] for row in run.measurements["growth"] if row["layer"] == 1 and row["loss"] is not None]
    return fmean(found) if found else float("nan")


def share_expanded(run: Run) -> float:
    """Share of the tasks from the second on for which the network was expanded."""
    found = [row["added"] is not None for row in run.measurements["growth"] if row["layer"] == 1]
    return fmean(found) if found else 0.0


def seconds_from_second(run: Run) -> float:
    """Seconds of training from the second task on."""
    return sum(run.measurements["seconds"][1:])


def auroc_rows(
    runs: Sequence[Run], arms: Sequence[str], numbers: Mapping[str, Any], notes: Mapping[str, str] | None = None
) -> list[Row]:
    """AUROC after the last task by arm, beside the paper's."""
    return [
        mean_row(
            runs, arm, "AUROC", value=auroc_at_end, paper=numbers["auroc"].get(arm), note=(notes or {}).get(arm, "")
        )
        for arm in arms
    ]


def capacity_rows(
    runs: Sequence[Run], arms: Sequence[str], numbers: Mapping[str, Any], target: Target | None = None
) -> list[Row]:
    """Capacity by arm; the target is DEN's."""
    return [
        mean_row(
            runs,
            arm,
            "capacity",
            value=capacity,
            paper=numbers["capacity"].get(arm),
            target=target if arm == "den" else None,
        )
        for arm in arms
    ]


def against(runs: Sequence[Run], arm: str, others: Mapping[str, float | None], numbers: Mapping[str, Any]) -> list[Row]:
    """An arm's AUROC minus others', each with the smallest difference that is wanted, or None."""
    known = numbers["auroc"]
    return [
        paired_row(
            runs,
            arm,
            other,
            "AUROC",
            value=auroc_at_end,
            paper=round(known[arm] - known[other], 4) if arm in known and other in known else None,
            target=None if least is None else (">=", least),
        )
        for other, least in others.items()
    ]


def growth_rows(runs: Sequence[Run], arm: str, layers: int) -> list[Row]:
    """Units selected, kept of those added, and split, a task, by hidden layer, and the loss beside tau."""
    tau = next((run.settings["loss_threshold"] for run in runs), None)
    units = [
        mean_row(
            runs,
            arm,
            f"units {kind} a task, layer {layer}",
            value=partial(mean_units, kind=kind, layer=layer),
            note=_added_note(runs, layer) if kind == "added" else "",
        )
        for kind in ("selected", "added", "split")
        for layer in range(1, layers + 1)
    ]
    loss = mean_row(
        runs,
        arm,
        "loss before expansion, mean over tasks",
        value=loss_before_expansion,
        note=f"expanded where it exceeds tau = {tau}",
    )
    return [*units, loss, mean_row(runs, arm, "share of tasks expanded", value=share_expanded)]


def _added_note(runs: Sequence[Run], layer: int) -> str:
    """Say of how many added units those are that stayed."""
    by = next((run.settings["expand_by"] for run in runs), None)
    return f"kept of {by[layer - 1] if isinstance(by, Sequence) else by}, the others removed as empty"


def chosen_note(runs: Sequence[Run], arm: str, setting: str) -> str:
    """Say which value of a setting the search chose, and where it was searched."""
    scores = tried(runs, arm, auroc_at_end)
    if not scores:
        return ""
    value = max(scores, key=scores.__getitem__)
    searched = ", ".join(f"{own:g}" for own in scores)
    return f"{setting} {value:g} of {searched}, chosen on validation images{edge_note(value, scores)}"
