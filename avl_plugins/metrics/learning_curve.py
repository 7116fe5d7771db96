"""Area under a learning curve, and transfer as a ratio of two of them.

Rusu et al. (2016, Progressive Neural Networks, arXiv:1606.04671, section 5) measure performance by the area under the
learning curve, not by the final value, and the transfer of a run by that area divided by the area of a baseline, a
single column trained on the target alone (their baseline 1):

    score = integral_0^T (a(t) - floor) dt / integral_0^T (b(t) - floor) dt

with a and b accuracies (or returns) after t training iterations and T the budget of both. 1 is no transfer, more is
positive, less is negative. `floor` is what an untrained learner has: chance, or a random policy's return. The paper
does not say which zero it took for games with negative scores; its failing runs are at 0, so that there was one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from avl_plugins.tasks.arguments import check_number

Curve = Sequence[tuple[float, float]]
"""Points (iterations, value); iterations do not decrease."""


def learning_curve_area(curve: Curve, floor: float = 0.0) -> float:
    """Return the area between a learning curve and the floor, by the trapezoid rule; below the floor it is negative.

    It is not divided by anything: its unit is iterations times that of the value. Divide by the budget, last minus
    first iteration, for the mean height above the floor.

    Args:
        curve: at least two points (iterations, value).
        floor: the value of an untrained learner.

    Raises:
        TypeError: A point is no pair of numbers.
        ValueError: There are fewer than two points, their iterations decrease, or something is not finite.
    """
    points = curve_points(curve, "curve")
    check_number("floor", floor)
    return sum((x - w) * ((a - floor) + (b - floor)) / 2 for (w, a), (x, b) in pairwise(points))


def transfer_score(curve: Curve, baseline: Curve, floor: float = 0.0) -> float:
    """Return the area under a learning curve relative to that under the baseline's; see above.

    The two may have been measured at different iterations in between.

    Args:
        curve: points (iterations, value) of the run that is judged.
        baseline: points of a single column trained on the target alone, over the same iterations.
        floor: the value of an untrained learner, the same for both.

    Raises:
        ValueError: As `learning_curve_area`; if the first or last iterations differ, or the baseline's area is not
            positive, so that there is nothing to compare with.
    """
    ours, theirs = curve_points(curve, "curve"), curve_points(baseline, "baseline")
    for index, what in ((0, "begins"), (-1, "ends")):
        if ours[index][0] != theirs[index][0]:
            raise ValueError(
                f"baseline: it {what} at iteration {theirs[index][0]:g} and the curve at {ours[index][0]:g}; areas "
                "compare over the same budget only: give both the same iterations and evaluate both from the start"
            )
    return learning_curve_area(ours, floor) / positive_area(theirs, floor, "baseline")


def curve_points(curve: Iterable[tuple[float, float]], name: str) -> list[tuple[float, float]]:
    """Return the points of a curve; a ValueError or TypeError says what is wrong with it."""
    points = []
    for number, point in enumerate(curve):
        try:
            x, value = point
        except (TypeError, ValueError):
            raise TypeError(f"{name}[{number}] must be a pair (iterations, value), got {point!r}") from None
        check_number(f"iterations of {name}[{number}]", x)
        check_number(f"value of {name}[{number}]", value)
        points.append((x, float(value)))
    if len(points) < 2:
        raise ValueError(f"{name} must have at least 2 points (iterations, value), got {len(points)}")
    for before, after in pairwise(points):
        if after[0] < before[0]:
            raise ValueError(
                f"{name} must have iterations that do not decrease, and {after[0]:g} comes after {before[0]:g}"
            )
    return points


def positive_area(curve: Curve, floor: float, name: str) -> float:
    """Return the area of a baseline; a ValueError says that it is not positive."""
    area = learning_curve_area(curve, floor)
    if area <= 0:
        raise ValueError(
            f"{name}: its area above floor={floor:g} is {area:g}, and a score relative to it means nothing; floor has "
            "to be below what the baseline learned (chance, or a random policy's return)"
        )
    return area
