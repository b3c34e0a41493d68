"""Forecast the difference that planned rows can show with 80 % power, from the spread of earlier records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from simmim_bench.display import align_columns
from simmim_bench.leaderboard.at_hand import RecordsAtHand, Target, count_images
from simmim_bench.leaderboard.spread import (
    ImageSpread,
    UnitSpread,
    assume_spread,
    measure_spread,
)
from simmim_bench.uncertainty.interval import Unit
from simmim_bench.uncertainty.power import POWER, smallest_difference

ALTERNATIVES = (2, 3, 5, 10)  # numbers of units that a plan is compared with
NO_RANDOMNESS = "no randomness"
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The smallest true difference of two rows that a plan shows, in percentage points.

    Attributes:
        metric: key in the record's metrics.
        units: planned seeds or pretrainings of a row; `unit` is what they are.
        images: images that are scored; None if their number is unknown.
        power: probability with which the 95 % interval of the difference excludes 0.
        points: the smallest difference; None if the plan or the records at hand do not determine it.
        images_alone: the same by the spread over images alone.
        by_units: the same for other numbers of units.
        unit_sd: sample standard deviation over units; None if unknown, 0 for a task without randomness.
        unit_source: the records that it is of.
        image_sd: standard deviation of a difference over samples of the images; None if unknown.
        image_source: what it rests on.
    """

    metric: str
    unit: Unit
    units: int
    images: int | None
    points: float | None
    images_alone: float | None
    by_units: Mapping[int, float]
    unit_sd: float | None
    unit_source: str
    image_sd: float | None
    image_source: str
    power: float = POWER

    def to_json(self) -> dict[str, Any]:
        """Return the plain form."""
        return asdict(self)


def make_forecast(
    at_hand: RecordsAtHand,
    target: Target,
    units: int,
    count_files: Callable[[], int | None],
    *,
    pool: bool = False,
) -> Forecast:
    """Forecast the smallest difference of two rows of a plan.

    Args:
        units: planned seeds or pretrainings of every row.
        count_files: counts the images that will be scored; called if no record of the same data has their number.
        pool: whether rows of a single unit are compared by the spread of the units of rows with several.
    """
    numbers = sorted({units, *ALTERNATIVES})
    of_units, of_images = measure_spread(at_hand, target, numbers)
    of_images = of_images or assume_spread(at_hand, target, numbers)
    images = count_images(at_hand, target)
    if images is None:
        images = count_files()
        images = images if target.limit is None or images is None else min(images, target.limit)

    def smallest(number: int, *, alone: bool = False) -> float | None:
        image_sd = _image_sd(of_images, number, images)
        if image_sd is None:
            return None
        if alone or not target.varies:
            return smallest_difference(image_sd=image_sd, unit_sd=0.0, units=number, images=images)
        if of_units is None or (number < 2 and not (pool and of_units.comparable)):
            return None
        spread = of_units.spread
        return smallest_difference(
            image_sd=image_sd,
            unit_sd=spread.variance**0.5,
            units=number,
            freedom=_freedom(target, number, spread.freedom),
            noise_sd=spread.noise**0.5,
            images=images,
        )

    return Forecast(
        metric=target.metric,
        unit=target.unit,
        units=units,
        images=images,
        points=smallest(units),
        images_alone=smallest(units, alone=True),
        by_units={n: points for n in ALTERNATIVES if (points := smallest(n)) is not None},
        unit_sd=_unit_sd(of_units, target),
        unit_source=_unit_source(of_units, target),
        image_sd=_image_sd(of_images, units, images),
        image_source=_image_source(of_images, at_hand, target),
    )


def _freedom(target: Target, units: int, pooled: float) -> float | None:
    """Return the degrees of freedom of a single variance over units; None where each row has its own."""
    if units < 2:
        return pooled
    return units - 1 if target.paired else None


def _image_sd(spread: ImageSpread | None, units: int, images: int | None) -> float | None:
    """Return the standard deviation of a difference over samples of the planned number of images."""
    if spread is None or not images:
        return None
    return (spread.by_units[units] / images) ** 0.5


def _unit_sd(spread: UnitSpread | None, target: Target) -> float | None:
    if not target.varies:
        return 0.0
    return None if spread is None else spread.spread.variance**0.5


def _unit_source(spread: UnitSpread | None, target: Target) -> str:
    if not target.varies:
        return NO_RANDOMNESS
    return f"no row has several {target.unit}s" if spread is None else spread.source


def _image_source(spread: ImageSpread | None, at_hand: RecordsAtHand, target: Target) -> str:
    if spread is not None:
        return spread.source
    return "too large to read" if target.task in at_hand.unread else "no two rows at hand"


def forecast_text(forecasts: Sequence[tuple[str, Forecast]]) -> list[str]:
    """Return the forecasts as a plain-text table, with what each rests on.

    Args:
        forecasts: with the name of each.
    """
    if not forecasts:
        return []
    unit = forecasts[0][1].unit
    percent = f"{100 * POWER:.0f} %"
    titles = (
        f"{unit}s",
        "images",
        "difference",
        "alternative",
        f"SD over {unit}s",
        "SD over images",
    )
    rows = [(f"{percent} power", *titles)]
    for name, one in forecasts:
        rows.append(
            (
                name,
                str(one.units),
                UNKNOWN if one.images is None else f"{one.images:,}",
                _points(one),
                _alternative(one),
                _sd(one.unit_sd, one.unit_source),
                _sd(one.image_sd, one.image_source),
            )
        )
    lines = [
        *align_columns(rows),
        "difference: the smallest true difference of two rows, in points, whose 95 % interval excludes 0 with "
        f"a probability of {percent}",
    ]
    if any(one.units == 1 and one.unit_sd and one.points is not None for _, one in forecasts):
        lines.append(f"one {unit}: the spread of rows with several {unit}s is used")
    return lines


def _points(one: Forecast) -> str:
    if one.points is not None:
        return f"{one.points:.1f}"
    if one.images_alone is None or f"{one.images_alone:.1f}" == "0.0":  # such as of an AP of zero
        return UNKNOWN
    if one.units < 2:
        return f"one {one.unit} shows none"
    return f"more than {one.images_alone:.1f}"


def _alternative(one: Forecast) -> str:
    """Return what the next larger number of units would show; empty if it would show no more."""
    if one.unit_sd == 0:
        return ""
    number = next((n for n in ALTERNATIVES if n > max(one.units, 2)), None)
    if number is None:
        return ""
    points = one.by_units.get(number)
    if points is None:
        return f"--seeds {number}" if one.points is None and one.units < 2 else ""
    if one.points is not None and f"{points:.1f}" == f"{one.points:.1f}":
        return ""
    return f"--seeds {number}: {points:.1f}"


def _sd(value: float | None, source: str) -> str:
    """Return a standard deviation with what it rests on."""
    if source == NO_RANDOMNESS:
        return source
    return f"{UNKNOWN if value is None else f'{value:.1f}'} ({source})"
