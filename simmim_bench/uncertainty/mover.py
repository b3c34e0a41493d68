"""Combine the variance over images and the variance over units into a margin and a p-value.

Another sample of images would give another score, and so would other units, which are transfer seeds or pretrainings.
MOVER, the method of variance estimates recovery, combines the margins of both (Zou and Donner 2008, Statistics in
Medicine 27(10)):

    margin = sqrt(t(images - 1)^2 (V_images - noise) + t(units - 1)^2 V_units)

A single Student's quantile for the sum of the variances is too small for two or three units: units that agree by chance
shrink their variance. docs/statistics.md has the coverage of both.

The scores of units differ by the images' noise even if units change nothing. This noise is a part of both variances and
is counted once, in V_units. Equal scores of units do not prove its absence: the margin of V_units is at least that of a
tenth of the noise.
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
SURE_NOISE = 0.1  # with 0.5, intervals of two seeds cover 99 %


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
    """Add independent variances.

    The degrees of freedom are those of Welch (1947, Biometrika 34) for estimated variances. Satterthwaite's are fewer:
    with two units on both sides 1.4 on average, where equal variances have 2.
    """
    value = math.fsum(part.value for part in parts)
    noise = math.fsum(part.noise for part in parts)
    weight = math.fsum(part.value**2 / (part.freedom + 2) for part in parts)
    if not weight:
        return Variance(value, noise, min((part.freedom for part in parts), default=1.0))
    fewest, most = min(part.freedom for part in parts), math.fsum(part.freedom for part in parts)
    return Variance(value, noise, min(max(value**2 / weight - 2, fewest), most))


def margin(of_images: Variance, of_units: Variance | None, alpha: float = ALPHA) -> float:
    """Return half the width of the interval of level 1 - alpha."""
    of_image = float(stdtrit(of_images.freedom, alpha / 2)) ** 2
    if of_units is None:
        return math.sqrt(of_image * of_images.value)
    noise = min(of_units.noise, of_images.value)
    of_unit = float(stdtrit(of_units.freedom, alpha / 2)) ** 2
    squared = of_image * (of_images.value - noise)
    return math.sqrt(squared + max(of_unit * of_units.value, of_image * SURE_NOISE * noise))


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
