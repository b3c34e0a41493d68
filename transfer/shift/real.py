"""The ReaL labels of ImageNet's validation images, as the files are named, for predictions in the order of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from simmim_bench.data.class_splits import class_files
from simmim_bench.data.sources import NamedImages
from simmim_bench.errors import DataError
from transfer.shift.imagenet_classes import imagenet_classes, real_labels


def list_validation(root: Path) -> NamedImages:
    """List ImageNet's validation images.

    Raises:
        DataError: they cannot be listed, or an image is not named as there.
    """
    images = class_files(root, "val")
    known = real_labels()
    for name in images.names:
        if PurePosixPath(name).name not in known:
            raise DataError(
                f"real: image {images.folder / name} is not named as in ImageNet's validation set, such as "
                "ILSVRC2012_val_00000001.JPEG, so that its ReaL labels are unknown; use ImageNet's own names."
            )
    return images


def labels_of(images: NamedImages, classes: Sequence[str], ckpt: str) -> list[list[int]]:
    """Return the ReaL labels of every image as numbers of a classifier's outputs; an image may have none.

    Args:
        images: see `list_validation`.
        classes: of the classifier, in the order of its outputs.

    Raises:
        DataError: the classifier's classes are not those of ImageNet-1k.
    """
    own = imagenet_classes()
    if sorted(classes) != [*own]:
        raise DataError(
            f"real: {ckpt} has {len(classes):,} classes, which are not those of ImageNet-1k; use a classifier of "
            "ImageNet-1k."
        )
    number_of = {name: number for number, name in enumerate(classes)}
    known = real_labels()
    return [
        [number_of[own[label]] for label in known[PurePosixPath(name).name]]
        for name in images.names
    ]
