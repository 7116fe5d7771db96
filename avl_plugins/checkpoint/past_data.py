"""Avalanche's `Cumulative` after a load: its data are in no file and come from the stream again."""

import hashlib
from typing import Any

import torch
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training.supervised import Cumulative


class PastData:
    """Gives a loaded `Cumulative` the data of the experiences before the first one it trains on.

    They are the first ones of that experience's stream. Their number and labels are compared with what was saved.
    """

    __constants__ = ("experiences", "expected")

    def __init__(self, *, experiences: int, expected: dict[str, Any]) -> None:
        self.experiences = experiences
        self.expected = (expected["samples"], expected["labels"])

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Concatenate as `Cumulative.train_dataset_adaptation` does, once."""
        if strategy.dataset is not None:
            return
        stream = strategy.experience.origin_stream  # of an experience taken from a slice, that slice
        if hasattr(stream, "benchmark"):
            stream = stream.benchmark.streams[stream.name]
        datasets = [experience.dataset for experience in stream[: self.experiences]]
        past = datasets[0]
        for dataset in datasets[1:]:
            past = concat_datasets([past, dataset])
        if (found := _fingerprint(past)) != self.expected:
            raise ValueError(
                f"experiences: the first {self.experiences} of the stream hold {found[0]} samples that are not the "
                f"{self.expected[0]} Cumulative was trained on; build the same benchmark, and train in its order"
            )
        strategy.dataset = past


def keeps_past_data(strategy: Any, experiences: int) -> bool:
    """Tell whether a strategy has data of so many completed experiences."""
    return isinstance(strategy, Cumulative) and experiences > 0


def past_data_to_plain(strategy: Any) -> dict[str, Any] | None:
    """Return what identifies the data `Cumulative` has from completed experiences; None for other strategies."""
    if not keeps_past_data(strategy, strategy.clock.train_exp_counter):
        return None
    if strategy.dataset is None:  # loaded, and not trained since
        waiting = next(plugin for plugin in strategy.plugins if isinstance(plugin, PastData))
        samples, labels = waiting.expected
    else:
        samples, labels = _fingerprint(strategy.dataset.subset(range(_completed(strategy))))
    return {"samples": samples, "labels": labels}


def past_data_from_plain(strategy: Any, plain: dict[str, Any] | None) -> None:
    """Forget the data of a `Cumulative`, and have it find those of the saved run when it trains next."""
    if not isinstance(strategy, Cumulative):
        return
    strategy.dataset = None
    strategy.plugins = [plugin for plugin in strategy.plugins if not isinstance(plugin, PastData)]
    if plain is not None:
        strategy.plugins.insert(0, PastData(experiences=strategy.clock.train_exp_counter, expected=plain))


def _completed(strategy: Any) -> int:
    """Return how many samples are of completed experiences: without the current one's, which are adapted in again."""
    if strategy.experience is None:
        return len(strategy.dataset)
    if getattr(strategy, "at_safe_point", False):
        return len(strategy.dataset) - len(strategy.experience.dataset)
    # An interruption may have come before or after the current one's were added, or in an evaluation.
    labels, stream = _labels(strategy.dataset), strategy.experience.origin_stream
    streams = stream.benchmark.streams.values() if hasattr(stream, "benchmark") else [stream]
    pasts = [[_labels(e.dataset) for e in stream[: strategy.clock.train_exp_counter]] for stream in streams]
    sizes = [len(past) for past in map(torch.cat, filter(None, pasts)) if torch.equal(labels[: len(past)], past)]
    return max(sizes, default=len(labels))


def _fingerprint(dataset: Any) -> tuple[int, str]:
    labels = _labels(dataset)
    return len(labels), hashlib.sha256(labels.numpy().tobytes()).hexdigest()


def _labels(dataset: Any) -> torch.Tensor:
    return torch.tensor([int(label) for label in dataset.targets])
