"""Sample images: equally many of every class, or the same fraction of every class; or a number of them, for `limit`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import numpy as np

from simmim_bench.data.sources import ImageSource
from simmim_bench.errors import UsageError
from simmim_bench.recipe import Draw

AnyImages = TypeVar("AnyImages", bound=ImageSource)


def balanced_subset(labels: Sequence[int] | np.ndarray, fraction: float, seed: int) -> list[int]:
    """Sample a fraction of the images, as evenly from the classes as their sizes allow; see `sample_subset`."""
    return sample_subset(labels, fraction, seed, "balanced")


def sample_subset(
    labels: Sequence[int] | np.ndarray, fraction: float, seed: int, draw: Draw
) -> list[int]:
    """Sample a fraction of the images; on classes of one size both draws sample the same images.

    The number of images is that of SimCLR's lists (github.com/google-research/simclr, imagenet_subsets): 12,811
    and 128,116 of ImageNet's 1,281,167, the fraction rounded down.

    Args:
        labels: class of every image.
        fraction: in (0, 1]; every class keeps at least one image.
        seed: of the sampling.
        draw: see `class_counts`.

    Returns:
        Indices, ascending. Equal arguments return equal indices on every machine.

    Raises:
        UsageError: The fraction is out of range.
    """
    return _sample(
        labels, seed, lambda sizes, generator: class_counts(sizes, fraction, draw, generator)
    )


def sample_per_class(labels: Sequence[int] | np.ndarray, count: int, seed: int) -> list[int]:
    """Sample `count` images of every class, or all of a class that has fewer.

    Returns:
        Indices, ascending. A larger count of the same seed has the same images and more.
    """
    return _sample(labels, seed, lambda sizes, _: np.minimum(sizes, count))


def _sample(
    labels: Sequence[int] | np.ndarray,
    seed: int,
    count: Callable[[np.ndarray, np.random.Generator], np.ndarray],
) -> list[int]:
    """Sample images; `count` returns the number of each class from the sizes of the classes."""
    array = np.asarray(labels)
    classes, sizes = np.unique(array, return_counts=True)
    generator = np.random.Generator(np.random.PCG64(seed))
    orders = [generator.permutation(np.flatnonzero(array == c)) for c in classes]
    counts = count(sizes, generator)
    chosen = [order[:number] for order, number in zip(orders, counts, strict=True)]
    return sorted(int(i) for i in np.concatenate(chosen))


def limit_images(images: AnyImages, limit: int | None, split: str) -> AnyImages:
    """Return `limit` images, as evenly from the classes as their sizes allow; all where there are no more.

    Runs that are compared with each other need the same images, so that they depend on no run's seed.

    Args:
        limit: number of images; None for all.
        split: name of the split, for the message.

    Raises:
        UsageError: there are more classes than `limit`.
    """
    if limit is None or limit >= len(images):
        return images
    classes = len(np.unique(images.labels))
    if limit < classes:
        raise UsageError(
            f"limit={limit} is less than one image for each of the {classes:,} classes of {split}/; use --limit "
            f"{classes} or more."
        )
    return cast(AnyImages, images.subset(limited_indices(images.labels, limit)))


def limited_indices(labels: Sequence[int] | np.ndarray, limit: int) -> list[int]:
    """Return the indices, ascending, of the images that a `limit` leaves of more; the same in every run.

    Args:
        labels: class of every image.
        limit: number of images, from the number of classes to less than that of the images.
    """
    return balanced_subset(labels, limit / len(labels), seed=0)


def class_counts(
    sizes: np.ndarray, fraction: float, draw: Draw, generator: np.random.Generator
) -> np.ndarray:
    """Distribute a fraction of the images over classes of the given sizes, none of them 0.

    Args:
        sizes: (classes,) images by class.
        fraction: of all images, in (0, 1]; every class keeps at least one image.
        draw: "balanced" for counts as equal as the sizes allow. SimCLR's lists have 12 or 13 and 128 or 129 images
            of each of ImageNet's classes; a class with fewer is taken whole, and the others make up for it.
            "proportional" for the fraction of every class, rounded by largest remainders, at least one image.
        generator: samples the classes that have one image more than others of their size.

    Returns:
        (classes,) images to sample of each class.

    Raises:
        UsageError: The fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"fraction {fraction} is not in (0, 1]; use 1% or 10%.")
    # 0.29 * 100 is below 29 in floating point.
    total = max(len(sizes), math.floor(round(fraction * int(sizes.sum()), 6)))
    counts = {"balanced": _even_counts, "proportional": _proportional_counts}[draw]
    return counts(sizes, total, generator)


def _even_counts(sizes: np.ndarray, total: int, generator: np.random.Generator) -> np.ndarray:
    """Distribute `total` images over classes of the given sizes, with counts as equal as possible."""
    counts = np.zeros_like(sizes)
    while rest := total - int(counts.sum()):
        unfilled = np.flatnonzero(counts < sizes)
        if rest < len(unfilled):
            counts[generator.choice(unfilled, rest, replace=False)] += 1
        else:
            counts[unfilled] += np.minimum(rest // len(unfilled), (sizes - counts)[unfilled])
    return counts


def _proportional_counts(
    sizes: np.ndarray, total: int, generator: np.random.Generator
) -> np.ndarray:
    """Distribute `total` images in proportion to the sizes, by largest remainders, at least one per class."""
    counts = np.ones_like(sizes)
    shared = np.arange(len(sizes))  # classes whose proportion is one image or more; never none
    while True:
        rest = total - (len(sizes) - len(shared))
        products, whole = rest * sizes[shared], int(sizes[shared].sum())
        if (products >= whole).all():
            break
        shared = shared[products >= whole]
    # Whole numbers throughout, so that equal remainders are equal on every machine.
    counts[shared], remainders = products // whole, products % whole
    left = total - int(counts.sum())
    if left:
        least = np.sort(remainders)[-left]
        counts[shared[remainders > least]] += 1
        tied = shared[remainders == least]
        more = left - int((remainders > least).sum())
        counts[generator.choice(tied, more, replace=False)] += 1
    return counts
