"""Relate the class folders of a validation set to the outputs of a classifier.

The published sets name their folders by WordNet ids, ImageNet-V2 by the number of the class: "10" is the class after
"9", although it sorts before "2". A folder of a user's own has the names of the classifier's classes. A folder that
names no class is refused, and so is a published set without all of its folders, which may have been numbered anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simmim_bench.data.class_checks import empty_classes
from simmim_bench.data.class_splits import list_class_folders
from simmim_bench.data.labelled_shards import holds_shards, packed_images
from simmim_bench.data.listing import list_folder
from simmim_bench.data.sources import NamedImages
from simmim_bench.data.split_folders import split_folder
from simmim_bench.display import first_names
from simmim_bench.errors import DataError
from simmim_bench.shift_sets import SHIFT_SETS
from transfer.shift.imagenet_classes import classes_of, imagenet_classes

COMPLETE = ("v2", "a", "r", "sketch")  # sets whose class folders are known
MASKED = ("a", "r")  # sets on which the logits of their own classes alone are compared


@dataclass(frozen=True)
class ClassMap:
    """What the class folders of a set mean to a classifier.

    Attributes:
        labels: the label of every class folder, in the order of the folders' names.
        outputs: numbers of the outputs that are compared, in the order of the labels; None for all.
    """

    labels: tuple[int, ...]
    outputs: tuple[int, ...] | None = None


def images_folder(root: Path) -> Path:
    """Return the folder of a set's class folders: its `val/` if it has one, else itself.

    Raises:
        DataError: it does not exist.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data folder {root} {what}; use the folder of the class folders.")
    val = split_folder(root, "val")
    return val if val.is_dir() else root


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders in a folder, sorted as its images are listed.

    Raises:
        DataError: there are none.
    """
    names = tuple(sorted(list_folder(str(folder)).folders))
    if holds_shards(folder, names):
        names = packed_images(folder).classes
    if not names:
        raise DataError(
            f"data folder {folder} has no class folders; move the images to {folder}/CLASS/, or name another folder."
        )
    return names


def map_classes(
    name: str, folder: Path, names: Sequence[str], classes: Sequence[str], ckpt: str
) -> ClassMap:
    """Relate class folders to a classifier's outputs.

    Args:
        name: of the set, as in `--data NAME=DIR`.
        folder: of the class folders.
        names: of the class folders, sorted.
        classes: of the classifier, in the order of its outputs.
        ckpt: the classifier, for messages.

    Raises:
        DataError: a folder names no class of the set or of the classifier; the published set is not complete; or the
            classifier does not know a class of the set.
    """
    number_of = {known: number for number, known in enumerate(classes)}
    if name not in COMPLETE:
        _check_known(name, folder, names, classes, ckpt)
        return ClassMap(tuple(number_of[known] for known in names))
    own = classes_of(name)
    ids = _ids_of_numbers(names) if name == "v2" else tuple(names)
    _check_complete(name, folder, names, ids)
    missing = [known for known in own if known not in number_of]
    if missing:
        raise DataError(
            f"{name}: {ckpt} does not know {len(missing):,} of the {len(own):,} classes of "
            f"{SHIFT_SETS[name].full_name}: {first_names(missing)}; use a classifier of ImageNet-1k."
        )
    if name not in MASKED:
        return ClassMap(tuple(number_of[known] for known in ids))
    return ClassMap(
        labels=tuple(own.index(known) for known in ids),
        outputs=tuple(number_of[known] for known in own),
    )


def _ids_of_numbers(names: Sequence[str]) -> tuple[str, ...]:
    """Return the WordNet ids of classes named by their number; other names as they are."""
    known = imagenet_classes()
    if not all(name.isascii() and name.isdecimal() for name in names):
        return tuple(names)
    return tuple(known[int(name)] if int(name) < len(known) else name for name in names)


def _check_complete(name: str, folder: Path, names: Sequence[str], ids: Sequence[str]) -> None:
    """Check that class folders are those of a published set, each once."""
    own, full_name = set(classes_of(name)), SHIFT_SETS[name].full_name
    other = next((o for o in MASKED if own != set(classes_of(o)) == {*ids}), None)
    if other is not None:
        raise DataError(
            f"{name}: the class folders of {folder} are those of {SHIFT_SETS[other].full_name}, not of {full_name}; "
            f"use --data {other}={folder}."
        )
    foreign = [found for found, known in zip(names, ids, strict=True) if known not in own]
    if foreign:
        raise DataError(
            f"{name}: {len(foreign):,} of {len(names):,} class folders of {folder} name no class of {full_name}, which "
            f"has {SHIFT_SETS[name].folders}: {first_names(foreign)}; use the folder of the published set."
        )
    if len(set(ids)) < len(ids):
        twice = next(n for n, known in zip(names, ids, strict=True) if ids.count(known) > 1)
        raise DataError(
            f"{name}: {folder / twice} names a class that another folder of {folder} names, too; use the folder of the "
            "published set."
        )
    if len(ids) < len(own):
        raise DataError(
            f"{name}: {folder} has {len(ids):,} of the {len(own):,} class folders of {full_name}; extract the "
            "whole set."
        )


def _check_known(
    name: str, folder: Path, names: Sequence[str], classes: Sequence[str], ckpt: str
) -> None:
    """Check that a classifier knows every class folder."""
    unknown = [found for found in names if found not in set(classes)]
    if not unknown:
        return
    hint = "rename the folders to the classes of the classifier, or remove them"
    if name not in SHIFT_SETS and all(found.isdecimal() for found in names):
        hint = f"if they are the numbers of ImageNet-V2, use --data v2={folder}"
    raise DataError(
        f"{name}: {len(unknown):,} of {len(names):,} class folders of {folder} name no class that {ckpt} knows: "
        f"{first_names(unknown)}; {hint}."
    )


def list_images(folder: Path) -> NamedImages:
    """List the images of class folders.

    Raises:
        DataError: there are no class folders, or one has no images.
    """
    images = list_class_folders(folder, folder)
    faults = empty_classes(folder, images)
    if faults:
        raise DataError(faults[0])
    return images


def label_images(images: NamedImages, mapped: ClassMap) -> np.ndarray:
    """Return the label of every image, (N,), from that of its class folder."""
    labels: np.ndarray = np.array(mapped.labels, np.int64)[images.labels]
    return labels
