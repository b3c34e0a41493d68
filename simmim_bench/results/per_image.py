"""Read how a run's score varies with the images, from its stored predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simmim_bench.errors import DataError
from simmim_bench.results.metrics import read_ranking
from simmim_bench.tasks import predictions_of
from simmim_bench.uncertainty.run_scores import RunScores, from_correct, from_replicates


@dataclass(frozen=True)
class ImageScores:
    """One metric of one run, image by image.

    Attributes:
        score: percent, on all images.
        images: number of images.
        identity: hash of what identifies the images and their ground truth; runs with equal hashes can be paired.
        correct: (images,) in [0, 1] for a score that is a mean over images, such as top-1; None for others.
        replicates: (resamples,) of the score, percent, on resamples of the images that depend on their number alone;
            None where `correct` is given.
    """

    score: float
    images: int
    identity: str
    correct: np.ndarray | None = None
    replicates: np.ndarray | None = None


def read_image_scores(
    task: str, predictions: Path, annotations: Path | None, metric: str, *, masks: bool = True
) -> ImageScores | None:
    """Read one metric of one run, image by image.

    Args:
        task, predictions, annotations, masks: see `metrics.scores_from_predictions`.
        metric: key in the record's metrics.

    Returns:
        None for a metric without data by image, such as a calibration error.

    Raises:
        DataError: the predictions or annotations do not exist or are damaged.
    """
    if predictions_of(task) != "ranking" or metric not in ("top1", "top5"):
        return None
    ranking, labels = read_ranking(predictions)
    ranks = 1 if metric == "top1" else 5
    correct = (ranking.ranked[:, :ranks] == labels[:, None]).any(1)
    identity = str(hash(labels.tobytes()))
    return ImageScores(100.0 * float(correct.mean()), len(labels), identity, correct=correct)


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
    replicates = [run.replicates for run in runs if run.replicates is not None]
    return from_replicates([run.score for run in runs], np.stack(replicates), runs[0].images)
