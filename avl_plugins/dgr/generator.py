"""What a generator has to offer, and what is checked of what it gives."""

import warnings
from collections.abc import Mapping
from math import ceil, floor, isfinite
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from avl_plugins.tasks.arguments import check_count, check_number

__all__ = [
    "Generator",
    "Range",
    "RangedGenerator",
    "check_generator",
    "check_module",
    "check_range",
    "check_samples",
    "checked_samples",
    "inside",
    "range_of",
]

COLLAPSED = 1e-6
"""Mean variance over samples, in units of the data's squared range, below which a generator gives one image."""


@runtime_checkable
class Generator(Protocol):
    """A generative model of inputs that is trained batch by batch, and sampled between.

    Attributes:
        batch_size: how many samples `fit_batch` wants in all.
        data_range: smallest and largest value of the data; None until it is known.

    Example:
        A generator of one's own, which replays the mean of what it saw last:

        >>> class Mean:
        ...     batch_size, data_range, mean = 16, None, None
        ...
        ...     def fit_batch(self, real, replayed, ratio):
        ...         self.mean = real.mean(0)
        ...         return {"spread": (real - self.mean).square().mean()}
        ...
        ...     def sample(self, n, generator=None):
        ...         return self.mean.expand(n, *self.mean.shape)
        ...
        ...     def state_dict(self):
        ...         return {"mean": self.mean, "data_range": self.data_range}
        ...
        ...     def load_state_dict(self, state):
        ...         self.mean, self.data_range = state["mean"], state["data_range"]
        >>> isinstance(Mean(), Generator)
        True
    """

    batch_size: int
    data_range: tuple[float, float] | None

    def fit_batch(self, real: Tensor, replayed: Tensor | None, ratio: float) -> Mapping[str, Tensor]:
        """Take one step on current inputs and samples of the generator before, and return losses by name.

        Args:
            real: (N, *shape).
            replayed: (M, *shape), None for the first task.
            ratio: weight of the mean over `real`; 1 - ratio is that of the mean over `replayed`.
        """
        ...

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return (n, *shape) in the data's range and dtype, without a graph."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Return everything that `load_state_dict` needs to go on from here."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Take what `state_dict` gave."""
        ...


class Range(nn.Module):
    """The data's range, from x in [low, high] to u in [-1, 1], which networks give and take, and back.

    Args:
        data_range: (low, high), or None: not known yet.

    Raises:
        TypeError: If it is no pair of numbers.
        ValueError: If low is not below high, or one is not finite; on use, if it is not known, or x is outside.
    """

    def __init__(self, data_range: tuple[float, float] | None) -> None:
        super().__init__()
        self.bounds: tuple[float, float] | None = None
        self.dtype: torch.dtype = torch.float32
        if data_range is not None:
            self.set(data_range)

    def set(self, data_range: tuple[float, float]) -> None:
        """Declare the range."""
        self.bounds = check_range("data_range", data_range)

    def to_unit(self, x: Tensor) -> Tensor:
        """Return u = 2 (x - low) / (high - low) - 1 as float32."""
        low, high = self._known()
        smallest, largest = (float(v) for v in x.aminmax())
        if not inside(smallest, largest, (low, high)):
            raise ValueError(
                f"data_range: it is ({low:g}, {high:g}), and the data have values from {smallest:g} to {largest:g}; "
                "declare the range they really have"
            )
        self.dtype = x.dtype
        return (x.float() - low) * (2 / (high - low)) - 1

    def from_unit(self, u: Tensor) -> Tensor:
        """Return x in the data's range and dtype, the nearest where that has integers only."""
        low, high = self._known()
        x = (u + 1) * ((high - low) / 2) + low
        if not self.dtype.is_floating_point:
            x = x.round().clamp(ceil(low), floor(high))
        return x.to(self.dtype)

    def get_extra_state(self) -> dict[str, Any]:
        """Return range and dtype."""
        return {"bounds": self.bounds, "dtype": str(self.dtype).removeprefix("torch.")}

    def set_extra_state(self, state: Any) -> None:
        """Take range and dtype."""
        self.bounds = None if state["bounds"] is None else (float(state["bounds"][0]), float(state["bounds"][1]))
        self.dtype = getattr(torch, state["dtype"])

    def _known(self) -> tuple[float, float]:
        if self.bounds is None:
            raise ValueError("data_range: it is not known; pass it to the generator, or train through DGRPlugin")
        return self.bounds


class RangedGenerator(nn.Module):
    """What generators that are modules have in common: the data's range, and the checks of a batch.

    Args:
        data_range: (low, high), or None: not known yet.
    """

    def __init__(self, data_range: tuple[float, float] | None) -> None:
        super().__init__()
        self.range = Range(data_range)

    @property
    def data_range(self) -> tuple[float, float] | None:
        """Smallest and largest value of the data."""
        return self.range.bounds

    @data_range.setter
    def data_range(self, bounds: tuple[float, float]) -> None:
        self.range.set(bounds)

    def weighted_parts(self, real: Tensor, replayed: Tensor | None, ratio: float) -> list[tuple[Tensor, float]]:
        """Return real and replayed samples in [-1, 1], those that there are, each with the weight of its mean.

        Raises:
            ValueError: If the ratio is no weight, or leaves some to replayed samples that are not there, or the data
                are outside the range.
        """
        check_number("ratio", ratio, low=0, high=1)
        if replayed is None and ratio != 1:
            raise ValueError(f"ratio: without replayed samples it has to be 1, got {ratio}")
        both = ((real, ratio), (replayed, 1 - ratio))
        return [(self.range.to_unit(x), weight) for x, weight in both if x is not None and len(x)]


def check_range(name: str, bounds: Any) -> tuple[float, float]:
    """Return a range as two floats.

    Raises:
        TypeError: It is no pair of numbers.
        ValueError: One is not finite, or the first is not below the second.
    """
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        raise TypeError(f"{name} must be (low, high), got {bounds!r}")
    for bound in bounds:
        check_number(name, bound)
    low, high = (float(bound) for bound in bounds)
    if not low < high:
        raise ValueError(f"{name} must be (low, high) with low < high, got {tuple(bounds)}")
    return low, high


def check_generator(generator: Any, *, needed: bool) -> None:
    """Refuse what is no generator, one whose attributes cannot be, and None where one is needed."""
    if generator is None and not needed:
        return
    if not isinstance(generator, Generator) or isinstance(generator, type):
        found = f"{generator.__name__} itself" if isinstance(generator, type) else type(generator).__name__
        raise TypeError(
            f"generator must be a Generator such as WGANGP(...) or VAE(...), got {found}; it needs batch_size, "
            "data_range, fit_batch, sample, state_dict and load_state_dict"
        )
    check_count("generator.batch_size", generator.batch_size)
    if generator.data_range is not None:
        check_range("generator.data_range", generator.data_range)


def check_module(name: str, value: Any, *, none: str | None = None) -> None:
    """Refuse what is no module, with a TypeError; `none` says what None means, where it is allowed."""
    if not isinstance(value, nn.Module) and not (value is None and none is not None):
        or_none = "" if none is None else f", or None for {none}"
        raise TypeError(f"{name} must be a torch.nn.Module{or_none}, got {value!r}")


def inside(smallest: float, largest: float, data_range: tuple[float, float]) -> bool:
    """Whether values from `smallest` to `largest` lie in the range, but for rounding; NaN does not."""
    low, high = data_range
    slack = 1e-4 * (high - low)
    return low - slack <= smallest and largest <= high + slack


def range_of(low: float, high: float, bounds: Any, *, declared: bool) -> tuple[float, float]:
    """Return the range that a generator needs for data with values from `low` to `high`.

    Args:
        low: smallest value.
        high: largest value.
        bounds: the range it has; None if it is not known.
        declared: whether a user said it, who is then told where data are outside; else it is widened.

    Raises:
        ValueError: The data are outside the declared range, or none can be read from them.
    """
    if bounds is not None and inside(low, high, bounds):
        return bounds[0], bounds[1]
    if bounds is not None and declared:
        raise ValueError(
            f"data_range: declared as ({bounds[0]:g}, {bounds[1]:g}), and the data have values from {low:g} to "
            f"{high:g}; declare the range they really have"
        )
    if bounds is not None:
        low, high = min(low, bounds[0]), max(high, bounds[1])
    if not (isfinite(low) and isfinite(high) and low < high):
        raise ValueError(
            f"data_range: it cannot be read from data with values from {low:g} to {high:g}; pass it to the generator"
        )
    return low, high


def checked_samples(generator: Any, n: int, random: torch.Generator | None) -> Tensor:
    """Return samples of a generator, which may be a user's own; see `check_samples`."""
    return check_samples(generator.sample(n, random), generator.data_range, type(generator).__name__)


def check_samples(x: Tensor, data_range: tuple[float, float] | None, name: str) -> Tensor:
    """Return samples as they are, with a warning if they are all the same image.

    Args:
        x: (N, *shape).
        data_range: the data's; None if it is not known.
        name: of the generator, for messages.

    Raises:
        ValueError: If they are not finite, or outside the range.
    """
    if len(x) == 0:
        return x
    smallest, largest = (float(v) for v in x.aminmax())
    if not (isfinite(smallest) and isfinite(largest)):
        raise ValueError(
            f"{name}: it gives samples that are NaN or infinite, its training has diverged; lower its learning rate"
        )
    if data_range is None:
        return x
    if not inside(smallest, largest, data_range):
        raise ValueError(
            f"{name}: it gives samples with values from {smallest:g} to {largest:g}, and data_range is "
            f"({data_range[0]:g}, {data_range[1]:g}); have its sample() return values in the data's range"
        )
    some = x[:64].float()  # samples are checked at every draw, and a variance takes longer than the rest
    if len(some) > 1 and float(some.var(0).mean()) < COLLAPSED * (data_range[1] - data_range[0]) ** 2:
        # The same text from the same line each time, which Python shows once.
        warnings.warn(
            f"{name}: all samples are the same image (variance below {COLLAPSED:g} of the squared range): it has "
            "collapsed, and what it stands for will be forgotten",
            stacklevel=1,
        )
    return x
