"""Read images and label maps in ADE20K's layout; every error names the file.

The folder has `images/{training,validation}/*.jpg`, `annotations/{training,validation}/*.png` of one channel (0 is
ignored, 1..K are the classes) and optionally `classes.txt`, whose line i names label i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from simmim_bench.data.decode import read_image
from simmim_bench.data.sources import ImageList
from simmim_bench.errors import DataError
from transfer.doctor_checks import CHECK_AT_ONCE

MAX_CLASSES = 255  # the labels of 8 bits, without 0


@dataclass(frozen=True, kw_only=True)
class SegmentationSplit:
    """The images of one split, sorted, and their label maps in the same order."""

    root: Path
    folder: Path
    images: tuple[Path, ...]
    masks: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """Hash the path below the root and the size in bytes of every image and label map."""
        paths = self.images + self.masks
        return ImageList(self.root, paths, (0,) * len(paths), ()).fingerprint()


@dataclass(frozen=True, kw_only=True)
class SegmentationData:
    """Both splits of a data set; class i of `class_names` is label i + 1."""

    training: SegmentationSplit
    validation: SegmentationSplit
    class_names: list[str]


def read_data(root: Path, default_names: Sequence[str]) -> SegmentationData:
    """List both splits, read the class names, and check the files of a small data set.

    Args:
        default_names: class names of a folder without `classes.txt`.

    Raises:
        DataError: a folder or file is missing or cannot be used.
    """
    training, validation = find_split(root, "training"), find_split(root, "validation")
    names = read_class_names(root) or list(default_names)
    check_splits((training, validation), len(names))
    return SegmentationData(training=training, validation=validation, class_names=names)


def find_split(root: Path, name: str) -> SegmentationSplit:
    """List a split.

    Args:
        name: `training` or `validation`.

    Raises:
        DataError: a folder is missing or empty, or an image has no label map.
    """
    split = list_split(root, name)
    missing = [mask for mask in split.masks if not mask.is_file()]
    if missing:
        raise DataError(
            f"annotation {missing[0]} does not exist ({len(missing)} of {len(split)} images of {split.folder} "
            "have none); add it or remove the image."
        )
    return split


def list_split(root: Path, name: str) -> SegmentationSplit:
    """List a split without checking that its label maps exist.

    Raises:
        DataError: a folder is missing or empty.
    """
    folder, annotations = root / "images" / name, root / "annotations" / name
    for directory in (folder, annotations):
        if not directory.is_dir():
            raise DataError(
                f"data folder {directory} does not exist; --data takes a folder in ADE20K's layout: "
                "images/{training,validation}/*.jpg, annotations/{training,validation}/*.png."
            )
    images = tuple(sorted(folder.rglob("*.jpg")))
    if not images:
        raise DataError(f"data folder {folder} has no images (*.jpg); add them.")
    masks = tuple(annotations / path.relative_to(folder).with_suffix(".png") for path in images)
    return SegmentationSplit(root=root, folder=folder, images=images, masks=masks)


def read_class_names(root: Path) -> list[str] | None:
    """Read the class names, label 1 first, from `classes.txt`; None if the file does not exist.

    Raises:
        DataError: the file cannot be read, or has fewer than 2 or more than 255 names.
    """
    path = root / "classes.txt"
    if not path.exists():
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}; write one class name per line."
        ) from error
    if not 2 <= len(names) <= MAX_CLASSES:
        raise DataError(
            f"{path} names {len(names)} classes; 2 to {MAX_CLASSES} are allowed, line i naming label i."
        )
    return names


def read_labels(path: Path, classes: int, size: tuple[int, int]) -> np.ndarray:
    """Read a label map (H, W) of 8 bits with values in 0..classes.

    Args:
        classes: the largest allowed label.
        size: (H, W) of its image.

    Raises:
        DataError: the file cannot be decoded, or has several channels, another size or a label out of range.
    """
    try:
        with Image.open(path) as mask:
            labels = np.asarray(mask)
            mode = mask.mode
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"annotation {path} cannot be read: {error}; replace it or remove it and its image."
        ) from error
    if labels.ndim != 2:
        raise DataError(
            f"annotation {path} has {labels.shape[2]} channels ({mode}), but a label map has one; "
            "save it as a greyscale PNG of 8 bits."
        )
    if labels.shape != size:
        raise DataError(
            f"annotation {path} is {labels.shape[0]}x{labels.shape[1]} pixels (HxW), its image "
            f"{size[0]}x{size[1]}; make both the same size."
        )
    if labels.max() > classes:
        raise DataError(
            f"annotation {path} has label {labels.max()}, but the largest label of {classes} classes is {classes}; "
            "use 0 for pixels to ignore, or name all classes in classes.txt."
        )
    return labels.astype(np.uint8)


def check_splits(splits: Sequence[SegmentationSplit], classes: int) -> None:
    """Read every file of a small data set once, so that a damaged file is found before training.

    Raises:
        DataError: an image or label map cannot be used.
    """
    if sum(map(len, splits)) > CHECK_AT_ONCE:
        return
    for split in splits:
        for path, mask in zip(split.images, split.masks, strict=True):
            image = read_image(path)
            read_labels(mask, classes, (image.height, image.width))
