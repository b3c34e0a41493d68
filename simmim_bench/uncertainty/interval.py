"""Intervals of a score and of a difference, over the images and over seeds or pretrainings.

A score is a mean over images and over units, which are transfer seeds or pretrainings. Another sample of images, and
other units, would give another score. Both variances are estimated, and the interval combines their own intervals:

    margin = sqrt(t(images - 1)^2 V_images + t(units - 1)^2 V_units)

which is MOVER, the method of variance estimates recovery (Zou and Donner 2008, Statistics in Medicine 27(10)). A
single Student's quantile for the sum of the variances is too small for two or three units: units that agree by chance
shrink their variance. `docs/statistics.md` has the coverage of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

from simmim_bench.uncertainty.run_scores import Floats, RunScores

LEVEL = 0.95
# The images' noise is in both variances; this fraction of it is taken from that of the units. Without, intervals of
# two seeds cover 99 %; with all of it, units that agree by chance give 91 % (docs/statistics.md).
SHARED_NOISE = 0.5

Unit = Literal["seed", "pretraining"]


@dataclass(frozen=True)
class Side:
    """The runs of one row.

    Attributes:
        units: the runs of each unit, as indices of `RunScores`.
        keys: what identifies each unit, such as its seed; by it, units of two sides are paired.
        unit: what the units are.
        varies: whether another unit would have another score: False for a task without randomness.
    """

    units: tuple[tuple[int, ...], ...]
    keys: tuple[int | str, ...]
    unit: Unit = "seed"
    varies: bool = True

    def weights(self, runs: int) -> Floats:
        """Return the weight of every run in the mean over units of the means over their runs, (runs,)."""
        return self.by_unit(runs).mean(0)

    def by_unit(self, runs: int) -> Floats:
        """Return the weight of every run in every unit's mean, (units, runs)."""
        weights = np.zeros((len(self.units), runs))
        for row, indices in zip(weights, self.units, strict=True):
            row[list(indices)] = 1 / len(indices)
        return weights


@dataclass(frozen=True)
class Uncertainty:
    """The uncertainty of one score, in percentage points.

    Attributes:
        units: sample standard deviation over units; None for a single one.
        images: standard error from the finite number of images.
    """

    units: float | None
    images: float


@dataclass(frozen=True)
class Spread:
    """The variance of one unit's score, estimated from the units of several rows.

    Attributes:
        variance: percent squared, with the noise of the images in it.
        noise: the part of it that is the images' noise.
        freedom: degrees of freedom.
    """

    variance: float
    noise: float
    freedom: float


@dataclass(frozen=True)
class Difference:
    """A difference of two scores with its 95 % interval, in percentage points.

    Attributes:
        p_value: the smallest significance level at which the interval excludes 0.
        images: number of images.
        units: numbers of units of both sides.
        unit: what the units are.
        without_units: whether the variance over units is unknown, so that the interval is of the images alone.
    """

    points: float
    low: float
    high: float
    p_value: float
    images: int
    units: tuple[int, int]
    unit: Unit = "seed"
    without_units: bool = False

    @property
    def includes_zero(self) -> bool:
        """Whether the two scores cannot be distinguished."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class _Variance:
    """A variance with its degrees of freedom, and the images' noise in it."""

    value: float
    noise: float
    freedom: float


def uncertainty(runs: RunScores, side: Side) -> Uncertainty:
    """Compute the uncertainty of one row's score."""
    means = side.by_unit(len(runs.scores)) @ runs.scores
    return Uncertainty(
        units=float(means.std(ddof=1)) if len(means) > 1 else None,
        images=runs.variance(side.weights(len(runs.scores))) ** 0.5,
    )


def difference(
    runs: RunScores,
    ours: Side,
    theirs: Side,
    *,
    paired: bool = False,
    spread: Spread | None = None,
) -> Difference:
    """Compute the difference of two rows' scores on the same images, ours minus theirs.

    Args:
        paired: whether equal keys share what varies, such as the labelled images of a few-shot split.
        spread: the variance of a unit, for a side with a single one.
    """
    count = len(runs.scores)
    weights = ours.weights(count) - theirs.weights(count)
    points = float(weights @ runs.scores)
    of_images = _Variance(runs.variance(weights), 0.0, max(runs.images - 1, 1))
    of_units = _units_variance(runs, ours, theirs, paired=paired, spread=spread)
    margin = _margin(of_images, of_units, 1 - LEVEL)
    return Difference(
        points=points,
        low=points - margin,
        high=points + margin,
        p_value=_p_value(abs(points), of_images, of_units),
        images=runs.images,
        units=(len(ours.units), len(theirs.units)),
        unit="pretraining" if "pretraining" in (ours.unit, theirs.unit) else "seed",
        without_units=of_units is None,
    )


def pooled_spread(runs: RunScores, sides: Sequence[Side]) -> Spread | None:
    """Pool the variance over units within several rows; None if each has a single unit."""
    parts = [part for side in sides if (part := _side_variance(runs, side)) is not None]
    freedom = sum(part.freedom for part in parts)
    if not freedom:
        return None
    # A side's variance is that of its mean; a unit's is (units) times as large, and there are freedom + 1 units.
    return Spread(
        variance=sum(p.value * (p.freedom + 1) * p.freedom for p in parts) / freedom,
        noise=sum(p.noise * (p.freedom + 1) * p.freedom for p in parts) / freedom,
        freedom=freedom,
    )


def _units_variance(
    runs: RunScores, ours: Side, theirs: Side, *, paired: bool, spread: Spread | None
) -> _Variance | None:
    """Return the variance of the difference over units; None if it cannot be estimated."""
    count = len(runs.scores)
    if (
        paired
        and len(ours.units) > 1
        and sorted(map(str, ours.keys)) == sorted(map(str, theirs.keys))
    ):
        order = [theirs.keys.index(key) for key in ours.keys]
        return _mean_variance(runs, ours.by_unit(count) - theirs.by_unit(count)[order])
    known = [_side_variance(runs, side) for side in (ours, theirs)]
    if spread is None:
        spread = pooled_spread(runs, (ours, theirs))
    parts = []
    for side, part in zip((ours, theirs), known, strict=True):
        if part is not None:
            parts.append(part)
        elif side.varies:
            if spread is None:
                return None
            parts.append(_Variance(spread.variance, spread.noise, spread.freedom))
    return _sum(parts)


def _side_variance(runs: RunScores, side: Side) -> _Variance | None:
    """Return the variance of a side's mean over units; None for a single unit."""
    if len(side.units) < 2:
        return None
    return _mean_variance(runs, side.by_unit(len(runs.scores)))


def _mean_variance(runs: RunScores, weights: Floats) -> _Variance:
    """Return the variance of the mean of units, with the images' noise in it.

    Args:
        weights: (units, runs), of at least two units.
    """
    units = len(weights)
    values = weights @ runs.scores
    covariance = weights @ runs.covariance @ weights.T
    noise = (covariance.trace() / units - covariance.mean()) / (units - 1)
    return _Variance(float(values.var(ddof=1)) / units, max(float(noise), 0.0), units - 1)


def _sum(parts: Sequence[_Variance]) -> _Variance:
    """Add variances, with Welch's and Satterthwaite's degrees of freedom."""
    value = sum(part.value for part in parts)
    weight = sum(part.value**2 / part.freedom for part in parts)
    return _Variance(value, sum(part.noise for part in parts), value**2 / weight if weight else 1.0)


def _margin(of_images: _Variance, of_units: _Variance | None, alpha: float) -> float:
    """Return half the width of the interval of level 1 - alpha."""
    squared = stdtrit(of_images.freedom, 1 - alpha / 2) ** 2 * of_images.value
    if of_units is not None:
        rest = max(of_units.value - SHARED_NOISE * of_units.noise, 0.0)
        squared += stdtrit(of_units.freedom, 1 - alpha / 2) ** 2 * rest
    return float(squared**0.5)


def _p_value(distance: float, of_images: _Variance, of_units: _Variance | None) -> float:
    """Return the significance level at which the margin equals the distance from 0."""
    smallest = 1e-12
    if distance <= _margin(of_images, of_units, 1.0):
        return 1.0
    if distance >= _margin(of_images, of_units, smallest):
        return smallest
    return float(brentq(lambda a: _margin(of_images, of_units, a) - distance, smallest, 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, in their order (Holm 1979, Scandinavian Journal of Statistics 6(2))."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for position, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = largest
    return adjusted.tolist()
