"""Read how a run's score varies with the images, from its stored predictions.

A score that is a mean over images, such as top-1, is read as its value on each image. For mIoU and COCO's average
precisions, scores on resamples of the images are computed: `uncertainty/bootstrap.py`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simmim_bench.errors import DataError
from simmim_bench.files import sha256_file
from simmim_bench.results.coco_matches import read_matches
from simmim_bench.results.metrics import existing_annotations, read_confusions, read_ranking
from simmim_bench.results.shift import corrupted_images, read_multilabel
from simmim_bench.tasks import Predictions, predictions_of
from simmim_bench.uncertainty.bootstrap import (
    MAX_IMAGES,
    PixelCounts,
    image_weights,
    precision_replicates,
    segmentation_replicates,
)
from simmim_bench.uncertainty.run_scores import RunScores, from_correct, from_replicates
from simmim_bench.untrusted.json_text import MAX_BYTES_OF_DATA
from simmim_bench.untrusted.paths import open_regular

RANKS = {"top1": 1, "top5": 5}


@dataclass(frozen=True)
class ImageScores:
    """One metric of one run, image by image.

    Attributes:
        score: percent, on all images.
        images: number of images.
        identity: SHA-256 of the images' ground truth; runs with equal hashes can be paired.
        correct: (images,) in [0, 1] for a score that is a mean over images, such as top-1; None for others.
        replicates: (resamples,) of the score, percent, on resamples of the images that depend on their number alone;
            None where `correct` is given. NaN where the score is not defined, such as an AP without objects.
    """

    score: float
    images: int
    identity: str
    correct: np.ndarray | None = None
    replicates: np.ndarray | None = None


def read_image_scores(
    task: str,
    predictions: Path,
    annotations: Path | None,
    metric: str,
    *,
    masks: bool = True,
    images: int | None = None,
) -> ImageScores | None:
    """Read one metric of one run, image by image.

    The last files and metrics are cached by their hashes: a 5,000-image COCO run takes about ten seconds.

    Args:
        task, predictions, annotations, masks: see `metrics.scores_from_predictions`.
        metric: key in the record's metrics.
        images: number of images that a segmentation was evaluated on, `evaluated` in the record. Its predictions do
            not mention images whose pixels are all ignored; by default, the last one mentioned is the last image.
            The predictions of other tasks show their number, and `images` is not used.

    Returns:
        None for a metric without data by image, such as a calibration error, and for an undefined score, such as an
        AP without objects.

    Raises:
        DataError: the predictions or annotations do not exist or are damaged.
    """
    kind = predictions_of(task)
    truth = None
    if kind == "coco":
        annotations = existing_annotations(annotations, predictions)
        truth = _hash(annotations, "annotation file")
    request = _Request(kind, predictions, annotations, metric, masks, images)
    return _read(request, _hash(predictions, "predictions"), truth)


def _hash(path: Path, what: str) -> str:
    """Hash a file of a limited size; a pipe or device would not end."""
    open_regular(path, what, MAX_BYTES_OF_DATA).close()
    return sha256_file(path)


@dataclass(frozen=True)
class _Request:
    """The arguments of `read_image_scores`."""

    kind: Predictions
    predictions: Path
    annotations: Path | None
    metric: str
    masks: bool
    images: int | None


@functools.lru_cache(maxsize=1024)
def _read(request: _Request, content: str, truth: str | None) -> ImageScores | None:
    """Read one metric.

    Args:
        content: hash of the predictions.
        truth: hash of the annotations.
    """
    if request.kind == "coco":
        return _read_precision(request, truth or "")
    if request.kind == "confusion":
        return _read_segmentation(request)
    return _read_correct(request)


def _read_correct(request: _Request) -> ImageScores | None:
    """Read a score that is a mean over images."""
    if request.kind == "corruptions":
        corrupted = corrupted_images(request.predictions) if request.metric == "top1" else None
        if corrupted is None:
            return None
        correct, labels = corrupted
    elif request.metric not in RANKS:
        return None
    elif request.kind == "multilabel":
        ranked, labels, _ = read_multilabel(request.predictions)
        best = ranked[:, : RANKS[request.metric], None]
        correct = (best == labels[:, None, :]).any((1, 2))
    else:
        ranking, labels = read_ranking(request.predictions)
        correct = (ranking.ranked[:, : RANKS[request.metric]] == labels[:, None]).any(1)
    return ImageScores(
        100.0 * float(correct.mean()), len(labels), _identity(request.kind, labels), correct=correct
    )


def _read_segmentation(request: _Request) -> ImageScores | None:
    """Read miou, macc or aacc."""
    entries, classes = read_confusions(request.predictions)
    image, true, predicted, pixels = entries.T
    last = int(image.max())
    images = last + 1 if request.images is None else request.images
    if last >= images or image.min() < 0 or images > MAX_IMAGES:
        raise DataError(
            f"predictions {request.predictions} cannot be read: they are of image {last:,} among {images:,}; at most "
            f"{MAX_IMAGES:,} images can be resampled."
        )
    right = true == predicted
    counts = PixelCounts(
        image=np.concatenate([image[right], image, image]),
        column=np.concatenate([true[right], classes + true, 2 * classes + predicted]),
        pixels=np.concatenate([pixels[right], pixels, pixels]),
        classes=classes,
    )
    weights = np.concatenate([np.ones((1, images), np.int32), image_weights(images)])
    scores = segmentation_replicates(counts, weights).get(request.metric)
    if scores is None:
        return None
    pairs, inverse = np.unique(image * classes + true, return_inverse=True)
    per_pair = np.zeros(len(pairs), np.int64)
    np.add.at(per_pair, inverse, pixels)
    identity = _identity(request.kind, pairs, per_pair, np.array([images, classes]))
    return _resampled(scores, images, identity)


def _read_precision(request: _Request, identity: str) -> ImageScores | None:
    """Read an average precision."""
    assert request.annotations is not None
    matches = read_matches(
        request.annotations, request.predictions, request.metric, masks=request.masks
    )
    if matches is None:
        return None
    if matches.images > MAX_IMAGES:
        raise DataError(
            f"the annotations {request.annotations} have {matches.images:,} images; at most {MAX_IMAGES:,} can be "
            "resampled."
        )
    weights = np.concatenate(
        [np.ones((1, matches.images), np.int32), image_weights(matches.images)]
    )
    return _resampled(precision_replicates(matches.classes, weights), matches.images, identity)


def _resampled(scores: np.ndarray, images: int, identity: str) -> ImageScores | None:
    """Return a score and its replicates; None if the score is not defined.

    Args:
        scores: (1 + resamples,) in [0, 1]; the first is of all images.
    """
    if np.isnan(scores[0]):
        return None
    percent = 100.0 * scores
    return ImageScores(float(percent[0]), images, identity, replicates=percent[1:])


def _identity(kind: str, *arrays: np.ndarray) -> str:
    """Return the SHA-256 of whole numbers, whatever the types in which they are stored."""
    digest = hashlib.sha256(kind.encode())
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array, "<i8").tobytes())
    return digest.hexdigest()


def join_runs(runs: Sequence[ImageScores]) -> RunScores:
    """Join the scores of runs on the same images.

    Raises:
        DataError: the runs were scored on different images.
    """
    if len({(run.images, run.identity) for run in runs}) > 1:
        raise DataError("the runs were scored on different images; evaluate them on the same ones.")
    correct = [run.correct for run in runs if run.correct is not None]
    if len(correct) == len(runs):
        return from_correct(np.stack(correct))
    replicates = np.stack([run.replicates for run in runs if run.replicates is not None])
    # Few images may give a resample without an object or a pixel, in which no run has a score.
    defined = np.isfinite(replicates).all(0)
    if np.count_nonzero(defined) < 2:
        raise DataError("the images have too few objects or pixels to resample them.")
    return from_replicates([run.score for run in runs], replicates[:, defined], runs[0].images)
