"""Open the images that `--data` names: class folders, flat folders, tar shards, packed data, Hugging Face datasets.

An `ImageSource` returns the encoded bytes of any image by its index, in any process, and a fingerprint of all
images. It does not decode images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from simmim_bench.data.class_checks import class_faults
from simmim_bench.data.decode import unreadable
from simmim_bench.data.hub import hub_images
from simmim_bench.data.hub_classes import hub_classes
from simmim_bench.data.labelled_shards import (
    beside_shards,
    holds_shards,
    only_labelled,
    packed_images,
)
from simmim_bench.data.listing import (
    SUFFIXES,
    LeftOut,
    hash_names_and_sizes,
    list_folder,
    list_tree,
)
from simmim_bench.data.named import HUB_PREFIX
from simmim_bench.data.names import FileNames, PathList, SharedArray
from simmim_bench.data.packed import PackedImages
from simmim_bench.data.packed_index import INDEX
from simmim_bench.data.shards import sorted_shards, tar_shards
from simmim_bench.data.split_folders import describe_missing_split, split_folder
from simmim_bench.errors import DataError

OUTSIDE = -1  # instead of a class, of images that are in no class folder


class ImageSource(Protocol):
    """An indexed list of encoded images."""

    @property
    def labels(self) -> Sequence[int] | np.ndarray:
        """The class of every image."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes."""

    @property
    def left_out(self) -> LeftOut:
        """What lies with the images and is not read."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Return the content of an image file."""

    def name(self, index: int) -> str:
        """Return the name of an image, for error messages."""

    def subset(self, indices: Sequence[int]) -> ImageSource:
        """Return a source of some images, in the order of `indices`, with the same classes."""

    def fingerprint(self) -> str:
        """Hash the names and sizes of all images: SHA-256 in hexadecimal."""


@dataclass(frozen=True, eq=False)
class ImageList:
    """Images in separate files, sorted.

    Attributes:
        root: the folder that names in the fingerprint are relative to; `paths` are below it.
        numbers: the class of every image, int64.
        sizes: the size of every file in bytes, int64; None if they are not known yet.
        known_fingerprint: the result of `fingerprint`; None if it is not known yet.
    """

    root: Path
    paths: PathList
    numbers: SharedArray
    classes: tuple[str, ...]
    left_out: LeftOut = field(default_factory=LeftOut)
    sizes: SharedArray | None = None
    known_fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def labels(self) -> np.ndarray:
        """The class of every image, int64."""
        return self.numbers.values

    @property
    def folder(self) -> Path:
        """The folder that `names` are relative to."""
        return self.paths.folder

    @property
    def names(self) -> FileNames:
        """The names of the files, relative to `folder`."""
        return self.paths.names

    def read(self, index: int) -> bytes:
        """Return the content of an image file."""
        try:
            with open(self.name(index), "rb") as file:
                return file.read()
        except OSError as error:
            raise unreadable(self.name(index), error.strerror) from error

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return self.paths.text(index)

    def subset(self, indices: Sequence[int]) -> ImageList:
        """Return a source of some images, in the order of `indices`, with the same classes."""
        chosen = np.asarray(indices, np.int64)
        return replace(
            self,
            paths=self.paths.take(indices),
            numbers=SharedArray(self.labels[chosen]),
            sizes=None if self.sizes is None else SharedArray(self.sizes.values[chosen]),
            known_fingerprint=None,
        )

    def measured(self) -> ImageList:
        """Return the images with the sizes of their files, from which every subset's fingerprint follows.

        Raises:
            DataError: A file does not exist any more, or is a link to none.
        """
        if self.sizes is not None:
            return self
        numbers = range(len(self))
        sizes = np.fromiter((_file_size(self.name(i)) for i in numbers), np.int64, len(self))
        return replace(self, sizes=SharedArray(sizes))

    def fingerprint(self) -> str:
        """Hash every image's path relative to the root and its size in bytes: SHA-256 in hexadecimal."""
        return self._fingerprint

    @cached_property  # a task may ask for it before every epoch, and hashing takes seconds
    def _fingerprint(self) -> str:
        if self.known_fingerprint is not None:
            return self.known_fingerprint
        sizes = self.measured().sizes
        assert sizes is not None
        above = self.paths.folder.relative_to(self.root).as_posix()
        prefix = "" if above == "." else f"{above}/"
        names = (prefix + name for name in self.paths.names)
        return hash_names_and_sizes(zip(names, sizes.values.tolist(), strict=True))


# Images with names: of files, or of the files that were packed
NamedImages = ImageList | PackedImages


def image_list(
    root: Path,
    paths: Iterable[Path],
    labels: Sequence[int] | np.ndarray,
    classes: Sequence[str],
) -> ImageList:
    """Build a source of the images at some paths below a folder."""
    numbers = SharedArray(np.array(labels, np.int64))
    return ImageList(root, PathList.pack(root, paths), numbers, tuple(classes))


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise DataError(
            f"image {path} cannot be read: {error.strerror}; fix the link or remove it."
        ) from error


def class_files(root: Path, split: str) -> NamedImages:
    """List a split in ImageNet's layout, `root/split/class/image`, or in labelled tar shards, `root/split/*.tar`.

    The images of a class are all below its folder, at any depth. Classes are numbered in the order of their
    names, as by torchvision's `ImageFolder`: "10" comes before "2".

    Raises:
        DataError: A folder is missing or empty, a class has no images, or there is one class alone.
    """
    images = list_classes(root, split)
    faults = class_faults(split_folder(root, split), images)
    if faults:
        raise DataError(faults[0])
    return images


def class_folders(root: Path, split: str) -> ImageList:
    """List a split in class folders; see `class_files`.

    Raises:
        DataError: see `class_files`; or the split is in tar shards.
    """
    images = class_files(root, split)
    if not isinstance(images, ImageList):
        raise DataError(f"{images.folder} holds tar shards; use a folder with class folders.")
    return images


def class_images(data: Path, split: str) -> ImageSource:
    """Open a split for classification: of class folders or shards, or a Hugging Face dataset `hfds:NAME[#COLUMN]`.

    Args:
        split: `train` or `val`.

    Raises:
        DataError: See `class_files` and `hub_classes`.
        MissingFrameworkError: The package `datasets` is not installed.
    """
    if str(data).startswith(HUB_PREFIX):
        return hub_classes(str(data).removeprefix(HUB_PREFIX), split)
    return class_files(data, split)


def list_classes(root: Path, split: str) -> NamedImages:
    """List the images of every class of a split, in class folders or labelled tar shards; a class may have none.

    Raises:
        DataError: A folder is missing or has neither.
    """
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


def any_images(data: Path) -> ImageSource:
    """Open images of any layout for pretraining, all with one class.

    Args:
        data: a folder of images or of tar shards (its `train/` or `training/` folder, if it has one), a tar file, or
            `hfds:NAME`, the "train" split of a Hugging Face dataset by name or folder.

    Raises:
        DataError: The data are missing, have no images, or are validation images alone.
        MissingFrameworkError: The package `datasets` is not installed.
    """
    if str(data).startswith(HUB_PREFIX):
        return hub_images(str(data).removeprefix(HUB_PREFIX), "train")
    if data.is_file() and data.suffix == ".tar":
        return tar_shards([data])
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


def held_out_images(data: Path) -> ImageSource | None:
    """Open the validation images, if any: `val/`, or the "validation" split of a Hugging Face dataset."""
    if str(data).startswith(HUB_PREFIX):
        try:
            return hub_images(str(data).removeprefix(HUB_PREFIX), "validation")
        except DataError:
            return None
    folder = split_folder(data, "val")
    return _folder_images(folder, folder) if folder.is_dir() else None


def describe_left_out(images: ImageSource, split: str) -> list[str]:
    """Return the log lines of what lies with the images of a split and is not read; mostly none."""
    return [f"data: {split}: {images.left_out.describe()}"] if images.left_out else []
