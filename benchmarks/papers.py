"""The papers' numbers, from `benchmarks/papers/*.toml`; each table names its figure and how certain its numbers are."""

from __future__ import annotations

import copy
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "papers"


def paper(name: str) -> dict[str, Any]:
    """Tables of `papers/<name>.toml`, for example `paper("ewc")["fig2b"]["ewc"]`; a ValueError lists the papers."""
    return copy.deepcopy(_load(name))


@cache
def _load(name: str) -> dict[str, Any]:
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise ValueError(f"no numbers for the paper {name!r}; there are: {known}")
    return tomllib.loads(path.read_text(encoding="utf-8"))
