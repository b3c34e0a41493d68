"""Made-up images on which two models of known quality are scored by mIoU or average precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from simmim_bench.uncertainty.interval import Side, difference
from simmim_bench.uncertainty.jackknife import from_left_out, group_weights
from simmim_bench.uncertainty.weighted_scores import (
    ClassMatches,
    PixelCounts,
    precisions_of,
    segmentation_scores_of,
)

# From a generator, a number of images and weights (B, images) to the scores (2, B) of two models, in percent.
Experiment = Callable[[np.random.Generator, int, np.ndarray], np.ndarray]


def segmentation(qualities: tuple[float, float], classes: int, presence: float) -> Experiment:
    """Return an experiment of mIoU.

    Args:
        qualities: log-odds of a correct pixel of the two models.
        classes: number of classes.
        presence: probability that a class is in an image.
    """

    def score(generator: np.random.Generator, images: int, weights: np.ndarray) -> np.ndarray:
        shape = (images, classes)
        difficulty = generator.normal(0, 0.8, (images, 1))
        area = np.exp(generator.normal(5, 1, shape)) * (generator.random(shape) < presence)
        area = area.astype(np.int64)
        scores = []
        for quality in qualities:
            logit = quality - difficulty + generator.normal(0, 0.7, shape)
            correct = generator.binomial(area, 1 / (1 + np.exp(-logit)))
            predicted = correct.copy()
            mistaken = (np.arange(classes) + generator.integers(1, classes, shape)) % classes
            np.add.at(predicted, (np.arange(images)[:, None], mistaken), area - correct)
            columns = np.concatenate([correct, area, predicted], axis=1)
            image, column = np.nonzero(columns)
            counts = PixelCounts(image, column, columns[image, column], classes)
            scores.append(100 * segmentation_scores_of(counts, weights)["miou"])
        return np.stack(scores)

    return score


def detection(qualities: tuple[float, float], classes: int, objects: float) -> Experiment:
    """Return an experiment of average precision at three IoU thresholds.

    Args:
        qualities: of the two models, in standard deviations of an object's difficulty.
        classes: number of classes.
        objects: of a class in an image, on average; false positives are as frequent.
    """

    def score(generator: np.random.Generator, images: int, weights: np.ndarray) -> np.ndarray:
        difficulty = generator.normal(0, 1, images)
        found: tuple[list[ClassMatches], list[ClassMatches]] = ([], [])
        for _ in range(classes):
            of_objects = np.arange(images).repeat(generator.poisson(objects, images))
            hard = difficulty[of_objects] + generator.normal(0, 1, len(of_objects))
            for quality, matches in zip(qualities, found, strict=True):
                overlap = quality - hard + generator.normal(0, 0.7, len(hard))
                false = np.arange(images).repeat(generator.poisson(objects, images))
                scores = np.concatenate(
                    [
                        0.8 * overlap + generator.normal(0, 1, len(overlap)),
                        0.4 * difficulty[false] + generator.normal(-0.5, 1, len(false)),
                    ]
                )
                order = np.argsort(-scores)
                correct = np.zeros((3, len(order)), np.bool_)
                correct[:, : len(hard)] = overlap > np.array([[-0.5], [0.3], [1.0]])
                matches.append(
                    ClassMatches(
                        np.concatenate([of_objects, false])[order],
                        correct[:, order],
                        np.zeros_like(correct),
                        of_objects,
                    )
                )
        return np.stack([100 * precisions_of(matches, weights) for matches in found])

    return score


def coverage(
    experiment: Experiment, images: int, trials: int, *, population: int = 20_000
) -> float:
    """Return how often the interval of the difference of both models contains the true difference.

    Args:
        population: images of the sample that is taken as the truth; four of them are used.
    """
    generator = np.random.default_rng(0)
    everything = np.ones((1, population), np.int64)
    true = np.mean([experiment(generator, population, everything) for _ in range(4)], axis=0)[:, 0]
    sides = [Side(units=((run,),), keys=(0,), varies=False) for run in (0, 1)]
    covered = []
    for _ in range(trials):
        scores = experiment(generator, images, group_weights(images))
        found = difference(from_left_out(scores[:, 0], scores[:, 1:], images), *sides)
        covered.append(found.low <= true[0] - true[1] <= found.high)
    return float(np.mean(covered))
