"""Which training images few-shot learning sees: the same number of every class, or those of a file.

In: the training images, a share and a seed, or a list such as SimCLR's `1percent.txt` and `10percent.txt`
(github.com/google-research/simclr, imagenet_subsets). Out: their numbers, and a hash to compare splits by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from simmim_bench.data.datasets import balanced_subset
from simmim_bench.data.sources import ImageList
from simmim_bench.errors import DataError, UsageError


def few_shot_images(
    train: ImageList, fraction: float, seed: int, listed: Path | None = None
) -> list[int]:
    """Choose the images of a split, ascending.

    Args:
        fraction: share of the training images, in (0, 1].
        listed: a text file of images, NAME or CLASS/NAME a line, instead of a share that is drawn.

    Raises:
        UsageError: a file that lists another share than `fraction`.
        DataError: the share is less than one image a class, or the file names an image that is not there
            or a name that several have, or leaves out a class.
    """
    if listed is None:
        if round(fraction * len(train) / len(train.classes)) < 1:
            raise DataError(
                f"{fraction:.0%} of {len(train)} images in {len(train.classes)} classes is less than one a "
                f"class; use {'--fraction 10% or ' if fraction < 0.1 else ''}more images."
            )
        return balanced_subset(train.labels, fraction, seed)
    try:
        lines = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"the split {listed} cannot be read: {error}.") from error
    found: dict[str, list[int]] = {}
    for number, path in enumerate(train.paths):
        for name in _names(path.relative_to(train.root / "train").as_posix(), 1):
            found.setdefault(name, []).append(number)
    matches = {
        line: next((found[name] for name in _names(line, 2) if name in found), [])
        for line in dict.fromkeys(lines)
        if line
    }
    lost = [line for line, numbers in matches.items() if not numbers]
    if lost:
        raise DataError(
            f"the split {listed} names {len(lost)} images that are not below {train.root / 'train'}: "
            f"{', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}"
        )
    for line, numbers in matches.items():
        if len(numbers) > 1:
            raise DataError(
                f"the split {listed} names {line}, which {len(numbers)} images are called, such as "
                f"{train.paths[numbers[0]]} and {train.paths[numbers[1]]}; write CLASS/NAME."
            )
    chosen = sorted({number for (number,) in matches.values()})
    share = len(chosen) / len(train)
    if not fraction / 2 < share < fraction * 2:
        raise UsageError(
            f"the split {listed} has {share:.1%} of the training images, --fraction says {fraction:.0%}; the "
            "score's column follows from --fraction."
        )
    seen = {train.labels[number] for number in chosen}
    empty = [name for label, name in enumerate(train.classes) if label not in seen]
    if empty:
        raise DataError(
            f"the split {listed} has no image of {len(empty)} classes: {', '.join(empty[:3])}"
            f"{', ...' if len(empty) > 3 else ''}"
        )
    return chosen


def _names(path: str, least: int) -> Iterator[str]:
    """Give a path's endings, the longest first, of so many parts at least where it has them."""
    parts = PurePosixPath(path).parts
    for start in range(max(1, len(parts) - least + 1)):
        yield "/".join(parts[start:])


def split_sha256(images: ImageList) -> str:
    """Hash the images of a split by class and name: SHA-256 in hexadecimal, the same on every machine."""
    lines = sorted(f"{path.parent.name}/{path.name}\n" for path in images.paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
