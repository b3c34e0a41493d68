"""Combine the variance over images and the variance over units into a margin and a p-value.

Another sample of images would give another score, and so would other units, which are transfer seeds or pretrainings.
MOVER, the method of variance estimates recovery, combines the margins of both (Zou and Donner 2008, Statistics in
Medicine 27(10)):

    margin = sqrt(t(images - 1)^2 V_images + t(units - 1)^2 V_units)

A single Student's quantile for the sum of the variances is too small for two or three units: units that agree by chance
shrink their variance. docs/statistics.md has the coverage of both.

The images' noise is in both variances. V_units is therefore counted only if it is above that noise, more exactly above
`threshold` of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.special import stdtrit

LEVEL = 0.95
ALPHA = 0.05  # 1 - LEVEL is another number in binary
SMALLEST_P_VALUE = 1e-12


@dataclass(frozen=True)
class Variance:
    """An estimated variance.

    Attributes:
        value: percent squared.
        noise: the part of it that is the images' noise, percent squared.
        freedom: degrees of freedom, at least 1.
    """

    value: float
    noise: float
    freedom: float


def add(parts: Sequence[Variance]) -> Variance:
    """Add independent variances, with Welch's and Satterthwaite's degrees of freedom."""
    value = math.fsum(part.value for part in parts)
    weight = math.fsum(part.value**2 / part.freedom for part in parts)
    freedom = value**2 / weight if weight else 1.0
    return Variance(value, math.fsum(part.noise for part in parts), freedom)


def margin(of_images: Variance, of_units: Variance | None, alpha: float = ALPHA) -> float:
    """Return half the width of the interval of level 1 - alpha."""
    squared = float(stdtrit(of_images.freedom, alpha / 2)) ** 2 * of_images.value
    if of_units is not None and of_units.value > threshold(of_units.freedom) * of_units.noise:
        squared += float(stdtrit(of_units.freedom, alpha / 2)) ** 2 * of_units.value
    return math.sqrt(squared)


def threshold(freedom: float) -> float:
    """Return the ratio of the variance over units to the images' noise from which on the variance is counted.

    Where units change nothing, their variance is the noise. If it is always counted, intervals of two units then cover
    99.5 %. If it is counted from the noise on, intervals of two paired units cover 89 % where units change much but
    agree by chance. Such chance is the rarer, the more degrees of freedom there are. The numbers here are chosen by
    simulation (docs/statistics.md).
    """
    return 1 - 0.6 / freedom**2


def p_value(distance: float, of_images: Variance, of_units: Variance | None) -> float:
    """Return the smallest significance level at which the interval excludes 0.

    It is below ALPHA exactly if the distance is above the margin, whatever the rounding.

    Args:
        distance: of the difference from 0, at least 0.
    """
    if distance == 0:
        return 1.0

    def excess(logarithm: float) -> float:
        return margin(of_images, of_units, math.exp(logarithm)) - distance

    smallest = math.log(SMALLEST_P_VALUE)
    level = SMALLEST_P_VALUE if excess(smallest) <= 0 else math.exp(brentq(excess, smallest, 0.0))
    if distance > margin(of_images, of_units):
        return min(level, math.nextafter(ALPHA, 0.0))
    return max(level, ALPHA)
