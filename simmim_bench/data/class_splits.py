"""Open the splits of a data set for classification.

They are in class folders, labelled tar shards, a label file or a Hugging Face dataset. Where there is no validation
split, a fraction of the training images can be held out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from simmim_bench.data.class_checks import class_faults
from simmim_bench.data.hold_out import hold_out_classes
from simmim_bench.data.hub_classes import has_hub_split, hub_classes
from simmim_bench.data.label_file import listed_images, read_label_file
from simmim_bench.data.labelled_shards import holds_shards, only_labelled, packed_images
from simmim_bench.data.listing import list_folder, list_tree
from simmim_bench.data.named import HUB_PREFIX
from simmim_bench.data.names import SharedArray
from simmim_bench.data.sources import ImageList, ImageSource, NamedImages
from simmim_bench.data.split_folders import (
    describe_missing_split,
    has_split,
    is_label_file,
    split_folder,
    split_place,
)
from simmim_bench.errors import DataError, UsageError

OUTSIDE = -1  # instead of a class, of images that are in no class folder


def class_files(root: Path, split: str, val_fraction: float | None = None) -> NamedImages:
    """List a split in ImageNet's layout, in labelled tar shards, `root/split/*.tar`, or of a label file.

    ImageNet's layout is `root/split/class/image`, or `root/class/image` with a `val_fraction`. The images of a class
    are all below its folder, at any depth. Classes are numbered in the order of their names, as by torchvision's
    `ImageFolder`: "10" comes before "2".

    Args:
        val_fraction: the fraction of the training images that are the split "val"; None to read that split.

    Raises:
        UsageError: there is a fraction, but also a split "val".
        DataError: A folder is missing or empty, a class has no images, or there is one class alone.
    """
    if val_fraction is not None:
        whole = images_without_val(root)
        return hold_out_classes(whole, val_fraction)[split == "val"]
    images = list_classes(root, split)
    faults = class_faults(split_place(root, split), images)
    if faults:
        raise DataError(faults[0])
    return images


def images_without_val(root: Path) -> NamedImages:
    """List the images of classes of a data set without a validation split.

    Raises:
        UsageError: it has one.
        DataError: see `class_files`.
    """
    if has_validation(root):
        raise _val_exists(root)
    folder = split_folder(root, "train") if has_split(root, "train") else root
    images: NamedImages
    if is_label_file(root):
        images = listed_images(root, "train")
    elif not folder.is_dir():
        raise DataError(describe_missing_split(split_folder(root, "train")))
    else:
        images = list_class_folders(folder, root)
    faults = class_faults(folder, images)
    if faults:
        raise DataError(faults[0])
    return images


def has_validation(root: Path) -> bool:
    """Return whether a folder or a label file has a validation split.

    Raises:
        DataError: the label file cannot be read.
    """
    if is_label_file(root):
        return "val" in read_label_file(root).splits
    return has_split(root, "val")


def _val_exists(data: Path) -> UsageError:
    return UsageError(
        f"{data} has a validation split; remove --val-fraction, which holds out training images of data without one."
    )


def class_folders(root: Path, split: str) -> ImageList:
    """List a split in class folders; see `class_files`.

    Raises:
        DataError: see `class_files`; or the split is in tar shards.
    """
    images = class_files(root, split)
    if not isinstance(images, ImageList):
        raise DataError(f"{images.folder} holds tar shards; use a folder with class folders.")
    return images


def class_images(data: Path, split: str, val_fraction: float | None = None) -> ImageSource:
    """Open a split for classification: see `class_files`, or a Hugging Face dataset `hfds:NAME[#COLUMN]`.

    Args:
        split: `train` or `val`.
        val_fraction: see `class_files`.

    Raises:
        UsageError: there is a fraction, but also a split "val".
        DataError: See `class_files` and `hub_classes`.
        MissingFrameworkError: The package `datasets` is not installed.
    """
    if str(data).startswith(HUB_PREFIX):
        name = str(data).removeprefix(HUB_PREFIX)
        if val_fraction is None:
            return hub_classes(name, split)
        if has_hub_split(name, "val"):
            raise _val_exists(data)
        return hold_out_classes(hub_classes(name, "train"), val_fraction)[split == "val"]
    return class_files(data, split, val_fraction)


def list_classes(root: Path, split: str) -> NamedImages:
    """List the images of every class of a split, in class folders, shards or a label file; a class may have none.

    Raises:
        DataError: A folder is missing or has neither.
    """
    if is_label_file(root):
        return listed_images(root, split)
    folder = split_folder(root, split)
    if not folder.is_dir():
        raise DataError(describe_missing_split(folder))
    return list_class_folders(folder, root)


def list_class_folders(folder: Path, root: Path) -> NamedImages:
    """List the images of every class folder in a folder, or of its labelled tar shards; a class may have none.

    Args:
        root: the folder that names in the fingerprint are relative to.

    Raises:
        DataError: The folder cannot be listed, or has neither.
    """
    classes = sorted(list_folder(str(folder)).folders)
    if holds_shards(folder, classes):
        return only_labelled(packed_images(folder))
    if not classes:
        raise DataError(
            f"data folder {folder} has no class folders; move the images to {folder}/CLASS/ (ImageNet's own archives "
            "have none: torchvision.datasets.ImageNet creates them)."
        )
    listed, left_out = list_tree(folder)
    numbers = {name: number for number, name in enumerate(classes)}
    above = (name.partition("/")[0] for name in listed.names)
    labels = np.fromiter((numbers.get(name, OUTSIDE) for name in above), np.int64, len(listed))
    stray = tuple(listed.names.take(np.flatnonzero(labels == OUTSIDE)))
    if stray:
        listed = listed.take(np.flatnonzero(labels != OUTSIDE))
        labels = labels[labels != OUTSIDE]
    left_out = replace(left_out, outside=stray)
    return ImageList(root, listed, SharedArray(labels), tuple(classes), left_out)
