"""Predictions and scores of the shift sets whose images have several labels, or which are one set many times.

ReaL (arXiv 2006.07159) has a list of labels per image: a prediction that is among them is right. ImageNet-C (arXiv
1903.12261) has the validation images under 19 corruptions in 5 severities each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from simmim_bench.errors import DataError
from simmim_bench.files import write_arrays
from simmim_bench.untrusted.arrays import read_arrays

MULTILABEL = {"ranked": "iu", "logits": "f", "labels": "iu", "classes": "iu"}
CORRUPTED = {"best": "iu", "labels": "iu", "conditions": "iu", "classes": "iu", "imagenet": "iu"}
MAX_CLASSES = 2**31 - 1
SEVERITIES = 5
# The corruptions of the mean corruption error, in the order of hendrycks/robustness: ImageNet-C/test.py, and AlexNet's
# errors on them, means over the severities: google-research/augmix, imagenet.py (ALEXNET_ERR), which names
# hendrycks/robustness as their source.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
# Meant for choosing hyper-parameters, and in no mean: the folder extra/ of the published archives.
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
CORRUPTIONS = (*ALEXNET_ERRORS, *EXTRA_CORRUPTIONS)


def condition_number(corruption: str, severity: int) -> int:
    """Return the number of a corruption in a severity (1 to 5) in stored predictions."""
    return CORRUPTIONS.index(corruption) * SEVERITIES + severity - 1


def write_multilabel(
    path: Path,
    ranked: np.ndarray,
    logits: np.ndarray,
    labels: Sequence[Sequence[int]],
    classes: int,
) -> None:
    """Write ranked classes with several labels per image.

    Args:
        ranked: (N, ranks) class numbers, best first; see `metrics.Ranking`.
        logits: (N, ranks), of the ranked classes.
        labels: one label or more of every image.
        classes: number of classes.
    """
    padded = np.full((len(labels), max(map(len, labels))), -1, np.int32)
    for row, own in zip(padded, labels, strict=True):
        row[: len(own)] = own
    write_arrays(path, ranked=ranked, logits=logits, labels=padded, classes=np.array(classes))


def multilabel_scores(predictions: Path) -> dict[str, float]:
    """Compute top1 and top5, in percent, from a file of `write_multilabel`.

    An image counts as right if its best class, or one of the best five, is among its labels: timm's
    data/real_labels.py.

    Raises:
        DataError: the predictions do not exist or are damaged.
    """
    ranked, labels, classes = read_multilabel(predictions)
    right = (ranked[:, :, None] == labels[:, None, :]).any(2)
    scores = {"top1": 100.0 * float(np.mean(right[:, 0]))}
    if classes > 5:
        scores["top5"] = 100.0 * float(np.mean(right[:, :5].any(1)))
    return scores


def read_multilabel(predictions: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Read and check a file of `write_multilabel`.

    Returns:
        The ranked classes (N, ranks), the labels (N, most of an image), padded with -1, and the number of classes.

    Raises:
        DataError: the predictions do not exist or are damaged.
    """
    stored = read_arrays(predictions, "predictions", MULTILABEL)
    try:
        return _multilabel(stored)
    except ValueError as error:
        raise _unreadable(predictions, error) from error


def _multilabel(stored: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    ranked, labels, classes = stored["ranked"], stored["labels"], _number_of_classes(stored)
    if ranked.ndim != 2 or labels.ndim != 2 or len(ranked) != len(labels) or not ranked.size:
        raise ValueError(f"{ranked.shape} ranked classes and {labels.shape} labels do not fit")
    if ranked.shape[1] < min(classes, 5):
        raise ValueError(f"it ranks {ranked.shape[1]} of {classes:,} classes")
    if stored["logits"].shape != ranked.shape or not np.isfinite(stored["logits"]).all():
        raise ValueError("the logits are not those of the ranked classes")
    if ranked.min() < 0 or labels.min() < -1 or max(ranked.max(), labels.max()) >= classes:
        raise ValueError(f"a class number is not in [0, {classes})")
    if not (labels >= 0).any(1).all():
        raise ValueError("an image has no label")
    return ranked.astype(np.int64), labels.astype(np.int64), classes


def write_corruptions(
    path: Path,
    best: np.ndarray,
    labels: np.ndarray,
    conditions: np.ndarray,
    *,
    classes: int,
    imagenet: bool,
) -> None:
    """Write the best class of every image of every condition: 2 bytes an image, 10 MB for ImageNet-C.

    Args:
        best, labels: (N,) class numbers.
        conditions: (N,) numbers of `condition_number`.
        classes: number of classes.
        imagenet: whether the classes are the 1,000 of ImageNet, on which AlexNet's errors were measured.
    """
    write_arrays(
        path,
        best=best.astype(np.min_scalar_type(classes)),
        labels=labels.astype(np.min_scalar_type(classes)),
        conditions=conditions.astype(np.uint8),
        classes=np.array(classes),
        imagenet=np.array(int(imagenet)),
    )


def corruption_scores(predictions: Path) -> dict[str, float]:
    """Compute the scores of a file of `write_corruptions`.

    top1 is the mean over the 15 corruptions, in percent, and over the severities of each. mce is the mean corruption
    error: the mean over the 15 corruptions of the error divided by AlexNet's, in percent (arXiv 1903.12261).
    It is left out where a condition is missing, and for other classes than ImageNet's.

    Raises:
        DataError: the predictions do not exist or are damaged, or have none of the 15 corruptions.
    """
    stored, errors = _read_corruptions(predictions)
    mean_of = {
        name: float(np.mean([*errors[name].values()])) for name in ALEXNET_ERRORS if errors[name]
    }
    if not mean_of:
        raise DataError(f"predictions {predictions} have none of {', '.join(ALEXNET_ERRORS)}.")
    scores = {"top1": 100.0 * (1 - float(np.mean([*mean_of.values()])))}
    if stored["imagenet"] and all(len(errors[name]) == SEVERITIES for name in ALEXNET_ERRORS):
        relative = [mean_of[name] / error for name, error in ALEXNET_ERRORS.items()]
        scores["mce"] = 100.0 * float(np.mean(relative))
    return scores


def top1_by_corruption(predictions: Path) -> dict[str, list[float | None]]:
    """Return the top-1 of every corruption, in percent, by severity from 1 to 5; None for a missing one."""
    _, errors = _read_corruptions(predictions)
    return {
        name: [
            100.0 * (1 - by_severity[s]) if s in by_severity else None
            for s in range(1, SEVERITIES + 1)
        ]
        for name, by_severity in errors.items()
        if by_severity
    }


def corrupted_images(predictions: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return how often each image of a file of `write_corruptions` is classified correctly, and the images' labels.

    Returns:
        The mean (N,) in [0, 1] over the 15 corruptions of the means over their severities, whose mean is top1, and the
        labels (N,). None if the conditions have images of other numbers or labels, which cannot be matched by their
        order, or if the file has none of the 15 corruptions.

    Raises:
        DataError: the predictions do not exist or are damaged.
    """
    stored, errors = _read_corruptions(predictions)
    best, labels, conditions = (stored[name] for name in ("best", "labels", "conditions"))
    present = [name for name in ALEXNET_ERRORS if errors[name]]
    by_image: np.ndarray | None = None
    first: np.ndarray | None = None
    for name in present:
        for severity in errors[name]:
            own = conditions == condition_number(name, severity)
            if first is None or by_image is None:
                first, by_image = labels[own], np.zeros(np.count_nonzero(own))
            if not np.array_equal(labels[own], first):
                return None
            by_image += (best[own] == first) / (len(errors[name]) * len(present))
    return None if first is None or by_image is None else (by_image, first)


def _read_corruptions(
    predictions: Path,
) -> tuple[Mapping[str, np.ndarray], dict[str, dict[int, float]]]:
    """Read and check a file of `write_corruptions`; return its arrays and its errors."""
    stored = read_arrays(predictions, "predictions", CORRUPTED)
    try:
        return stored, _errors(stored)
    except ValueError as error:
        raise _unreadable(predictions, error) from error


def _errors(stored: Mapping[str, np.ndarray]) -> dict[str, dict[int, float]]:
    """Return the error of every condition, in [0, 1], by corruption and severity."""
    best, labels, conditions = (stored[name] for name in ("best", "labels", "conditions"))
    classes = _number_of_classes(stored)
    if best.ndim != 1 or not best.shape == labels.shape == conditions.shape or not best.size:
        raise ValueError("its classes, labels and conditions are not those of some images")
    if min(best.min(), labels.min()) < 0 or max(best.max(), labels.max()) >= classes:
        raise ValueError(f"a class number is not in [0, {classes})")
    if conditions.min() < 0 or conditions.max() >= len(CORRUPTIONS) * SEVERITIES:
        raise ValueError("a condition is unknown")
    if stored["imagenet"].shape != ():
        raise ValueError("'imagenet' is not one number")
    errors: dict[str, dict[int, float]] = {name: {} for name in CORRUPTIONS}
    for number in np.unique(conditions).tolist():
        own = conditions == number
        name, severity = CORRUPTIONS[number // SEVERITIES], number % SEVERITIES + 1
        errors[name][severity] = float(np.mean(best[own] != labels[own]))
    return errors


def _number_of_classes(stored: Mapping[str, np.ndarray]) -> int:
    count = stored["classes"]
    if count.shape != () or not 1 <= int(count) <= MAX_CLASSES:
        raise ValueError("its number of classes is not a positive number")
    return int(count)


def _unreadable(predictions: Path, error: ValueError) -> DataError:
    return DataError(f"predictions {predictions} cannot be read: {error}")
