"""Combine the variance over images and the variance over units into a margin and a p-value.

Another sample of images would give another score, and so would other units, which are transfer seeds or pretrainings.
MOVER, the method of variance estimates recovery, combines the margins of both (Zou and Donner 2008, Statistics in
Medicine 27(10)):

    margin = sqrt(t(images - 1)^2 V_images + t(units - 1)^2 V_units)

A single Student's quantile for the sum of the variances is too small for two or three units: units that agree by chance
shrink their variance. docs/statistics.md has the coverage of both.

The scores of units differ by the images' noise even if units change nothing: it is a part of both variances. V_units is
therefore counted beyond this noise only, and in part where it is not far above it; see `margin`.
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
# Ratios of V_units to the images' noise from which on V_units is counted, and from which on in full. Always in full,
# intervals of two seeds cover 98.5 to 99 % where seeds change nothing; only from the noise on, 89 to 92 % where seeds
# change much but agree by chance. Chosen by simulation.
COUNTED, COUNTED_IN_FULL = 0.3, 1.3


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
    """Return half the width of the interval of level 1 - alpha.

    What V_units adds to the margin of V_images is its own margin without that of the noise, which V_images has. It is
    counted with a weight that grows with the ratio of V_units to the noise.
    """
    of_image = float(stdtrit(of_images.freedom, alpha / 2)) ** 2
    squared = of_image * of_images.value
    if of_units is not None and of_units.value > 0:
        noise = min(of_units.noise, of_images.value)
        added = float(stdtrit(of_units.freedom, alpha / 2)) ** 2 * of_units.value - of_image * noise
        squared += _weight(of_units) * max(added, 0.0)
    return math.sqrt(squared)


def _weight(of_units: Variance) -> float:
    """Return the weight in [0, 1] with which a variance over units is counted."""
    if of_units.value >= COUNTED_IN_FULL * of_units.noise:
        return 1.0
    ratio = of_units.value / of_units.noise
    return max(ratio - COUNTED, 0.0) / (COUNTED_IN_FULL - COUNTED)


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
