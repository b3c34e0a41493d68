"""The scores of several runs on the same images, and how they vary together with the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RunScores:
    """Scores of R runs on the same N images, in percent; all numbers are finite.

    Attributes:
        scores: (R,).
        covariance: (R, R) of the scores over samples of N images, percent squared.
        images: N, at least 1.
        proportions: whether every score is the percentage of images with a correct answer.
    """

    scores: Floats
    covariance: Floats
    images: int
    proportions: bool = False

    def __post_init__(self) -> None:
        assert self.images > 0
        assert np.isfinite(self.scores).all()
        assert np.isfinite(self.covariance).all()

    def varies(self, weights: ArrayLike) -> bool:
        """Return whether the variance of a weighted sum over samples of images can be estimated.

        An AP of exactly zero is zero on all resamples, whatever other images would give. Answers can be added to an
        accuracy, but not to an AP.
        """
        by_run = np.asarray(weights, np.float64)
        return self.proportions or self._is_above_rounding(by_run)

    def _is_above_rounding(self, weights: Floats) -> bool:
        """Return whether the covariance gives more than what rounding leaves of a variance of zero."""
        zero = 1e-12 * float(np.abs(weights) @ np.sqrt(self.covariance.diagonal())) ** 2
        return float(weights @ self.covariance @ weights) > zero

    def variance(self, weights: ArrayLike) -> float:
        """Return the variance of a weighted sum of the scores over samples of images, percent squared.

        If all images have the same answer, their variance is zero, however few they are. For proportions, images of
        opposite answers are therefore added: to a difference of scores one in favour of each side (Bonett and Price
        2012, Journal of Educational and Behavioral Statistics 37(4)), to a mean of scores two correct and two wrong
        (Agresti and Coull 1998, The American Statistician 52(2)). For other scores, they are added where all resamples
        agree; no such variance is reported, see `varies`.

        Args:
            weights: (R,), of sum 0 for a difference and of sum 1 for a mean.
        """
        by_run = np.asarray(weights, np.float64)
        variance = float(by_run @ self.covariance @ by_run)
        if not self.proportions and self._is_above_rounding(by_run):
            return variance
        added = np.array([100.0, -100.0] if abs(by_run.sum()) < 1e-9 else [100.0, 100.0, 0.0, 0.0])
        total = self.images * float(by_run @ self.scores)
        squares = max(variance, 0.0) * self.images * (self.images - 1) + total**2 / self.images
        count = self.images + len(added)
        mean = (total + added.sum()) / count
        return (float(squares + (added**2).sum()) / count - mean**2) / count


def from_correct(correct: ArrayLike) -> RunScores:
    """Return the accuracies of R runs.

    Args:
        correct: (R, N) of False and True, or of fractions in [0, 1].
    """
    answers = 100.0 * np.asarray(correct, np.float64)
    runs, images = answers.shape
    # One image has no variance; `RunScores.variance` adds images.
    covariance = np.atleast_2d(np.cov(answers)) / images if images > 1 else np.zeros((runs, runs))
    return RunScores(answers.mean(1), covariance, images, proportions=True)
