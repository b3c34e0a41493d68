"""Compare two initialisations under one recipe: the difference in top-1 with its 95 % interval.

The comparison is paired: both fine-tuned models are scored on the same images, and an image that is hard for one
is hard for the other. Runs are paired by seed as well.
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

MUST_AGREE = ("recipe", "data", "task", "deviates", "seed")  # fields of paired records


@dataclass(frozen=True)
class Difference:
    """A difference in top-1 with its 95 % interval, in percentage points.

    Attributes:
        images, seeds: the numbers of images and seeds that the difference is the mean over.
    """

    points: float
    low: float
    high: float
    images: int
    seeds: int

    def __str__(self) -> str:
        by = f"{self.images} images" + (f" and {self.seeds} seeds" if self.seeds > 1 else "")
        return f"{self.points:+.2f} points of top1, 95% from {self.low:+.2f} to {self.high:+.2f}, over {by}"


def paired_difference(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """Compute the difference in top-1 of two models from the images that each classifies correctly.

    The variance is the variance of the images' mean differences, divided by the number of images, plus the
    variance of the seeds' mean differences, divided by the number of seeds. Their common part is counted twice,
    so that the interval is too wide rather than too narrow. Few seeds estimate their variance poorly; the
    interval is therefore Student's, with Satterthwaite's degrees of freedom.

    Args:
        ours, theirs: (seeds, images) of 0 and 1, the same seeds and images in the same order.
    """
    gains = ours.astype(np.float64) - theirs
    seeds, images = gains.shape
    terms = [
        (gains.mean(axis).var(ddof=1) / n, n - 1) for axis, n in enumerate((images, seeds)) if n > 1
    ]
    variance = sum(term for term, _ in terms)
    weight = sum(term**2 / freedom for term, freedom in terms)
    quantile = stdtrit(variance**2 / weight, 0.975) if weight else 0.0
    points, margin = 100 * gains.mean(), 100 * quantile * variance**0.5
    return Difference(float(points), float(points - margin), float(points + margin), images, seeds)


def compare_runs(ours: Sequence[Path], theirs: Sequence[Path]) -> Difference:
    """Compare finished runs, the first with the first and so on.

    Args:
        ours, theirs: run directories of the same tasks and seeds.

    Raises:
        UsageError: two runs differ in task, recipe, data or seed.
        DataError: a record or its predictions cannot be read, or the predictions are not the record's.
    """
    our_records = [read_record(run / "record.json") for run in ours]
    their_records = [read_record(run / "record.json") for run in theirs]
    for record, other, path in zip(our_records, their_records, theirs, strict=True):
        _check_comparable(record, other, path)
    return paired_difference(
        np.stack([_correct(*pair) for pair in zip(ours, our_records, strict=True)]),
        np.stack([_correct(*pair) for pair in zip(theirs, their_records, strict=True)]),
    )


def _check_comparable(record: Record, baseline: Record, path: Path) -> None:
    """Raise an error if a record cannot serve as a baseline.

    Args:
        path: the baseline's run directory.
    """
    differing = [name for name in MUST_AGREE if getattr(record, name) != getattr(baseline, name)]
    if differing:
        raise UsageError(
            f"{path} cannot serve as the baseline of this run: different {', '.join(differing)}; run the baseline "
            "with the same recipe, data and seed."
        )


def _correct(run: Path, record: Record) -> np.ndarray:
    """Return whether a run classifies each image correctly, (N,) bool, from the predictions that were scored."""
    predictions = run / record.predictions["file"]
    correct = correct_from_predictions(predictions)
    if sha256_file(predictions) != record.predictions["sha256"]:
        raise DataError(
            f"predictions {predictions} are not the ones that were scored; run {run} again."
        )
    return correct
