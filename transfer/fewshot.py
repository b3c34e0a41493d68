"""Choose the training images of few-shot learning: a balanced fraction, or the images that a file lists.

The fraction takes equally many images of every class, or one more of some, so that its size is that of SimCLR's
lists. A file is a list such as SimCLR's `1percent.txt` and `10percent.txt` (github.com/google-research/simclr,
imagenet_subsets).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from simmim_bench.data.datasets import balanced_subset
from simmim_bench.data.hub import HubImages
from simmim_bench.data.sources import ImageList, ImageSource, split_folder
from simmim_bench.display import first_names
from simmim_bench.errors import DataError, UsageError


def few_shot_images(
    train: ImageSource, fraction: float, seed: int, split: Path | None = None
) -> list[int]:
    """Return the indices, ascending, of the training images to learn from.

    Args:
        fraction: fraction of the training images, in (0, 1].
        seed: samples the images, unless `split` lists them.
        split: a text file that lists the images, one NAME or CLASS/NAME per line.

    Raises:
        UsageError: the file lists a fraction of the images far from `fraction`, or the images are no files.
        DataError: the fraction is less than one image per class; or the file names a missing image or a name
            of several images, or has no image of a class.
    """
    if split is None:
        if round(fraction * len(train) / len(train.classes)) < 1:
            raise DataError(
                f"{fraction:.0%} of {len(train)} images in {len(train.classes)} classes is less than one image "
                f"per class; use {'--fraction 10% or ' if fraction < 0.1 else ''}more images."
            )
        return balanced_subset(train.labels, fraction, seed)
    if not isinstance(train, ImageList):
        raise UsageError(
            f"--split {split} lists files, and a Hugging Face dataset has none; use --fraction alone."
        )
    chosen = _find_images(_read_split(split), train, split)
    _check_fraction(len(chosen) / len(train), fraction, split)
    _check_every_class(chosen, train, split)
    return chosen


def split_sha256(images: ImageSource) -> str:
    """Hash the images of a split by class and name: SHA-256 in hexadecimal, the same on every machine.

    The name of an image of a Hugging Face dataset is its row.
    """
    if isinstance(images, HubImages):
        named = zip(images.labels.tolist(), images.indices, strict=True)
        lines = sorted(f"{images.classes[label]}/{row}\n" for label, row in named)
    else:
        assert isinstance(images, ImageList)
        lines = sorted(f"{path.parent.name}/{path.name}\n" for path in images.paths)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _read_split(split: Path) -> list[str]:
    """Return the distinct entries of a split file."""
    try:
        lines = [line.strip() for line in split.read_text("utf-8", "surrogateescape").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"the split {split} cannot be read: {error}.") from error
    return list(dict.fromkeys(line for line in lines if line))


def _find_images(names: Sequence[str], train: ImageList, split: Path) -> list[int]:
    """Return the indices, ascending, of the training images that a split file names."""
    indices: dict[str, list[int]] = {}
    folder = split_folder(train.root, "train")
    for index, path in enumerate(train.paths):
        for suffix in _path_suffixes(path.relative_to(folder).as_posix(), 1):
            indices.setdefault(suffix, []).append(index)
    matches = {
        name: next((indices[s] for s in _path_suffixes(name, 2) if s in indices), [])
        for name in names
    }
    missing = [name for name, found in matches.items() if not found]
    if missing:
        raise DataError(
            f"the split {split} names {len(missing)} images that do not exist below {folder}: "
            f"{first_names(missing)}"
        )
    for name, found in matches.items():
        if len(found) > 1:
            raise DataError(
                f"the split {split} names {name}, which matches {len(found)} images, such as "
                f"{train.paths[found[0]]} and {train.paths[found[1]]}; write CLASS/NAME."
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


def _check_every_class(chosen: Sequence[int], train: ImageList, split: Path) -> None:
    """Raise an error if a split file lists no image of a class."""
    labels = {train.labels[index] for index in chosen}
    empty = [name for label, name in enumerate(train.classes) if label not in labels]
    if empty:
        raise DataError(
            f"the split {split} lists no image of {len(empty)} classes: {first_names(empty)}"
        )
