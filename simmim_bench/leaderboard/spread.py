"""Measure how the scores of earlier records vary with seeds or pretrainings, and with the images.

A plan says from this what differences it can show (`forecast.py`). Each spread is that of the most similar records
that have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from simmim_bench.display import plural
from simmim_bench.leaderboard.at_hand import (
    MOST_RUNS,
    SAME_PROTOCOL,
    RecordsAtHand,
    Sample,
    Target,
    by_similarity,
    read_samples,
)
from simmim_bench.tasks import predictions_of
from simmim_bench.uncertainty.interval import Side, Spread, pool, pooled_spread
from simmim_bench.uncertainty.run_scores import Floats, RunScores


@dataclass(frozen=True)
class UnitSpread:
    """The variance of one unit's score; if rows are paired by unit, half of that of their differences.

    Attributes:
        source: the records that it is of, in words.
        comparable: whether they have the recipe and data of the plan.
    """

    spread: Spread
    source: str
    comparable: bool


@dataclass(frozen=True)
class ImageSpread:
    """The variance over images of a difference of two rows.

    Attributes:
        by_units: of one image, percent squared, by the number of units in a row's mean. Divided by a number of
            images, it is the variance of the difference on these.
        source: what it rests on, in words.
    """

    by_units: Mapping[int, float]
    source: str


def measure_spread(
    at_hand: RecordsAtHand, target: Target, numbers: Sequence[int]
) -> tuple[UnitSpread | None, ImageSpread | None]:
    """Measure the spread over units and over images, each from the most similar records that have it.

    Args:
        numbers: numbers of units that a row of the plan may have.

    Returns:
        None for what no record has.
    """
    units: UnitSpread | None = None
    images: ImageSpread | None = None
    for kind, paths in by_similarity(at_hand.records, target):
        samples = list(read_samples(at_hand, paths, target))
        units = units or _unit_spread(samples, target, kind)
        images = images or _image_spread(samples, numbers, kind)
        if images and (units or not target.varies):
            break
    return units, images


def assume_spread(
    at_hand: RecordsAtHand, target: Target, numbers: Sequence[int]
) -> ImageSpread | None:
    """Assume that the errors of two rows are independent, at the accuracy of the most similar records or at 50 %.

    Errors of two models on the same images are in general positively correlated; a difference then varies less.

    Returns:
        None for a metric that is no accuracy.
    """
    if predictions_of(target.task) != "ranking" or target.metric != "top1":
        return None
    accuracy, whose = 50.0, "50 %"
    for kind, paths in by_similarity(at_hand.records, target):
        found = [at_hand.records[path].metrics[target.metric] for path in paths]
        if found:
            accuracy = float(np.mean(found))
            whose = f"{accuracy:.1f} %, {plural(len(found), 'record')}, {kind}"
            break
    variance = 2 * accuracy * (100 - accuracy)
    return ImageSpread(dict.fromkeys(numbers, variance), f"assumed: independent errors at {whose}")


def _unit_spread(samples: Sequence[Sample], target: Target, kind: str) -> UnitSpread | None:
    """Pool the variance over units within the rows of all samples; None if each row has a single unit."""
    if not target.varies:
        return None
    found = (
        [pair for sample in samples for pair in _paired_spreads(sample)] if target.paired else []
    )
    paired = bool(found)
    if not paired:
        varying = [(s.runs, [side for side in s.sides if side.varies]) for s in samples]
        found = [
            (spread, sum(len(side.units) for side in sides if len(side.units) > 1))
            for runs, sides in varying
            if (spread := pooled_spread(runs, sides)) is not None
        ]
    pooled = pool([spread for spread, _ in found])
    if pooled is None:
        return None
    units = sum(number for _, number in found)
    what = f"pairs of {target.unit}s" if paired else f"{target.unit}s"
    return UnitSpread(
        pooled,
        f"{units} {what}, {kind}",
        comparable=kind == SAME_PROTOCOL,
    )


def _paired_spreads(sample: Sample) -> Iterator[tuple[Spread, int]]:
    """Yield half of the variance of the difference of two rows over common units, and the number of these."""
    count_runs = len(sample.runs.scores)
    for ours, theirs in combinations(sample.sides[:MOST_RUNS], 2):
        keys = [key for key in ours.keys if key in theirs.keys]
        if len(keys) < 2 or not (ours.varies and theirs.varies):
            continue
        weights = np.stack(
            [
                ours.by_unit(count_runs)[ours.keys.index(key)]
                - theirs.by_unit(count_runs)[theirs.keys.index(key)]
                for key in keys
            ]
        )
        differences = RunScores(
            weights @ sample.runs.scores,
            weights @ sample.runs.covariance @ weights.T,
            sample.runs.images,
        )
        side = Side(tuple((number,) for number in range(len(keys))), tuple(keys))
        spread = pooled_spread(differences, [side])
        assert spread is not None
        yield Spread(spread.variance / 2, spread.noise / 2, spread.freedom), len(keys)


def _image_spread(
    samples: Sequence[Sample], numbers: Sequence[int], kind: str
) -> ImageSpread | None:
    """Average the variance over images of the differences of all pairs of rows; None without a pair."""
    rows = sum(len(s.sides) for s in samples if s.has_images and len(s.sides) > 1)
    if not rows:
        return None
    by_units = {
        number: float(
            np.mean(
                [
                    sample.runs.variance(
                        _first(ours, number, sample) - _first(theirs, number, sample)
                    )
                    * sample.runs.images
                    for sample in samples
                    if sample.has_images
                    for ours, theirs in combinations(sample.sides, 2)
                ]
            )
        )
        for number in numbers
    }
    return ImageSpread(by_units, f"{rows} rows, {kind}")


def _first(side: Side, number: int, sample: Sample) -> Floats:
    """Return the weight of every run in the mean over the first units of a side."""
    return replace(side, units=side.units[:number]).weights(len(sample.runs.scores))
