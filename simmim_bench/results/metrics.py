"""Store predictions and compute scores from them.

Runners and `leaderboard check` compute scores with the same functions, from the files in a run's `predictions/`.
Scores are in percent, [0, 100], by their keys in the record; but for `nll` and `brier`, see `calibration.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from simmim_bench.errors import DataError, DivergedError
from simmim_bench.files import write_arrays
from simmim_bench.results.calibration import calibration_columns, calibration_scores, check_columns
from simmim_bench.results.coco import evaluate_coco
from simmim_bench.results.shift import corruption_scores, multilabel_scores
from simmim_bench.tasks import CALIBRATION_METRICS, find_variant, predictions_of
from simmim_bench.untrusted.arrays import read_arrays

RANKED = 10  # classes stored per image
SHORT = 5  # classes of a file without logits, see `shorten_ranking`
RANKING = {"ranked": "iu", "logits": "f", "labels": "iu", "classes": "iu"}  # arrays and their kinds
CALIBRATION = "calibration"  # the array of `calibration_columns`, which older files and k-NN lack
CONFUSION = {"entries": "iu", "classes": "iu"}
MAX_CLASSES = 2**31 - 1
MAX_CONFUSION = 4096  # classes: their matrix takes 128 MiB
MAX_PIXELS = 2**53  # counts up to here are exact as float64


def classification_scores(ranked: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, float]:
    """Compute top1 and top5 from ranked classes.

    With five classes or fewer, top5 is always 100 and is left out.

    Args:
        ranked: (N, at least 5 or all) class numbers, best first.
        labels: (N,).
        classes: number of classes.
    """
    correct = ranked == labels[:, None]
    scores = {"top1": 100.0 * float(np.mean(correct[:, 0]))}
    if classes > 5:
        scores["top5"] = 100.0 * float(np.mean(correct[:, :5].any(1)))
    return scores


def read_ranking(predictions: Path) -> tuple[Ranking, np.ndarray]:
    """Read and check a file of `write_ranking`.

    Returns:
        The ranking and the labels (N,).

    Raises:
        DataError: the predictions do not exist or are damaged.
    """
    stored = read_arrays(predictions, "predictions", RANKING, optional={CALIBRATION: "f"})
    try:
        return _ranking(stored)
    except ValueError as error:
        raise DataError(f"predictions {predictions} cannot be read: {error}") from error


def _ranking(stored: Mapping[str, np.ndarray]) -> tuple[Ranking, np.ndarray]:
    classes = _count(stored["classes"], MAX_CLASSES)
    ranked, logits, labels = (stored[name] for name in ("ranked", "logits", "labels"))
    if ranked.ndim != 2 or labels.shape != ranked.shape[:1] or not ranked.size:
        raise ValueError(
            f"{ranked.shape} ranked classes and {labels.shape} labels are not those of some images"
        )
    is_short = logits.shape == (len(ranked), 0)
    if ranked.shape[1] != min(classes, SHORT if is_short else RANKED):
        raise ValueError(f"it ranks {ranked.shape[1]} of {classes:,} classes")
    logits = logits.astype(np.float32)
    if not np.isfinite(logits).all():
        raise ValueError("a logit is not finite")
    if not is_short and (logits.shape != ranked.shape or (np.diff(logits, axis=1) > 0).any()):
        raise ValueError("the logits are not sorted in descending order")
    if any(array.min() < 0 or array.max() >= classes for array in (ranked, labels)):
        raise ValueError(f"a class number is not in [0, {classes})")
    ranked, labels = ranked.astype(np.int64), labels.astype(np.int64)
    calibration = stored.get(CALIBRATION)
    if calibration is not None:
        check_columns(calibration, ranked, labels, classes)
    return Ranking(ranked, logits, classes, calibration), labels


def _count(array: np.ndarray, most: int) -> int:
    """Return the number of classes of a file."""
    if array.shape != () or not 1 <= int(array) <= most:
        raise ValueError(f"its number of classes is not a number from 1 to {most:,}")
    return int(array)


def read_confusions(predictions: Path) -> tuple[np.ndarray, int]:
    """Read and check a file of `write_confusion`.

    Returns:
        Its entries (E, 4) int64 (image, true class, predicted class, pixels), and the number of classes.

    Raises:
        DataError: the predictions do not exist or are damaged.
    """
    stored = read_arrays(predictions, "predictions", CONFUSION)
    try:
        classes = _count(stored["classes"], MAX_CONFUSION)
        return _check_entries(stored["entries"], classes).astype(np.int64), classes
    except ValueError as error:
        raise DataError(f"predictions {predictions} cannot be read: {error}") from error


def _check_entries(entries: np.ndarray, classes: int) -> np.ndarray:
    if entries.ndim != 2 or entries.shape[1] != 4 or not len(entries):
        raise ValueError(f"its entries have shape {entries.shape}; at least one row of 4 is needed")
    image, true, predicted, counts = entries.T
    if image.min() < 0 or counts.min() < 1:
        raise ValueError("an image number or a number of pixels is too small")
    if min(true.min(), predicted.min()) < 0 or max(true.max(), predicted.max()) >= classes:
        raise ValueError(f"a class number is not in [0, {classes})")
    if counts.astype(np.float64).sum() > MAX_PIXELS:
        raise ValueError(f"it counts more than {MAX_PIXELS:,} pixels")
    return entries


def _confusion(entries: np.ndarray, classes: int) -> np.ndarray[Any, Any]:
    """Return the confusion matrix of all images."""
    _, true, predicted, counts = entries.T
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (true, predicted), counts)
    return confusion


def segmentation_scores(confusion: np.ndarray) -> dict[str, float]:
    """Compute miou, macc and aacc from a confusion matrix (classes, classes) with true classes as rows.

    Ignored pixels are not in the matrix. A class that occurs neither in the ground truth nor in the predictions
    is left out of the means, as MMSegmentation does with NaN.
    """
    matrix = confusion.astype(np.float64)
    correct, true, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    union = true + predicted - correct
    return {
        "miou": 100.0 * float(np.mean(correct[union > 0] / union[union > 0])),
        "macc": 100.0 * float(np.mean(correct[true > 0] / true[true > 0])),
        "aacc": 100.0 * float(correct.sum() / matrix.sum()),
    }


def iou_by_class(confusion: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Compute the IoU of every class in the ground truth or the predictions; see `segmentation_scores`."""
    correct = np.diag(confusion)
    union = confusion.sum(1) + confusion.sum(0) - correct
    return {
        name: 100.0 * float(correct[k] / union[k]) for k, name in enumerate(names) if union[k] > 0
    }


@dataclass(frozen=True)
class Ranking:
    """The best classes of N images: at most 52 bytes per image, whatever the number of classes.

    Attributes:
        ranked: (N, at most 10) class numbers, best first.
        logits: logits of the ranked classes, float16; without columns after `shorten_ranking`.
        classes: number of classes.
        calibration: (N, 3) float32, see `calibration_columns`; None where the classes have no probabilities.
    """

    ranked: np.ndarray
    logits: np.ndarray
    classes: int
    calibration: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ranked)


def rank_logits(logits: np.ndarray, labels: Sequence[int] | np.ndarray) -> Ranking:
    """Return the ten best classes of logits (N, K), and how probable they make the labels (N,).

    Raises:
        DivergedError: a logit is not finite, so that the classes cannot be ranked.
    """
    ranking = rank_votes(logits)
    return replace(ranking, calibration=calibration_columns(logits, np.asarray(labels)))


def rank_votes(votes: np.ndarray) -> Ranking:
    """Return the ten best classes of votes (N, K), such as of k-NN, which are not those of probabilities.

    Ties are ranked by class number, so that the ranking does not depend on the sorting algorithm.

    Raises:
        DivergedError: a vote is not finite, so that the classes cannot be ranked.
    """
    if not np.isfinite(votes).all():
        raise DivergedError("the model's logits are not finite; lower -o base_lr=...")
    classes = votes.shape[1]
    ranked = np.argsort(-votes, axis=1, kind="stable")[:, :RANKED]
    limit = float(np.finfo(np.float16).max)
    best = np.take_along_axis(votes, ranked, axis=1).clip(-limit, limit)
    return Ranking(ranked.astype(np.min_scalar_type(classes)), best.astype(np.float16), classes)


def shorten_ranking(ranking: Ranking) -> Ranking:
    """Return the five best classes alone: top1 and top5 follow from them, calibration does not."""
    none = np.empty((len(ranking), 0), np.float16)
    ranked = ranking.ranked[:, :SHORT].astype(np.min_scalar_type(ranking.classes))
    return Ranking(ranked, none, ranking.classes)


def join_rankings(rankings: Sequence[Ranking]) -> Ranking:
    """Concatenate rankings of one kind, at least one, of consecutive images."""
    calibrations = [r.calibration for r in rankings if r.calibration is not None]
    assert len(calibrations) in (0, len(rankings))
    return Ranking(
        np.concatenate([ranking.ranked for ranking in rankings]),
        np.concatenate([ranking.logits for ranking in rankings]),
        rankings[0].classes,
        np.concatenate(calibrations) if calibrations else None,
    )


def write_logits(path: Path, logits: np.ndarray, labels: np.ndarray) -> None:
    """Write the ranking of logits (N, K) with the labels (N,); see `rank_logits`."""
    write_ranking(path, rank_logits(logits, labels), labels)


def write_ranking(path: Path, ranking: Ranking, labels: np.ndarray) -> None:
    """Write a ranking with the labels (N,): 2.6 MB for ImageNet's 50,000 images instead of 200 MB of logits."""
    arrays: dict[str, Any] = {
        "ranked": ranking.ranked,
        "logits": ranking.logits,
        "labels": labels.astype(np.int32),
        "classes": np.array(ranking.classes),
    }
    if ranking.calibration is not None:
        arrays[CALIBRATION] = ranking.calibration
    write_arrays(path, **arrays)


def write_confusion(path: Path, confusions: list[np.ndarray], names: list[str]) -> None:
    """Write one confusion matrix (classes, classes) per image, as its entries above zero.

    The columns of `entries` are image, true class, predicted class, pixels.
    """
    entries = []
    for image, confusion in enumerate(confusions):
        true, predicted = np.nonzero(confusion)
        counts = confusion[true, predicted]
        entries.append(np.stack([np.full_like(true, image), true, predicted, counts], axis=1))
    classes = confusions[0].shape[0] if confusions else 0
    write_arrays(
        path,
        entries=np.concatenate(entries).astype(np.int64) if entries else np.zeros((0, 4), np.int64),
        names=np.array(names),
        classes=np.array(classes),
    )


def scores_from_predictions(
    task: str, predictions: Path, annotations: Path | None, *, masks: bool = True
) -> dict[str, float]:
    """Compute a task's scores from the stored predictions alone.

    Args:
        task: the task as records name it, such as `fewshot-1%`.
        predictions: the file that the record names.
        annotations: the ground truth of `coco`, which is not copied into the run.
        masks: whether the detector of `coco` predicts masks.

    Raises:
        DataError: the predictions or annotations do not exist or are damaged.
    """
    kind = predictions_of(task)
    if kind == "coco":
        truth = existing_annotations(annotations, predictions)
        return evaluate_coco(truth, predictions, masks=masks).figures
    if kind == "confusion":
        return segmentation_scores(_confusion(*read_confusions(predictions)))
    if kind == "multilabel":
        return multilabel_scores(predictions)
    if kind == "corruptions":
        return corruption_scores(predictions)
    ranking, labels = read_ranking(predictions)
    scores = classification_scores(ranking.ranked, labels, ranking.classes)
    variant = find_variant(task)
    calibrated = variant is None or {*CALIBRATION_METRICS} <= {*variant.task.metrics}
    if ranking.calibration is not None and calibrated:
        scores |= calibration_scores(ranking.calibration, ranking.ranked[:, 0] == labels)
    return scores


def existing_annotations(annotations: Path | None, predictions: Path) -> Path:
    """Return the annotation file of COCO predictions.

    Raises:
        DataError: the file does not exist.
    """
    if annotations is None or not annotations.is_file():
        raise DataError(
            f"the annotations {annotations} of {predictions} do not exist; run the command from the folder "
            "in which the run was started."
        )
    return annotations
