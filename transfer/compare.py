"""Is it worth it? The difference between two starts under one recipe, with its interval.

In: the run directories of a checkpoint's transfers and of a baseline's, seed by seed. Out: the difference
in top-1 and a 95 % interval, paired: both starts have seen the same images, and an image that is hard for
one is hard for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import sha256_file
from simmim_bench.results.metrics import correct_from_predictions
from simmim_bench.results.record import Record, read_record

MUST_AGREE = ("recipe", "data", "task", "deviates")


@dataclass(frozen=True)
class Difference:
    """A difference in top-1, in percentage points, and its 95 % interval."""

    points: float
    low: float
    high: float
    images: int
    seeds: int

    def __str__(self) -> str:
        by = f"{self.images} images" + (f" and {self.seeds} seeds" if self.seeds > 1 else "")
        return f"{self.points:+.2f} points of top1, 95% from {self.low:+.2f} to {self.high:+.2f}, over {by}"


def paired_difference(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """Compare two starts by which images each gets right.

    The variance is that of the images' mean differences, by images, plus that of the seeds' differences, by
    seeds; what both share is counted twice, so that the interval is rather too wide than too narrow. Few
    seeds say little of their own spread: the interval is Student's, with Satterthwaite's degrees of freedom.

    Args:
        ours, theirs: (seeds, images) of 0 and 1, the same seeds and images in the same order.
    """
    gains = ours.astype(np.float64) - theirs
    seeds, images = gains.shape
    parts = [
        (gains.mean(axis).var(ddof=1) / n, n - 1) for axis, n in enumerate((images, seeds)) if n > 1
    ]
    variance = sum(part for part, _ in parts)
    weight = sum(part**2 / freedom for part, freedom in parts)
    quantile = stdtrit(variance**2 / weight, 0.975) if weight else 0.0
    points, spread = 100 * gains.mean(), 100 * quantile * variance**0.5
    return Difference(float(points), float(points - spread), float(points + spread), images, seeds)


def compare_runs(ours: Sequence[Path], theirs: Sequence[Path]) -> Difference:
    """Compare finished runs, the first with the first and so on.

    Raises:
        UsageError: two runs that cannot be compared: another task, recipe, data or seed.
        DataError: a record or its predictions cannot be read, or the predictions are not the record's.
    """
    pairs = [
        (read_record(a / "record.json"), read_record(b / "record.json"))
        for a, b in zip(ours, theirs, strict=True)
    ]
    for (one, other), path in zip(pairs, theirs, strict=True):
        differing = [name for name in MUST_AGREE if getattr(one, name) != getattr(other, name)]
        if one.seed != other.seed:
            differing.append("seed")
        if differing:
            raise UsageError(f"{path} is no baseline for this run: another {', '.join(differing)}.")
    right = [
        np.stack([_correct(run, record) for run, record in side])
        for side in (
            zip(ours, (a for a, _ in pairs), strict=True),
            zip(theirs, (b for _, b in pairs), strict=True),
        )
    ]
    return paired_difference(*right)


def _correct(run: Path, record: Record) -> np.ndarray:
    """Say of every image whether a run gets it right; its predictions must be those that were scored."""
    predictions = run / record.predictions["file"]
    correct = correct_from_predictions(predictions)
    if sha256_file(predictions) != record.predictions["sha256"]:
        raise DataError(f"{predictions} are not the predictions that were scored; run {run} again.")
    return correct
