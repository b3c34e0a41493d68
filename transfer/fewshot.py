"""Choose the training images of few-shot learning: a sampled fraction, or the images that a file lists.

`balanced`, the default, samples equally many images of every class, or one more of some: the counts of SimCLR's lists
(arXiv 2002.05709, section 6: "in a class-balanced way"). `proportional` samples the same fraction of every class.
Both sample the fraction of all images that the task is named after; they differ where classes differ in size. A file
is a list such as SimCLR's `1percent.txt` and `10percent.txt` (github.com/google-research/simclr, imagenet_subsets).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from simmim_bench.data.class_checks import class_sizes
from simmim_bench.data.hub import HubImages
from simmim_bench.data.packed import PackedImages
from simmim_bench.data.sources import ImageList, ImageSource, NamedImages
from simmim_bench.data.subsets import class_counts, sample_subset
from simmim_bench.display import first_names, plural
from simmim_bench.errors import DataError, UsageError
from simmim_bench.recipe import Draw, Recipe

LISTED_CLASSES = 100  # most classes whose counts a record lists by name


def check_draw(task: str, recipe: Recipe, split: Path | None) -> None:
    """Refuse a draw that would not change the training images.

    Raises:
        UsageError: the task does not sample its training images, or a file lists them.
    """
    draw = getattr(recipe, "draw", "balanced")
    if draw == "balanced":
        return
    if task != "fewshot":
        raise UsageError(
            f"draw={draw} is for fewshot, but {task} learns from all training images; remove it."
        )
    if split is not None:
        raise UsageError(
            f"draw={draw} samples the training images, but --split {split} lists them; remove one of the two."
        )


def check_limit(recipe: Recipe, split: Path | None) -> None:
    """Refuse a limit that would leave out images that a file lists.

    Raises:
        UsageError: the recipe has a limit, and a file lists the training images.
    """
    limit: int | None = getattr(recipe, "limit", None)
    if limit is not None and split is not None:
        raise UsageError(
            f"limit={limit} leaves out images that --split {split} lists; remove one of the two."
        )


def few_shot_images(
    train: ImageSource,
    fraction: float,
    seed: int,
    split: Path | None = None,
    draw: Draw = "balanced",
) -> list[int]:
    """Return the indices, ascending, of the training images to learn from.

    Args:
        fraction: fraction of the training images, in (0, 1].
        seed: samples the images, unless `split` lists them.
        split: a text file that lists the images, one NAME or CLASS/NAME per line.
        draw: how to sample them; see `class_counts`.

    Raises:
        UsageError: the file lists a fraction of the images far from `fraction`, or the images are no files.
        DataError: the fraction is less than one image per class; or the file names a missing image or a name
            of several images, or has no image of a class.
    """
    if split is None:
        fault = fraction_fault(class_sizes(train), fraction)
        if fault is not None:
            raise DataError(fault)
        return sample_subset(train.labels, fraction, seed, draw)
    if not isinstance(train, ImageList | PackedImages):
        raise UsageError(
            f"--split {split} lists files, and a Hugging Face dataset has none; use --fraction alone."
        )
    chosen = _find_images(_read_split(split), train, split)
    _check_fraction(len(chosen) / len(train), fraction, split)
    _check_every_class(chosen, train, split)
    return chosen


def fraction_fault(sizes: Sequence[int], fraction: float) -> str | None:
    """Return why a fraction of classes of the given sizes has too few images, if it has.

    One image per class may be up to twice the fraction, as in a file that lists images.
    """
    images, classes = sum(sizes), np.count_nonzero(sizes)
    if round(fraction * images / classes) >= 1:
        return None
    return (
        f"{fraction:.0%} of {images} images in {classes} classes is less than one image per class; use "
        f"{'--fraction 10% or ' if fraction < 0.1 else ''}more images."
    )


def expected_draw_warnings(
    names: Sequence[str], sizes: Sequence[int], fraction: float, draw: Draw
) -> list[str]:
    """Return what `draw_warnings` will say of the images that a run samples, whatever its seed."""
    present = np.flatnonzero(sizes)
    counts = np.zeros(len(sizes), np.int64)
    generator = np.random.Generator(np.random.PCG64(0))
    counts[present] = class_counts(np.asarray(sizes)[present], fraction, draw, generator)
    return draw_warnings(names, sizes, counts.tolist(), fraction, draw)


def draw_warnings(
    names: Sequence[str],
    sizes: Sequence[int],
    counts: Sequence[int],
    fraction: float,
    draw: Draw,
) -> list[str]:
    """Return in what a sampled split differs from the draw's name or from the fraction, one line each.

    Args:
        names, sizes: of the classes in the training images.
        counts: sampled images of each class.
        fraction: that was requested.
    """
    total, images, most = sum(counts), sum(sizes), max(counts)
    warnings = []
    if total > round(fraction * images, 6):
        warnings.append(
            f"one image of each class is {total / images:.2%} of the training images, more than {fraction:.0%}"
        )
    if draw == "balanced":
        short = [
            f"{name} ({size:,})"
            for name, size, count in zip(names, sizes, counts, strict=True)
            if size and count < most - 1
        ]
        if short:
            warnings.append(
                f"{plural(len(short), 'class has', 'classes have')} fewer images than the {most:,} that are sampled "
                f"of the largest, and {'is' if len(short) == 1 else 'are'} taken whole: {first_names(short)}; "
                "-o draw=proportional samples the same fraction of every class"
            )
    else:
        below = sum(0 < size * total < images for size in sizes)
        if below:
            warnings.append(
                f"{plural(below, 'class has', 'classes have')} less than one image in {total / images:.2%} of the "
                "images, and one image is taken; the other classes have fewer in its place"
            )
    return warnings


def describe_draw(
    names: Sequence[str], sizes: Sequence[int], counts: Sequence[int], draw: str
) -> dict[str, Any]:
    """Describe the images of a few-shot run by class, as a record stores them in its details.

    Args:
        names, sizes: of the classes in the training images.
        counts: images of each class to learn from.
        draw: how they were sampled; "listed" by a file.
    """
    present = [c for c, size in zip(counts, sizes, strict=True) if size]
    described: dict[str, Any] = {
        "draw": draw,
        "fraction": sum(counts) / sum(sizes),
        "images_per_class": {
            "min": min(present),
            "median": float(np.median(present)),
            "max": max(present),
        },
        "classes_by_images": {str(n): present.count(n) for n in sorted(set(present))},
    }
    if len(names) <= LISTED_CLASSES:
        described["classes"] = {
            name: f"{count} of {size}"
            for name, count, size in zip(names, counts, sizes, strict=True)
        }
    return described


def split_sha256(images: ImageSource) -> str:
    """Hash the images of a split by class and name: SHA-256 in hexadecimal, the same on every machine.

    The name of an image of a Hugging Face dataset is its row.
    """
    if isinstance(images, HubImages):
        named = zip(images.labels.tolist(), images.indices, strict=True)
        lines = sorted(f"{images.classes[label]}/{row}\n" for label, row in named)
    else:
        assert isinstance(images, ImageList | PackedImages)
        within = (PurePosixPath(images.folder.name, name) for name in images.names)
        lines = sorted(f"{path.parent.name}/{path.name}\n" for path in within)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _read_split(split: Path) -> list[str]:
    """Return the distinct entries of a split file."""
    try:
        lines = [line.strip() for line in split.read_text("utf-8", "surrogateescape").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"the split {split} cannot be read: {error}.") from error
    return list(dict.fromkeys(line for line in lines if line))


def _find_images(names: Sequence[str], train: NamedImages, split: Path) -> list[int]:
    """Return the indices, ascending, of the training images that a split file names."""
    indices: dict[str, list[int]] = {}
    for index, path in enumerate(train.names):
        for suffix in _path_suffixes(path, 1):
            indices.setdefault(suffix, []).append(index)
    matches = {
        name: next((indices[s] for s in _path_suffixes(name, 2) if s in indices), [])
        for name in names
    }
    missing = [name for name, found in matches.items() if not found]
    if missing:
        raise DataError(
            f"the split {split} names {len(missing)} images that do not exist below {train.folder}: "
            f"{first_names(missing)}"
        )
    for name, found in matches.items():
        if len(found) > 1:
            raise DataError(
                f"the split {split} names {name}, which matches {len(found)} images, such as "
                f"{train.name(found[0])} and {train.name(found[1])}; write CLASS/NAME."
            )
    return sorted({index for (index,) in matches.values()})


def _path_suffixes(path: str, min_parts: int) -> Iterator[str]:
    """Yield the trailing parts of a path, the longest first, of `min_parts` parts or the whole path at least."""
    parts = PurePosixPath(path).parts
    for start in range(max(1, len(parts) - min_parts + 1)):
        yield "/".join(parts[start:])


def _check_fraction(listed: float, fraction: float, split: Path) -> None:
    """Raise an error if a split file lists less than half or more than twice the fraction."""
    if not fraction / 2 < listed < fraction * 2:
        raise UsageError(
            f"the split {split} lists {listed:.1%} of the training images, but --fraction is {fraction:.0%}; use "
            "the --fraction of the split, which names the score's column."
        )


def _check_every_class(chosen: Sequence[int], train: NamedImages, split: Path) -> None:
    """Raise an error if a split file lists no image of a class."""
    labels = {train.labels[index] for index in chosen}
    empty = [name for label, name in enumerate(train.classes) if label not in labels]
    if empty:
        raise DataError(
            f"the split {split} lists no image of {len(empty)} classes: {first_names(empty)}"
        )
