"""What `python -m benchmarks list` says of an experiment, in lines of at most 80 characters."""

from __future__ import annotations

import textwrap

from benchmarks.harness.experiment import Experiment

WIDTH = 80
INDENT = "    "


def entry(experiment: Experiment) -> str:
    """Name; title; data and arms; how long each scale takes."""
    usual = experiment.scales.get("cpu") or next(iter(experiment.scales.values()))
    times = [f"{scale} {duration(experiment.minutes.get(scale))}" for scale in experiment.scales]
    parts = [
        experiment.title,
        f"data: {experiment.data}; arms: {', '.join(experiment.arm_names(usual))}",
        f"time: {', '.join(times)}",
    ]
    return "\n".join([experiment.name, *(_wrapped(part) for part in parts)])


def duration(minutes: float | None) -> str:
    """Minutes, or hours or days where there are many of them."""
    if minutes is None:
        return "not estimated"
    if minutes < 120:
        return f"{minutes:g} min"
    return f"{minutes / 60:.3g} h" if minutes < 2880 else f"{minutes / 1440:,.0f} days"


def _wrapped(text: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=INDENT, subsequent_indent=2 * INDENT, break_long_words=False, break_on_hyphens=False
    )
