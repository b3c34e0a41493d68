"""Power: the difference that a planned comparison can show."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr

from simmim_bench.uncertainty.mover import Variance, add, margin

POWER = 0.8
QUANTILES = 50  # of an estimated variance, at which the power is computed


def smallest_difference(
    *,
    image_sd: float,
    unit_sd: float,
    units: int,
    freedom: float | None = None,
    power: float = POWER,
    noise_sd: float = 0.0,
    images: int | None = None,
) -> float | None:
    """Compute the true difference of two rows whose interval excludes 0 with a probability of `power`.

    The interval's margin varies with the variance that the planned units happen to have; the power is the mean over it.

    Args:
        image_sd: standard deviation of the difference over samples of as many images as planned, percentage points.
        unit_sd: standard deviation of one unit's score, percentage points; 0 for a task without randomness. For paired
            units, that of their differences divided by sqrt(2).
        units: planned units (transfer seeds or pretrainings) of either row.
        freedom: degrees of freedom of the variance over units where it is a single estimate: pooled over rows, or of
            paired units (units - 1). By default, each row estimates its variance from its own units.
        noise_sd: the part of `unit_sd` that is noise of the images, percentage points: the square root of
            `Spread.noise`. It is in `image_sd` as well.
        images: number of planned images, from which `image_sd` is estimated; None if it is known.

    Returns:
        Percentage points; None if the units vary and their variance cannot be estimated.
    """
    known = freedom if freedom is not None else units - 1
    if unit_sd and known <= 0:
        return None
    of_images = Variance(image_sd**2, 0.0, max(images - 1, 1) if images else 1e9)
    row = Variance(unit_sd**2 / units, noise_sd**2 / units, known)
    estimates: list[tuple[float, Variance | None]]
    if not unit_sd:
        estimates = [(1.0, None)]
    elif freedom is None:
        estimates = [*_two_estimates(row)]
    else:
        both = Variance(2 * row.value, 2 * row.noise, known)
        estimates = [(1.0, estimate) for estimate in _estimates(both)]
    weights = np.array([weight for weight, _ in estimates])
    margins = np.array([margin(of_images, estimate) for _, estimate in estimates])
    sd = (image_sd**2 + 2 * max(row.value - row.noise, 0.0)) ** 0.5
    if not sd:
        return float(margins.max())

    def excess(points: float) -> float:
        excluded = ndtr((points - margins) / sd) + ndtr((-points - margins) / sd)
        return float(np.average(excluded, weights=weights)) - power

    return float(brentq(excess, 0.0, margins.max() + 10 * sd))


def _estimates(truth: Variance) -> list[Variance]:
    """Return equally probable estimates of a variance."""
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    ratios = chdtri(truth.freedom, 1 - shares) / truth.freedom
    return [Variance(truth.value * float(r), truth.noise, truth.freedom) for r in ratios]


def _two_estimates(row: Variance) -> Iterator[tuple[float, Variance]]:
    """Yield sums of two independent estimates with their weights."""
    estimates = _estimates(row)
    for index, other in combinations_with_replacement(range(QUANTILES), 2):
        yield (1.0 if index == other else 2.0), add([estimates[index], estimates[other]])
