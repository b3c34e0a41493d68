"""Open images for pretraining, which uses no labels.

They are in folders of any depth, tar shards, a label file or a Hugging Face dataset. Where there are no validation
images, a part of the training images is held out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simmim_bench.data.hold_out import hold_out_images
from simmim_bench.data.hub import hub_images
from simmim_bench.data.label_file import read_label_file, select_images
from simmim_bench.data.labelled_shards import beside_shards, packed_images
from simmim_bench.data.listing import SUFFIXES, list_tree
from simmim_bench.data.named import HUB_PREFIX
from simmim_bench.data.names import SharedArray
from simmim_bench.data.packed_index import INDEX
from simmim_bench.data.shards import sorted_shards, tar_shards
from simmim_bench.data.sources import ImageList, ImageSource
from simmim_bench.data.split_folders import is_label_file, split_folder
from simmim_bench.errors import DataError, UsageError

VAL_FRACTION = (
    0.05  # ours, of the training images, where neither a fraction nor a validation split is given
)
MOST_HELD_OUT = 512  # ours: as many as the loss is measured on


def any_images(data: Path) -> ImageSource:
    """Open images of any layout for pretraining, all with one class; those of a label file keep theirs.

    Args:
        data: a folder of images or of tar shards (its `train/` or `training/` folder, if it has one), a tar file, a
            label file, or `hfds:NAME`, the "train" split of a Hugging Face dataset by name or folder.

    Raises:
        DataError: The data are missing, have no images, or are validation images alone.
        MissingFrameworkError: The package `datasets` is not installed.
    """
    if str(data).startswith(HUB_PREFIX):
        return hub_images(str(data).removeprefix(HUB_PREFIX), "train")
    if data.is_file() and data.suffix == ".tar":
        return tar_shards([data])
    if is_label_file(data):
        return _listed(data, "train")
    train, val = (split_folder(data, split) for split in ("train", "val"))
    if val.is_dir() and not train.is_dir():
        raise DataError(
            f"data folder {data} has {val.name}/ but no train/, so the held-out images would be trained on; add "
            "train/, or name the folder of training images itself."
        )
    return _folder_images(train if train.is_dir() else data, data)


def _folder_images(folder: Path, root: Path) -> ImageSource:
    """Open the tar shards of a folder, or else the images below it.

    Args:
        root: the folder that names in the fingerprint are relative to.
    """
    if not folder.is_dir():
        raise DataError(
            f"data folder {folder} does not exist; use a folder of images or of tar shards, a tar file, or "
            f"{HUB_PREFIX}NAME."
        )
    shards = sorted_shards(folder)
    if shards and (folder / INDEX).is_file():
        return packed_images(folder).one_class()
    if shards:
        return tar_shards(shards, beside_shards(folder))
    paths, left_out = list_tree(folder)
    if not paths:
        raise DataError(
            f"data folder {folder} has no images ({SUFFIXES}) and no *.tar{left_out.only()}; use another folder."
        )
    labels = SharedArray(np.zeros(len(paths), np.int64))
    return ImageList(root, paths, labels, ("image",), left_out)


def _listed(path: Path, split: str) -> ImageSource:
    """List the images of a split of a label file, whose labels may be missing."""
    table = read_label_file(path)
    return select_images(table, split, table.labels or [""] * len(table.names))


def held_out_images(data: Path) -> ImageSource | None:
    """Open the validation images, if any: `val/`, or those of a label file or a Hugging Face dataset."""
    if is_label_file(data):
        return _listed(data, "val") if "val" in read_label_file(data).splits else None
    if str(data).startswith(HUB_PREFIX):
        try:
            return hub_images(str(data).removeprefix(HUB_PREFIX), "validation")
        except DataError:
            return None
    folder = split_folder(data, "val")
    return _folder_images(folder, folder) if folder.is_dir() else None


def check_val_fraction(
    data: Path, val_fraction: float | None, held_out: ImageSource | None
) -> None:
    """Refuse a fraction where there are validation images.

    Raises:
        UsageError: there are.
    """
    if val_fraction is not None and held_out is not None:
        raise UsageError(
            f"{data} has validation images; remove --val-fraction, which holds out training images instead."
        )


def choose_splits(
    data: Path, images: ImageSource, held_out: ImageSource | None, val_fraction: float | None
) -> tuple[ImageSource, ImageSource]:
    """Return the images to train on, and the held-out ones: of the data's two splits, or of its training images.

    Args:
        images, held_out: what `any_images` and `held_out_images` return for the data.
        val_fraction: see `split_training_images`.

    Raises:
        UsageError: there is a fraction, but there are validation images.
        DataError: see `split_training_images`.
    """
    check_val_fraction(data, val_fraction, held_out)
    return split_training_images(images, val_fraction) if held_out is None else (images, held_out)


def split_training_images(
    images: ImageSource, val_fraction: float | None
) -> tuple[ImageSource, ImageSource]:
    """Split the images of data without validation images: those to train on, and the held-out ones.

    Args:
        val_fraction: None for 5 %, at most 512 images.

    Raises:
        DataError: there is one image alone.
    """
    if val_fraction is None:
        val_fraction = min(VAL_FRACTION, MOST_HELD_OUT / len(images))
    return hold_out_images(images, val_fraction)
