"""Power: the difference that a planned comparison can show."""

from __future__ import annotations

from scipy.special import ndtri, stdtrit

from simmim_bench.uncertainty.interval import LEVEL

POWER = 0.8


def smallest_difference(
    *,
    image_sd: float,
    unit_sd: float,
    units: int,
    freedom: float | None = None,
    power: float = POWER,
) -> float | None:
    """Compute the true difference of two rows whose interval excludes 0 with a probability of `power`.

    Args:
        image_sd: standard deviation of the difference over samples of as many images as planned, percentage points.
        unit_sd: standard deviation of one unit's score, percentage points; 0 for a task without randomness.
        units: planned units (transfer seeds or pretrainings) of either row.
        freedom: degrees of freedom of the variance over units; by default those of both rows.

    Returns:
        Percentage points; None if the units vary and their variance cannot be estimated.
    """
    freedom = 2.0 * (units - 1) if freedom is None else freedom
    variance = 2 * unit_sd**2 / units
    if variance and freedom <= 0:
        return None
    alpha = 1 - LEVEL
    margin = float(ndtri(1 - alpha / 2)) ** 2 * image_sd**2
    if variance:
        margin += float(stdtrit(freedom, 1 - alpha / 2)) ** 2 * variance
    beyond = float(ndtri(power)) * (image_sd**2 + variance) ** 0.5
    return float(margin**0.5 + beyond)
