"""Simulate comparisons of rows whose true differences are known.

An image is classified correctly if the sum of latent normal effects is positive: its ease, the model's level, the
pretraining's level and its answer to this image, the seed's level, and noise of every run on every image. A score's
expectation over some of the effects is therefore a normal probability.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from simmim_bench.uncertainty.interval import Side, Unit

EASE, NOISE = 1.0, 0.5  # standard deviations over images, and over images and runs
LEVEL = 0.3  # of every row but the first: about 60 % of the images are correct
BATCH = 250  # trials that are sampled together


@dataclass(frozen=True)
class Design:
    """Rows of runs, of which the first two are compared.

    Attributes:
        seeds: number of seeds of each pretraining, by row.
        pretrainings: number of pretrainings of each row.
        seed_sd: latent standard deviation over seeds, by row or of all.
        pretraining_sd: latent standard deviation over pretrainings.
        gap: latent difference of the first two rows.
        shared: correlation of the effects of equal seeds of different rows, as by the same labelled images.
        own_sd: latent standard deviation of a pretraining's answer to an image.
        images: number of images.
    """

    seeds: tuple[int, ...]
    pretrainings: int = 1
    seed_sd: tuple[float, ...] | float = 0.0
    pretraining_sd: float = 0.0
    gap: float = 0.0
    shared: float = 0.0
    own_sd: float = 0.5
    images: int = 200

    def seed_sd_of(self, row: int) -> float:
        """Return the latent standard deviation over a row's seeds."""
        return self.seed_sd if isinstance(self.seed_sd, float) else self.seed_sd[row]

    def sides(self, unit: Unit) -> list[Side]:
        """Return the runs of every row, with seeds (of one pretraining) or pretrainings as units."""
        sides, first = [], 0
        for seeds in self.seeds:
            count, size = (seeds, 1) if unit == "seed" else (self.pretrainings, seeds)
            starts = [first + size * index for index in range(count)]
            units = tuple(tuple(range(start, start + size)) for start in starts)
            sides.append(Side(units, tuple(range(count)), unit))
            first += count * size
        return sides


def expected_score(
    design: Design, row: int, *, pretraining: np.ndarray | float = 0.0, variance: float = 0.0
) -> np.ndarray:
    """Return a row's expected score over images and seeds, in percent.

    Args:
        pretraining: level of the pretrainings.
        variance: latent variance over pretrainings, for the expectation over them.
    """
    level = LEVEL + design.gap * (row == 0)
    rest = EASE**2 + design.own_sd**2 + NOISE**2 + design.seed_sd_of(row) ** 2 + variance
    expected: np.ndarray = 100 * ndtr((level + pretraining) / rest**0.5)
    return expected


def simulate(
    design: Design, trials: int, generator: np.random.Generator
) -> Iterator[tuple[np.ndarray, float, float]]:
    """Yield the correct answers (runs, images) and the true difference of the first two rows in points, twice.

    The first is the difference of the very pretrainings of the trial, the second that of the methods.
    """
    method = [
        float(expected_score(design, row, variance=design.pretraining_sd**2)) for row in (0, 1)
    ]
    for start in range(0, trials, BATCH):
        count = min(BATCH, trials - start)
        ease = EASE * _normal(generator, count, 1, 1, design.images)
        shared = design.shared**0.5 * _normal(generator, count, 1, max(design.seeds), 1)
        correct, checkpoints = [], []
        for row, seeds in enumerate(design.seeds):
            each = (count, design.pretrainings, seeds, design.images)
            pretraining = design.pretraining_sd * _normal(generator, *each[:2], 1, 1)
            seed = shared[:, :, :seeds] + (1 - design.shared) ** 0.5 * _normal(
                generator, *each[:3], 1
            )
            latent = NOISE * _normal(generator, *each)
            latent += ease + design.own_sd * _normal(generator, *each[:2], 1, design.images)
            latent += LEVEL + design.gap * (row == 0) + pretraining + design.seed_sd_of(row) * seed
            correct.append((latent > 0).reshape(count, -1, design.images))
            expected = expected_score(design, row, pretraining=pretraining)
            checkpoints.append(expected.reshape(count, -1).mean(1))
        for answers, ours, theirs in zip(
            np.concatenate(correct, axis=1), checkpoints[0], checkpoints[1], strict=True
        ):
            yield answers, float(ours - theirs), method[0] - method[1]


def _normal(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Sample a standard normal variable."""
    return generator.standard_normal(shape, dtype=np.float32)
