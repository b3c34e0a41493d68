"""Scores from stored predictions; runners and the leaderboard's check both come here.

In: the files under a run's `predictions/`. Out: scores in percent, [0, 100], by their record keys.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from simmim_bench.errors import DataError, DivergedError
from simmim_bench.files import replacing
from simmim_bench.results.coco import evaluate_coco
from simmim_bench.tasks import find_variant

RANKED = 10  # classes an image that are stored
# What numpy raises of an .npz that is damaged, cut or empty.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error)


def classification_scores(ranked: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, float]:
    """Give top1 and top5 from the classes that were ranked first.

    top5 is left out where there are not more than five classes, as it could not fail.

    Args:
        ranked: (N, at least 5 or all) class numbers, best first.
        labels: (N,).
        classes: how many there are to choose from.
    """
    right = ranked == labels[:, None]
    scores = {"top1": 100.0 * float(np.mean(right[:, 0]))}
    if classes > 5:
        scores["top5"] = 100.0 * float(np.mean(right[:, :5].any(1)))
    return scores


def correct_from_predictions(predictions: Path) -> np.ndarray:
    """Say of every image whether its label is ranked first, from what `write_ranking` stored: (N,) bool.

    Raises:
        DataError: the predictions are not there or are damaged.
    """
    try:
        with np.load(predictions) as stored:
            ranked, labels, _ = _ranking(stored)
            correct: np.ndarray = ranked[:, 0] == labels
            return correct
    except UNREADABLE as error:
        raise DataError(f"predictions {predictions} cannot be read: {error}") from error


def _ranking(stored: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """Give ranked classes, labels and the number of classes of a stored file, which must be consistent."""
    ranked, logits = stored["ranked"].astype(np.int64), stored["logits"].astype(np.float32)
    labels, classes = stored["labels"].astype(np.int64), int(stored["classes"])
    if not np.isfinite(logits).all():
        raise ValueError("a logit is not finite")
    if logits.shape != ranked.shape or (np.diff(logits, axis=1) > 0).any():
        raise ValueError("the logits do not fall from rank to rank")
    if len(labels) and not (labels.min() >= 0 and max(labels.max(), ranked.max()) < classes):
        raise ValueError(f"a class is not among the {classes}")
    return ranked, labels, classes


def segmentation_scores(confusion: np.ndarray) -> dict[str, float]:
    """Give miou, macc and aacc from a confusion matrix (classes, classes), rows the truth.

    Ignored pixels are not in the matrix. A class that neither truth nor prediction has is left out of
    the means, as MMSegmentation does with NaN.
    """
    matrix = confusion.astype(np.float64)
    hit, truth, found = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    union = truth + found - hit
    return {
        "miou": 100.0 * float(np.mean(hit[union > 0] / union[union > 0])),
        "macc": 100.0 * float(np.mean(hit[truth > 0] / truth[truth > 0])),
        "aacc": 100.0 * float(hit.sum() / matrix.sum()),
    }


def iou_by_class(confusion: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Give the IoU of every class that truth or prediction has, from a confusion matrix, rows the truth."""
    hit = np.diag(confusion)
    union = confusion.sum(1) + confusion.sum(0) - hit
    return {name: 100.0 * float(hit[k] / union[k]) for k, name in enumerate(names) if union[k] > 0}


@dataclass(frozen=True)
class Ranking:
    """What is kept of logits: 40 bytes an image, however many classes there are.

    Attributes:
        ranked: (N, at most 10) class numbers, best first.
        logits: theirs, float16.
        classes: how many there are to choose from.
    """

    ranked: np.ndarray
    logits: np.ndarray
    classes: int

    def __len__(self) -> int:
        return len(self.ranked)


def rank_logits(logits: np.ndarray) -> Ranking:
    """Keep the ten best classes of logits (N, K).

    Ties are ranked by class number, so that the ranking does not depend on a sort.

    Raises:
        DivergedError: a logit is not finite, so that no ranking of the classes means anything.
    """
    if not np.isfinite(logits).all():
        raise DivergedError("the model gives logits that are not finite; lower -o base_lr=...")
    classes = logits.shape[1]
    ranked = np.argsort(-logits, axis=1, kind="stable")[:, :RANKED]
    limit = float(np.finfo(np.float16).max)
    best = np.take_along_axis(logits, ranked, axis=1).clip(-limit, limit)
    return Ranking(ranked.astype(np.min_scalar_type(classes)), best.astype(np.float16), classes)


def join_rankings(parts: Sequence[Ranking]) -> Ranking:
    """Put the rankings of several parts of the images, at least one, one after the other."""
    return Ranking(
        np.concatenate([part.ranked for part in parts]),
        np.concatenate([part.logits for part in parts]),
        parts[0].classes,
    )


def write_logits(path: Path, logits: np.ndarray, labels: np.ndarray) -> None:
    """Store what is needed of logits (N, K) and labels (N,); see `rank_logits`."""
    write_ranking(path, rank_logits(logits), labels)


def write_ranking(path: Path, ranking: Ranking, labels: np.ndarray) -> None:
    """Store a ranking and the labels (N,): 2 MB for ImageNet's 50,000 images instead of 100."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            ranked=ranking.ranked,
            logits=ranking.logits,
            labels=labels.astype(np.int32),
            classes=np.array(ranking.classes),
        )


def write_confusion(path: Path, confusions: list[np.ndarray], names: list[str]) -> None:
    """Store a confusion matrix (classes, classes) an image, as its entries above zero.

    Columns of `entries`: image, true class, predicted class, pixels.
    """
    entries = []
    for image, confusion in enumerate(confusions):
        true, predicted = np.nonzero(confusion)
        counts = confusion[true, predicted]
        entries.append(np.stack([np.full_like(true, image), true, predicted, counts], axis=1))
    classes = confusions[0].shape[0] if confusions else 0
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            entries=np.concatenate(entries).astype(np.int64)
            if entries
            else np.zeros((0, 4), np.int64),
            names=np.array(names),
            classes=np.array(classes),
        )


def scores_from_predictions(
    task: str, predictions: Path, annotations: Path | None, *, masks: bool = True
) -> dict[str, float]:
    """Compute a task's scores from what a run stored, and from nothing else.

    Args:
        task: a task of `simmim-bench transfer`.
        predictions: the file that the record names.
        annotations: the ground truth of `coco`, which is not copied into the run.
        masks: whether the detector of `coco` gives masks.

    Raises:
        DataError: the predictions or annotations are not there or are damaged.
    """
    variant = find_variant(task)
    kind = (
        variant.task.predictions if variant is not None else "ranking"
    )  # other few-shot fractions
    try:
        if kind == "coco":
            if annotations is None or not annotations.is_file():
                raise DataError(
                    f"the annotations {annotations} of {predictions} are not there; start from the folder of that run."
                )
            return evaluate_coco(annotations, predictions, masks=masks).figures
        with np.load(predictions) as stored:
            if kind == "confusion":
                classes = int(stored["classes"])
                confusion = np.zeros((classes, classes), np.int64)
                _, true, predicted, counts = stored["entries"].T
                np.add.at(confusion, (true, predicted), counts)
                return segmentation_scores(confusion)
            return classification_scores(*_ranking(stored))
    except UNREADABLE as error:
        raise DataError(f"predictions {predictions} cannot be read: {error}") from error
