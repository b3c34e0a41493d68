"""List the images to pack, by split: folders, tar shards, Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simmim_bench.data.hub import HubImages, hub_images
from simmim_bench.data.hub_classes import hub_classes, label_columns
from simmim_bench.data.labelled_shards import holds_shards, packed_images
from simmim_bench.data.listing import SUFFIXES, LeftOut, list_folder, list_tree, suffix_of
from simmim_bench.data.named import HUB_PREFIX
from simmim_bench.data.names import FileNames, SharedArray
from simmim_bench.data.packed import UNLABELLED
from simmim_bench.data.packed_index import INDEX
from simmim_bench.data.shards import sorted_shards
from simmim_bench.data.sources import ImageList, ImageSource, NamedImages
from simmim_bench.data.split_folders import split_folder
from simmim_bench.errors import DataError, UsageError

SPLITS = ("train", "val")


@dataclass(frozen=True)
class PackSource:
    """The images of a split to pack.

    Attributes:
        split: `train`, `val`, or empty for images that are in no split.
        names: of every image, CLASS/NAME or NAME.
        labels: the class of every image, int64; `UNLABELLED` for none.
        classes: the names of the classes; none if no image has a label.
        above: what the source's fingerprint has before the names.
    """

    split: str
    images: ImageSource
    names: FileNames
    labels: np.ndarray
    classes: tuple[str, ...]
    above: str = ""

    def __len__(self) -> int:
        return len(self.images)


def open_sources(data: Path) -> list[PackSource]:
    """List the images to pack of every split.

    Args:
        data: as `--data` of pretraining or classification names it.

    Raises:
        DataError: there are no images.
        UsageError: the images are packed already.
        MissingFrameworkError: the package `datasets` is not installed.
    """
    if str(data).startswith(HUB_PREFIX):
        return _hub_sources(str(data).removeprefix(HUB_PREFIX))
    if not data.is_dir():
        raise DataError(
            f"data folder {data} is not a folder; use one of images or of tar shards, or {HUB_PREFIX}NAME."
        )
    folders = {split: split_folder(data, split) for split in SPLITS}
    found = {split: folder for split, folder in folders.items() if folder.is_dir()}
    listed = {split: _list(folder, data) for split, folder in (found or {"": data}).items()}
    return [_of_files(split, images) for split, images in listed.items()]


def _list(folder: Path, root: Path) -> NamedImages:
    """List all images below a folder, with the class of those that are in a class folder or have a KEY.cls."""
    shards = sorted_shards(folder)
    if shards and (folder / INDEX).is_file():
        raise UsageError(
            f"{folder} is packed already, and images would be encoded a second time; pack the originals with the other "
            "options."
        )
    names, left_out = list_tree(folder)
    classes = tuple(sorted(list_folder(str(folder)).folders))
    if holds_shards(folder, classes) or (shards and not names):
        return packed_images(folder)
    if not names:
        raise DataError(
            f"data folder {folder} has no images ({SUFFIXES}){left_out.only()}; use another folder."
        )
    numbers = {name: number for number, name in enumerate(classes)}
    above = (name.partition("/")[0] if "/" in name else "" for name in names.names)
    labels = np.fromiter((numbers.get(name, UNLABELLED) for name in above), np.int64, len(names))
    return ImageList(root, names, SharedArray(labels), classes, LeftOut())


def _of_files(split: str, images: NamedImages) -> PackSource:
    if isinstance(images, ImageList):
        within = images.folder.relative_to(images.root).as_posix()
        above = "" if within == "." else f"{within}/"
    else:
        above = images.above
    return PackSource(split, images, images.names, images.labels, images.classes, above)


def _hub_sources(name: str) -> list[PackSource]:
    """List the splits of a Hugging Face dataset, with classes if it has a column of class labels."""
    found: list[PackSource] = []
    reasons: list[DataError] = []
    for split in SPLITS:
        try:
            found.append(_of_hub(split, hub_classes(name, split), labelled=True))
        except DataError as error:
            reasons.append(error)
            images = _without_classes(name, split, error)
            found += [] if images is None else [_of_hub(split, images, labelled=False)]
    if not found:
        raise reasons[0]
    return found


def _of_hub(split: str, images: HubImages, *, labelled: bool) -> PackSource:
    return PackSource(
        split,
        images,
        FileNames.pack(f"{row:08d}.jpg" for row in range(len(images))),
        images.labels if labelled else np.full(len(images), UNLABELLED),
        images.classes if labelled else (),
    )


def _without_classes(name: str, split: str, reason: DataError) -> HubImages | None:
    """Open a split whose classes cannot be used; None if there is no such split.

    Raises:
        DataError: the reason, if it has several columns of classes, of which none was chosen.
    """
    try:
        images = hub_images(name, {"val": "validation"}.get(split, split))
    except DataError:
        return None
    if len(label_columns(images, name)) > 1:
        raise reason
    return images


def make_keys(names: Iterable[str]) -> FileNames:
    """Return the key of every image in its shard: its name without suffix, without dots, which end a key.

    An image whose key is that of an earlier one gets a number behind it.
    """
    used: set[str] = set()
    keys = []
    for name in names:
        folders, slash, base = name.rpartition("/")
        stem = base.removesuffix(base[len(base) - len(suffix_of(base)) :] or "\0")
        plain = folders + slash + stem.replace(".", "_")
        key, number = plain, 2
        while key in used:
            key, number = f"{plain}_{number}", number + 1
        used.add(key)
        keys.append(key)
    return FileNames.pack(keys)
