"""The table of speed, from the file that `python -m benchmarks perf` writes."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness.files import blaming
from benchmarks.report.table import number, verdict


def speed(perf: Path) -> str:
    """Return the section's Markdown; a ValueError names a file that perf has not written."""
    with blaming(perf, "is not what `python -m benchmarks perf` writes", "run that again, or remove it"):
        record = json.loads(perf.read_text())
        lines = [
            "## Speed\n",
            f"Seconds, permuted MNIST, 784-400-400-10, batch 128, {record['threads']} threads, medians of "
            f"{record['rounds']} rounds in one run (`python -m benchmarks perf`).\n",
            "| what | measured | ratio | of | target | |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for line in record["lines"]:
            ratio = "" if line["ratio"] is None else f"{line['ratio']:.2f}"
            met = verdict({None: None, True: "met", False: "missed"}[line["met"]])
            fields = (line["what"], number(line["seconds"]), ratio, line["against"], line["target"], met)
            lines.append(f"| {' | '.join(fields)} |")
    return "\n".join(lines)
