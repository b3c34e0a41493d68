"""Images and label maps in ADE20K's layout, checked so that a user learns which file is wrong.

In: a folder with `images/{training,validation}/*.jpg`, `annotations/{training,validation}/*.png` of one
channel (0 ignored, 1..K the classes) and perhaps `classes.txt`, line i naming label i.
Out: pairs of paths, class names, label maps.
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

CHECK_AT_ONCE = 2000  # images; larger sets are checked while they are read
MAX_CLASSES = 255  # what 8 bits hold beside the 0


@dataclass(frozen=True, kw_only=True)
class SegmentationSplit:
    """The images of one split, sorted, each with its label map."""

    root: Path
    folder: Path
    images: tuple[Path, ...]
    masks: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """Hash path below the root and size in bytes of every image and label map."""
        paths = self.images + self.masks
        return ImageList(self.root, paths, (0,) * len(paths), ()).fingerprint()


def find_split(root: Path, name: str) -> SegmentationSplit:
    """List a split.

    Args:
        name: `training` or `validation`.

    Raises:
        DataError: a folder is missing or empty, or an image has no annotation.
    """
    split = list_split(root, name)
    missing = [mask for mask in split.masks if not mask.is_file()]
    if missing:
        raise DataError(
            f"annotation {missing[0]} is not there ({len(missing)} of {len(split)} images of {split.folder} "
            "have none); add it or remove the image."
        )
    return split


def list_split(root: Path, name: str) -> SegmentationSplit:
    """List a split, whether its annotations are there or not.

    Raises:
        DataError: a folder is missing or empty.
    """
    folder, annotations = root / "images" / name, root / "annotations" / name
    for directory in (folder, annotations):
        if not directory.is_dir():
            raise DataError(
                f"data folder {directory} is not there; --data takes a folder in ADE20K's layout: "
                "images/{training,validation}/*.jpg, annotations/{training,validation}/*.png."
            )
    images = tuple(sorted(folder.rglob("*.jpg")))
    if not images:
        raise DataError(f"data folder {folder} has no images (*.jpg); put them there.")
    masks = tuple(annotations / path.relative_to(folder).with_suffix(".png") for path in images)
    return SegmentationSplit(root=root, folder=folder, images=images, masks=masks)


def read_class_names(root: Path) -> list[str] | None:
    """Read the classes, label 1 first, from `classes.txt`; None where there is no such file.

    Raises:
        DataError: it cannot be read, or has fewer than 2 or more than 255 names.
    """
    path = root / "classes.txt"
    if not path.exists():
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; write a class name a line.") from error
    if not 2 <= len(names) <= MAX_CLASSES:
        raise DataError(
            f"{path} names {len(names)} classes; 2 to {MAX_CLASSES} are allowed, line i naming label i."
        )
    return names


def read_labels(path: Path, classes: int, size: tuple[int, int]) -> np.ndarray:
    """Read a label map (H, W) of 8 bits, its values in 0..classes.

    Args:
        classes: the largest label allowed.
        size: (H, W) of the image that it is for.

    Raises:
        DataError: it cannot be decoded, has several channels, another size or a label out of range.
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
            f"annotation {path} has {labels.shape[2]} channels ({mode}), a label map has one; "
            "save it as a greyscale PNG of 8 bits."
        )
    if labels.shape != size:
        raise DataError(
            f"annotation {path} is {labels.shape[0]}x{labels.shape[1]} pixels (HxW), its image "
            f"{size[0]}x{size[1]}; give both the same size."
        )
    if labels.max() > classes:
        raise DataError(
            f"annotation {path} has label {labels.max()}, the largest of {classes} classes is {classes}; "
            "use 0 for pixels to ignore, or name all classes in classes.txt."
        )
    return labels.astype(np.uint8)


def check_splits(splits: Sequence[SegmentationSplit], classes: int) -> None:
    """Read every file of small data once, so that a bad one is known before training.

    Raises:
        DataError: an image or annotation cannot be used.
    """
    if sum(map(len, splits)) > CHECK_AT_ONCE:
        return
    for split in splits:
        for path, mask in zip(split.images, split.masks, strict=True):
            image = read_image(path)
            read_labels(mask, classes, (image.height, image.width))
