"""The papers' numbers, from `benchmarks/<method>/paper.toml`; each table names its figure and how certain they are."""

from __future__ import annotations

import copy
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent


def paper(name: str) -> dict[str, Any]:
    """Tables of a method's `paper.toml`, for example `paper("ewc")["fig2b"]["ewc"]`; a ValueError lists the papers."""
    return copy.deepcopy(_load(name))


def in_paper(numbers: Any, *keys: str | int) -> Any:
    """What a paper's tables have under these keys, None where nothing, as for an arm that is not the paper's."""
    for key in keys:
        try:
            numbers = numbers[key]
        except (KeyError, IndexError):
            return None
    return numbers


@cache
def _load(name: str) -> dict[str, Any]:
    path = FOLDER / name / "paper.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.parent.name for file in FOLDER.glob("*/paper.toml")))
        raise ValueError(f"no numbers for the paper {name!r}; there are: {known}")
    return tomllib.loads(path.read_text(encoding="utf-8"))
