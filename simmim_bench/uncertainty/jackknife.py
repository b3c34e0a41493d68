"""Estimate how scores vary with the images from the scores without some of them, for mIoU and average precision.

The images are divided into groups at random. The scores without each group in turn vary, enlarged, as the score does
over samples of images: the delete-a-group jackknife (Kott 2001, Journal of Official Statistics 17(4)). Runs on the same
images have the same groups, and the scores of two runs vary together as they do over samples.

A bootstrap has narrower intervals for few images, which cover the difference less often: with 30 to 100 images and
nominal 95 %, 91 to 94 % for mIoU and 90 to 95 % for AP, where the jackknife covers 94 to 99 %. Its variance is too
large on average rather than too small (Efron and Stein 1981, The Annals of Statistics 9(3)).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simmim_bench.uncertainty.run_scores import RunScores

GROUPS = 200  # a standard error from them varies by 1 / sqrt(2 * 200), 5 %
MAX_IMAGES = 200_000  # their weights take 40 MB


@functools.lru_cache(maxsize=2)
def group_weights(images: int) -> NDArray[np.uint8]:
    """Return the weight of every image, 1 or 0, in 1 + G sets: all images, and those outside of each group.

    Args:
        images: N, at most `MAX_IMAGES`. Up to `GROUPS`, each image is a group.

    Returns:
        (1 + G, N).
    """
    # At random, because images are often sorted by class. The stream of `random` has not changed since NumPy 1.17.
    order = np.argsort(np.random.default_rng(images).random(images), kind="stable")
    groups = min(images, GROUPS)
    weights = np.ones((1 + groups, images), np.uint8)
    weights[1 + np.arange(images) % groups, order] = 0
    weights.flags.writeable = False  # all callers have the same array
    return weights


def from_left_out(scores: ArrayLike, left_out: ArrayLike, images: int) -> RunScores:
    """Return scores whose variation over samples of images is estimated by the jackknife.

    Args:
        scores: (R,) on all images, percent.
        left_out: (R, G) without each group, percent. Columns with NaN are left out: without the group, no image has an
            object or a pixel.
        images: N.
    """
    means, without = np.asarray(scores, np.float64), np.asarray(left_out, np.float64)
    without = without[:, np.isfinite(without).all(0)]
    groups = without.shape[1]
    if groups < 2:
        # All that is known is on a single image. No percentage varies more than one that is 0 or 100 with equal
        # probability.
        return RunScores(means, 50.0**2 * np.eye(len(means)), 1)
    covariance = np.atleast_2d(np.cov(without)) * (groups - 1) ** 2 / groups
    return RunScores(means, covariance, images)
