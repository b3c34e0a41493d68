"""Scores on resamples of the images, for scores that are no mean over images: mIoU and average precision.

A resample has as many images as the data set, sampled with replacement (Efron 1979, The Annals of Statistics 7(1)). It
is described by how often each image occurs in it. These weights depend on the number of images alone: runs on the same
images have the same resamples, and their scores vary together as they do over samples of images.

Legend: B resamples, N images, K classes, T IoU thresholds, D detections.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Integers = NDArray[np.integer]
Booleans = NDArray[np.bool_]

RESAMPLES = 400  # a standard error from them varies by 1 / sqrt(2 * 400), 3.5 %
MAX_IMAGES = 200_000  # their weights take 320 MB
CHUNK = 1 << 23  # numbers of an intermediate array: 64 MiB
RECALLS = np.linspace(
    0.0, 1.0, 101
)  # at which COCO averages the precision: pycocotools, cocoeval.py


@functools.lru_cache(maxsize=2)
def image_weights(images: int, resamples: int = RESAMPLES) -> Integers:
    """Return how often each image occurs in each resample, (B, N), which sum to N.

    Args:
        images: at most `MAX_IMAGES`.
    """
    generator = np.random.default_rng(images)
    weights = np.empty((resamples, images), np.int32)
    for row in weights:
        # The stream of `random` has not changed since NumPy 1.17; that of `integers` and `multinomial` may.
        sampled = (generator.random(images) * images).astype(np.int64)
        row[:] = np.bincount(sampled, minlength=images)
    weights.flags.writeable = False  # it is shared by all callers
    return weights


@dataclass(frozen=True)
class PixelCounts:
    """The pixels of a segmentation by image and class: E entries above zero.

    Attributes:
        image, column: (E,); the column of class k is k for its correct pixels, K + k for its pixels in the ground
            truth, 2 K + k for its predicted pixels.
        pixels: (E,).
        classes: K.
    """

    image: Integers
    column: Integers
    pixels: Integers
    classes: int


def segmentation_replicates(counts: PixelCounts, weights: Integers) -> dict[str, Floats]:
    """Compute miou, macc and aacc of weighted images, (B,) each in [0, 1].

    A class that occurs in no image of the resample is left out of the means, as by `metrics.segmentation_scores`. A
    score of a resample without pixels is NaN.

    Args:
        weights: (B, N).
    """
    shape = (weights.shape[1], 3 * counts.classes)
    by_image = csr_array((counts.pixels.astype(np.float64), (counts.image, counts.column)), shape)
    sums = (by_image.T @ weights.T).T.reshape(len(weights), 3, counts.classes)
    correct, true, predicted = sums[:, 0], sums[:, 1], sums[:, 2]
    return {
        "miou": _mean_ratio(correct, true + predicted - correct),
        "macc": _mean_ratio(correct, true),
        "aacc": _mean_ratio(correct.sum(1, keepdims=True), true.sum(1, keepdims=True)),
    }


def _mean_ratio(part: Floats, whole: Floats) -> Floats:
    """Return the means (B,) of ratios (B, K) over the classes whose denominator is above zero."""
    known = whole > 0
    ratios = np.divide(part, whole, out=np.zeros_like(whole), where=known)
    return _ratio(ratios.sum(1), known.sum(1))


def _ratio(part: Floats, whole: Floats | Integers) -> Floats:
    """Return a ratio; NaN where the denominator is zero."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class, in descending order of their scores, and what they were matched with.

    Attributes:
        image: (D,) image of each detection.
        correct: (T, D) whether a detection is matched with an object that counts.
        ignored: (T, D) whether a detection is neither right nor wrong, such as one that is matched with a crowd.
        objects: (G,) image of each object that counts.
    """

    image: Integers
    correct: Booleans
    ignored: Booleans
    objects: Integers


def precision_replicates(classes: Iterable[ClassMatches], weights: Integers) -> Floats:
    """Compute COCO's average precision of weighted images, (B,) in [0, 1].

    An image of weight w counts as w images, whose detections of one score are ranked one after another. Classes
    without an object in a resample are left out of its mean; without any, the mean is NaN.

    Args:
        weights: (B, N).
    """
    by_image = np.ascontiguousarray(weights.T)
    total, count = np.zeros(len(weights)), np.zeros(len(weights), np.int64)
    for matches in classes:
        for part in _chunks(len(weights), max(len(matches.image), len(matches.objects))):
            objects = by_image[matches.objects, part].sum(0, dtype=np.int64)
            total[part] += _average_precision(matches, by_image[:, part], objects)
            count[part] += objects > 0
    return _ratio(total, count)


def _chunks(resamples: int, rows: int) -> Iterator[slice]:
    """Yield parts of the resamples whose arrays of (rows, part) have at most `CHUNK` numbers."""
    size = max(CHUNK // max(rows, 1), 1)
    for start in range(0, resamples, size):
        yield slice(start, start + size)


def _average_precision(matches: ClassMatches, by_image: Integers, objects: Integers) -> Floats:
    """Compute the average precision of one class, (B,); 0 without an object.

    Args:
        by_image: (N, B) weights.
        objects: (B,) number of objects that count.
    """
    weights = by_image[matches.image]
    ranked = weights.cumsum(0, dtype=np.int64)  # detections down to each one
    result = np.zeros(len(objects))
    for correct, ignored in zip(matches.correct, matches.ignored, strict=True):
        hits = np.flatnonzero(correct & ~ignored)
        if not len(hits):
            continue
        found = weights[hits].cumsum(0, dtype=np.int64)
        counted = ranked[hits]
        if ignored.any():
            left_out = np.flatnonzero(ignored)
            before = np.searchsorted(left_out, hits)
            skipped = weights[left_out].cumsum(0, dtype=np.int64)
            counted = counted - np.where(before[:, None] > 0, skipped[before - 1], 0)
        # Between two hits, the precision only falls; so the highest one from each recall on is at a hit.
        precision = found / np.maximum(counted, 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        recall = found / np.maximum(objects, 1)
        reached = np.searchsorted(RECALLS, recall, side="right")
        result += np.einsum("db,db->b", precision, np.diff(reached, axis=0, prepend=0))
    return np.where(objects > 0, result / (len(RECALLS) * len(matches.correct)), 0.0)
