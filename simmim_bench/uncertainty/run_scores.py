"""The scores of several runs on the same images, and how they vary together with the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RunScores:
    """Scores of R runs on the same N images, in percent.

    Attributes:
        scores: (R,).
        covariance: (R, R) of the scores over samples of N images, percent squared.
        images: N.
        proportions: whether every score is the percentage of images with a correct answer.
    """

    scores: Floats
    covariance: Floats
    images: int
    proportions: bool = False

    def variance(self, weights: ArrayLike) -> float:
        """Return the variance of a weighted sum of the scores over samples of images, percent squared.

        If all images have the same answer, their variance is zero, however few they are. For proportions, images of
        opposite answers are therefore added: to a difference of scores one in favour of each side (Bonett and Price
        2012, Journal of Educational and Behavioral Statistics 37(4)), to a mean of scores two correct and two wrong
        (Agresti and Coull 1998, The American Statistician 52(2)).

        Args:
            weights: (R,), of sum 0 for a difference and of sum 1 for a mean.
        """
        by_run = np.asarray(weights, np.float64)
        variance = float(by_run @ self.covariance @ by_run)
        if not self.proportions:
            return max(variance, 0.0)
        added = np.array([100.0, -100.0] if abs(by_run.sum()) < 1e-9 else [100.0, 100.0, 0.0, 0.0])
        total = self.images * float(by_run @ self.scores)
        squares = variance * self.images * (self.images - 1) + total**2 / self.images
        count = self.images + len(added)
        mean = (total + added.sum()) / count
        return max(float((squares + (added**2).sum()) / count - mean**2) / count, 0.0)


def from_correct(correct: ArrayLike) -> RunScores:
    """Return the accuracies of R runs.

    Args:
        correct: (R, N) of False and True, or of fractions in [0, 1].
    """
    answers = 100.0 * np.asarray(correct, np.float64)
    images = answers.shape[1]
    covariance = np.atleast_2d(np.cov(answers)) / images if images > 1 else _unknown(len(answers))
    return RunScores(answers.mean(1), covariance, images, proportions=True)


def from_replicates(scores: ArrayLike, replicates: ArrayLike, images: int) -> RunScores:
    """Return scores whose variation over samples of images is estimated by a bootstrap.

    Args:
        scores: (R,) on the images themselves.
        replicates: (R, B) on B resamples of the images, which are the same for all runs.
    """
    covariance = np.atleast_2d(np.cov(np.asarray(replicates, np.float64)))
    return RunScores(np.asarray(scores, np.float64), covariance, images)


def _unknown(runs: int) -> Floats:
    """Return the covariance of scores of one image, in which nothing but the added images varies."""
    return np.zeros((runs, runs))
