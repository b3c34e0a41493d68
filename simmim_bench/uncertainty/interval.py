"""Intervals of a score and of a difference, over the images and over seeds or pretrainings.

A score is a mean over images and over units, which are transfer seeds or pretrainings. Both vary; `mover` combines
their variances. docs/statistics.md explains what an interval claims.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import numpy as np

from simmim_bench.uncertainty.mover import Variance, add, margin, p_value
from simmim_bench.uncertainty.run_scores import Floats, RunScores

Unit = Literal["seed", "pretraining"]


@dataclass(frozen=True)
class Side:
    """The runs of one row.

    Attributes:
        units: the runs of each unit, as indices of `RunScores`; at least one unit of at least one run.
        keys: what identifies each unit, such as its seed; by it, units of two sides are paired.
        unit: what the units are.
        varies: whether another unit would have another score: False for a task without randomness.
    """

    units: tuple[tuple[int, ...], ...]
    keys: tuple[int | str, ...]
    unit: Unit = "seed"
    varies: bool = True

    def score(self, runs: RunScores) -> float:
        """Return the mean over units of the means over their runs; equal scores have exactly this mean."""
        return fmean(fmean(runs.scores[list(unit)].tolist()) for unit in self.units)

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
        units: sample standard deviation over units; None for a single one, and where units do not vary.
        images: standard error from the finite number of images; None if it cannot be estimated.
        total: standard error over images and units, in which the images' noise is counted once; over the images alone
            where the variance over units is unknown.
    """

    units: float | None
    images: float | None
    total: float | None = None


@dataclass(frozen=True)
class Spread:
    """The variance of one unit's score, estimated from the units of several rows.

    Attributes:
        variance: percent squared, with the noise of the images in it.
        noise: the part of it that is the images' noise.
        freedom: degrees of freedom.
        below: in a difference, a row with fewer units than this takes it instead of their variance.
    """

    variance: float
    noise: float
    freedom: float
    below: int = 2


@dataclass(frozen=True)
class Difference:
    """A difference of two scores with its 95 % interval, in percentage points.

    Attributes:
        low, high: in [-100, 100].
        p_value: the smallest significance level at which the interval excludes 0; below 0.05 exactly if this one does.
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


def uncertainty(runs: RunScores, side: Side, spread: Spread | None = None) -> Uncertainty:
    """Compute the uncertainty of one row's score.

    Args:
        spread: the variance of a unit; by default that of the row's own units.
    """
    weights = side.weights(len(runs.scores))
    means = side.by_unit(len(runs.scores)) @ runs.scores
    several = len(means) > 1 and _varies(runs, side)
    images = runs.variance(weights) ** 0.5 if runs.varies(weights) else None
    if spread is None:
        spread = pooled_spread(runs, [side])
    of_units = 0.0 if spread is None else max(spread.variance - spread.noise, 0.0) / len(means)
    return Uncertainty(
        units=float(means.std(ddof=1)) if several else None,
        images=images,
        total=None if images is None else math.sqrt(images**2 + of_units),
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
        spread: the variance of a unit pooled over several rows, these two among them. It is used if one of the two has
            fewer than `spread.below` units; by default, the variance within the other one is if one has a single unit.
    """
    of_images = Variance(_images_variance(runs, ours, theirs), 0.0, max(runs.images - 1, 1))
    of_units = _units_variance(runs, ours, theirs, paired=paired, spread=spread)
    return _interval(runs, ours, theirs, of_images, of_units)


def is_estimable(runs: RunScores, ours: Side, theirs: Side) -> bool:
    """Return whether the variance over images of a difference can be estimated; of two AP of zero it cannot."""
    return runs.varies(ours.weights(len(runs.scores)) - theirs.weights(len(runs.scores)))


def difference_of_means(
    samples: Sequence[tuple[RunScores, Side, Side]], *, paired: bool = False
) -> Difference | None:
    """Compute the difference of two rows' means over several sets of images.

    A pretraining may be good on all of them. The variance over units is therefore that of the units' means.

    Args:
        samples: of each set of images, the runs, ours and theirs.

    Returns:
        None if a row has other units on another set.
    """
    for sides in ([ours for _, ours, _ in samples], [theirs for _, _, theirs in samples]):
        if any((side.keys, side.varies) != (sides[0].keys, sides[0].varies) for side in sides):
            return None
    _, first, second = samples[0]
    mean = np.zeros(len(first.units) + len(second.units))
    covariance = np.zeros((len(mean), len(mean)))
    for runs, *pair in samples:
        weights = np.concatenate([side.by_unit(len(runs.scores)) for side in pair]) / len(samples)
        mean += weights @ runs.scores
        covariance += weights @ runs.covariance @ weights.T
    joined = RunScores(mean, covariance, min(runs.images for runs, _, _ in samples))
    ours, theirs = (
        replace(side, units=tuple((start + index,) for index in range(len(side.units))))
        for side, start in ((first, 0), (second, len(first.units)))
    )
    variance = sum(_images_variance(*sample) for sample in samples) / len(samples) ** 2
    of_images = Variance(variance, 0.0, max(joined.images - 1, 1))
    of_units = _units_variance(joined, ours, theirs, paired=paired, spread=None)
    return _interval(joined, ours, theirs, of_images, of_units)


def _images_variance(runs: RunScores, ours: Side, theirs: Side) -> float:
    """Return the variance of the difference over samples of images."""
    return runs.variance(ours.weights(len(runs.scores)) - theirs.weights(len(runs.scores)))


def _interval(
    runs: RunScores, ours: Side, theirs: Side, of_images: Variance, of_units: Variance | None
) -> Difference:
    points = ours.score(runs) - theirs.score(runs)
    half = margin(of_images, of_units)
    return Difference(
        points=points,
        low=max(points - half, -100.0),
        high=min(points + half, 100.0),
        p_value=p_value(abs(points), of_images, of_units),
        images=runs.images,
        units=(len(ours.units), len(theirs.units)),
        unit="pretraining" if "pretraining" in (ours.unit, theirs.unit) else "seed",
        without_units=of_units is None,
    )


def pooled_spread(runs: RunScores, sides: Sequence[Side]) -> Spread | None:
    """Pool the variance over units within several rows; None if each has a single unit."""
    # A mean's variance times the number of units is a unit's.
    spreads = []
    for side in sides:
        if len(side.units) > 1 and _varies(runs, side):
            mean = _mean_variance(runs, side.by_unit(len(runs.scores)))
            units = len(side.units)
            spreads.append(Spread(units * mean.value, units * mean.noise, mean.freedom))
    return pool(spreads)


def pool(spreads: Sequence[Spread]) -> Spread | None:
    """Average variances, weighted by their degrees of freedom; None without any."""
    freedom = sum(spread.freedom for spread in spreads)
    if not freedom:
        return None
    return Spread(
        variance=sum(spread.variance * spread.freedom for spread in spreads) / freedom,
        noise=sum(spread.noise * spread.freedom for spread in spreads) / freedom,
        freedom=freedom,
    )


def _units_variance(
    runs: RunScores, ours: Side, theirs: Side, *, paired: bool, spread: Spread | None
) -> Variance | None:
    """Return the variance of the difference over units; None if it cannot be estimated."""
    count = len(runs.scores)
    if paired and (order := _pairs(ours, theirs)) is not None:
        return _mean_variance(runs, ours.by_unit(count) - theirs.by_unit(count)[order])
    varying = [side for side in (ours, theirs) if _varies(runs, side)]
    if all(len(side.units) >= (spread.below if spread else 2) for side in varying):
        return add([_mean_variance(runs, side.by_unit(count)) for side in varying])
    if spread is None and len({side.unit for side in varying}) == 1:
        spread = pooled_spread(runs, varying)
    if spread is None:
        return None
    # Both sides have the pooled variance, with its degrees of freedom: it is one estimate and not independent ones.
    share = sum(1 / len(side.units) for side in varying)
    return Variance(spread.variance * share, spread.noise * share, spread.freedom)


def _pairs(ours: Side, theirs: Side) -> list[int] | None:
    """Return their unit of the same key for each of our units; None if units cannot be paired one to one."""
    position = {str(key): index for index, key in enumerate(theirs.keys)}
    keys = [str(key) for key in ours.keys]
    if len(keys) < 2 or len(set(keys)) < len(keys) or len(position) < len(theirs.keys):
        return None
    return [position[key] for key in keys] if set(keys) == set(position) else None


def _varies(runs: RunScores, side: Side) -> bool:
    """Return whether another unit would have another score."""
    return side.varies or bool(np.ptp(side.by_unit(len(runs.scores)) @ runs.scores) > 1e-9)


def _mean_variance(runs: RunScores, weights: Floats) -> Variance:
    """Return the variance of the mean of units, with the images' noise in it.

    Args:
        weights: (units, runs), of at least two units.
    """
    units = len(weights)
    values = weights @ runs.scores
    covariance = weights @ runs.covariance @ weights.T
    noise = (covariance.trace() / units - covariance.mean()) / (units - 1)
    return Variance(float(values.var(ddof=1)) / units, max(float(noise), 0.0), units - 1)
