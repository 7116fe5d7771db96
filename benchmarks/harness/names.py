"""What is said about a name that there is not, and counts with their units."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def no_such(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """Make the error for a name that is none: with those that are like it, and all there are.

    Args:
        kind: Of what it is a name, for example "experiment".
        name: The wrong one.
        known: The right ones.
    """
    names = list(known)
    return ValueError(f"no {kind} {name!r}{did_you_mean(name, names)}; there are: {', '.join(names)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ask whether one of the names that are like a wrong one is meant; nothing where none is."""
    like = get_close_matches(name.lower(), list(known))
    return f" (did you mean {' or '.join(map(repr, like))}?)" if like else ""


def counted(number: int, unit: str) -> str:
    """Return a count with its unit: "1 job", "2 jobs"."""
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
