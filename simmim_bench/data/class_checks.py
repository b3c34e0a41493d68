"""Check the classes of labelled images: that each has images, and that both splits have the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from simmim_bench.data.listing import SUFFIXES
from simmim_bench.data.packed import PackedImages
from simmim_bench.errors import DataError


class Classified(Protocol):
    """Images with classes."""

    @property
    def labels(self) -> Sequence[int] | np.ndarray:
        """The class of every image."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes."""


def class_faults(folder: Path, images: Classified) -> list[str]:
    """Return a message for each fault of a split's class folders.

    Args:
        folder: of the split, or the label file.
    """
    faults = empty_classes(folder, images)
    if len(images.classes) == 1 and folder.is_file():
        return [
            f"label file {folder} has one class, {images.classes[0]}, and a classifier needs two or more."
        ]
    if len(images.classes) == 1 and isinstance(images, PackedImages):
        faults.append(
            f"all images of the shards in {folder} have one class, {images.classes[0]}, and a classifier needs two or "
            "more."
        )
    elif len(images.classes) == 1:
        faults.append(
            f"data folder {folder} has one class folder, {images.classes[0]}, and a classifier needs two or more; "
            "if the classes are below it, move them up."
        )
    return faults


def empty_classes(folder: Path, images: Classified) -> list[str]:
    """Return a message for each class without images."""
    if isinstance(images, PackedImages):
        return [
            f"class {name} of the shards in {folder} has no images; pack images of it, or pack without its folder."
            for name, count in zip(images.classes, class_sizes(images), strict=True)
            if not count
        ]
    return [
        f"class folder {folder / name} has no images ({SUFFIXES}); add images or remove it."
        for name, count in zip(images.classes, class_sizes(images), strict=True)
        if not count
    ]


def class_sizes(images: Classified) -> list[int]:
    """Return the number of images of every class."""
    counts: list[int] = np.bincount(images.labels, minlength=len(images.classes)).tolist()
    return counts


def check_same_classes(train: Classified, val: Classified, data: Path) -> None:
    """Check that both splits of a data set have the same classes.

    Raises:
        DataError: Some classes are in one split only; the message names them.
    """
    faults = unshared_classes(train.classes, val.classes)
    if faults:
        raise DataError(f"data folder {data}: {faults[0]}")
    if list(train.classes) != list(val.classes):
        raise DataError(
            f"dataset {data} numbers the classes of its splits differently; use another dataset."
        )


def unshared_classes(train: Sequence[str], val: Sequence[str]) -> list[str]:
    """Return a message for each split that has class folders which the other one lacks."""
    faults = []
    for split, here, other, there in (("train", train, "val", val), ("val", val, "train", train)):
        unshared = sorted(set(here) - set(there))
        if not unshared:
            continue
        missing = f"{len(unshared):,} classes of" if len(unshared) > 1 else "1 class of"
        verb = "are" if len(unshared) > 1 else "is"
        alike = {_plain(name): name for name in there if name not in here}
        similar = [f"{n!r} and {alike[_plain(n)]!r}" for n in unshared if _plain(n) in alike]
        hint = f" ({similar[0]} differ in case or spaces)" if similar else ""
        faults.append(
            f"{missing} {split}/ {verb} missing in {other}/: {', '.join(unshared[:5])}"
            f"{', …' if len(unshared) > 5 else ''}{hint}; use the same classes in both."
        )
    return faults


def _plain(name: str) -> str:
    return "".join(name.split()).casefold()
