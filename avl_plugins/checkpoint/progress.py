"""How far training on an experience has come."""

import warnings
from dataclasses import dataclass, field
from typing import Any

from avl_plugins.checkpoint.plain import of_same_kind

__all__ = ["Progress"]


@dataclass
class Progress:
    """Where in an experience a `Resumable` strategy is.

    Attributes:
        experience: its number in the stream.
        plugins: classes of the plugins with work to do after training, in order.
        phase: name of the phase: "train" for the template's own epochs, "setup" before them.
        unit: what the phase counts, "epoch" or "iteration"; "none" between phases.
        epoch: epochs of the phase that are complete.
        iteration: complete iterations, of the epoch or of the phase.
        begun: the phases begun so far; all but the last are complete.
        hooks: how many of `plugins` have done their work.
        random: the global random states at which the epoch began; None outside of epochs.
    """

    experience: int
    plugins: list[str]
    phase: str = "setup"
    unit: str = "none"
    epoch: int = 0
    iteration: int = 0
    begun: list[str] = field(default_factory=list)
    hooks: int = 0
    random: dict[str, Any] | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return it as a file holds it: without `random` where there is none."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Progress":
        """Return what `to_plain` wrote.

        Raises:
            ValueError: If entries are missing, unknown or of a wrong kind.
        """
        kinds = {**vars(cls(experience=0, plugins=[])), "random": {}}
        if wrong := kinds.keys() - plain.keys() - {"random"} or plain.keys() - kinds.keys():
            raise ValueError(f"progress: entries missing or unknown: {', '.join(sorted(wrong))}")
        return cls(**{name: of_same_kind(value, kinds[name], f"progress.{name}") for name, value in plain.items()})

    def __str__(self) -> str:
        return f"experience {self.experience}, phase {self.phase!r}, epoch {self.epoch}, iteration {self.iteration}"

    def __getitem__(self, name: str) -> Any:
        warnings.warn(f"progress[{name!r}] is progress.{name} now", DeprecationWarning, stacklevel=2)
        return getattr(self, name)
