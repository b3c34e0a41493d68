"""Hold out a fraction of the training images for validation, where a data set has no validation split.

Which images these are depends on their names, their classes, the fraction and a seed alone: not on the order of the
images, on other classes, on the machine, or on the seed of a run. Pretraining and classification hold out the same
images of class folders, of packed images and of a label file, except where most classes are very small; see
`hold_out_images`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TypeVar, cast

import numpy as np

from simmim_bench.data.hub import HubImages
from simmim_bench.data.packed import PackedImages
from simmim_bench.data.shards import TarShards
from simmim_bench.data.sources import ImageList, ImageSource
from simmim_bench.display import first_names
from simmim_bench.errors import DataError

SEED = 0  # the same for all runs, whose scores are otherwise of different images
AnyImages = TypeVar("AnyImages", bound=ImageSource)


def hold_out_classes(
    images: AnyImages, fraction: float, seed: int = SEED
) -> tuple[AnyImages, AnyImages]:
    """Split images of classes in two, both with all classes: those to train on, and the held-out ones.

    Args:
        fraction: of every class, rounded; at least one image, and not all of them.
        seed: of the choice.

    Raises:
        DataError: a class has one image alone.
    """
    labels = np.asarray(images.labels)
    sizes = np.bincount(labels, minlength=len(images.classes))
    single = [images.classes[number] for number in np.flatnonzero(sizes == 1).tolist()]
    if single:
        raise DataError(
            f"{len(single):,} of {len(sizes):,} classes have one image, which cannot be both trained on and scored: "
            f"{first_names(single)}; add images of them, or remove them."
        )
    return _split(images, held_out_indices(image_names(images), labels, fraction, seed))


def hold_out_images(
    images: AnyImages, fraction: float, seed: int = SEED
) -> tuple[AnyImages, AnyImages]:
    """Split images for pretraining in two: those to train on, and the held-out ones.

    Args:
        fraction: of every class, as in `hold_out_classes`; of images without classes, of every folder. It is the
            fraction of all images instead, where these numbers add up to more than twice as many: then many classes
            are small.
        seed: of the choice.

    Raises:
        DataError: there is one image alone.
    """
    if len(images) < 2:
        raise DataError(
            f"{images.name(0)} is the only image, and cannot be both trained on and held out; add images."
        )
    names = [*image_names(images)]
    groups = np.asarray(images.labels)
    if len(images.classes) == 1:
        _, groups = np.unique([_first_folder(name) for name in names], return_inverse=True)
    chosen = held_out_indices(names, groups, fraction, seed)
    if not 0 < len(chosen) <= 2 * fraction * len(images) + 1:
        chosen = held_out_indices(names, np.zeros(len(names), np.int64), fraction, seed)
    return _split(images, chosen)


def held_out_indices(
    names: Iterable[str], groups: np.ndarray, fraction: float, seed: int = SEED
) -> np.ndarray:
    """Return the indices, ascending, of the images to hold out.

    Args:
        names: of the images.
        groups: (N,) integers; the fraction of each group is rounded to the nearest number of images, at least one and
            not all. A group of one image has none held out.
        fraction: in (0, 1).
        seed: of the choice.
    """
    places = np.fromiter((place_of(name, seed) for name in names), np.float64, len(groups))
    order = np.lexsort((places, groups))
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    # 0.15 * 10 + 0.5 is below 2 in floating point.
    counts = np.floor(np.round(fraction * sizes + 0.5, 6)).astype(np.int64)
    counts = np.minimum(np.maximum(counts, 1), sizes - 1)
    ranks = np.arange(len(order)) - np.repeat(starts, sizes)
    return np.sort(order[ranks < np.repeat(counts, sizes)])


def place_of(name: str, seed: int) -> float:
    """Return a number from 0 to 1 that depends on a name and the seed alone."""
    digest = hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def image_names(images: ImageSource) -> Iterator[str]:
    """Yield the names of images below their split's folder, or in their shards; of a Hugging Face dataset, the rows."""
    if isinstance(images, ImageList | PackedImages):
        yield from images.names
    elif isinstance(images, TarShards):
        yield from (member.name.removeprefix("./") for member in images.members)
    elif isinstance(images, HubImages):
        yield from map(str, images.indices)
    else:
        yield from (images.name(index) for index in range(len(images)))


def _first_folder(name: str) -> str:
    folder, slash, _ = name.partition("/")
    return folder if slash else ""


def _split(images: AnyImages, chosen: np.ndarray) -> tuple[AnyImages, AnyImages]:
    left = np.setdiff1d(np.arange(len(images)), chosen)
    train, held_out = (images.subset(part.tolist()) for part in (left, chosen))
    return cast(AnyImages, train), cast(AnyImages, held_out)
