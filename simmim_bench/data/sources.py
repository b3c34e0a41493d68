"""Sources of images: the encoded bytes of any image by its index, in any process, and a fingerprint of all images.

`class_splits.py` opens the splits of classification, `pretraining_images.py` the images of pretraining. A source does
not decode images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from simmim_bench.data.decode import unreadable
from simmim_bench.data.listing import (
    LeftOut,
    hash_names_and_sizes,
)
from simmim_bench.data.names import FileNames, PathList, SharedArray
from simmim_bench.data.packed import PackedImages
from simmim_bench.errors import DataError


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
        listed: whether a label file has the classes, which are then a part of the fingerprint; else names have them.
    """

    root: Path
    paths: PathList
    numbers: SharedArray
    classes: tuple[str, ...]
    left_out: LeftOut = field(default_factory=LeftOut)
    sizes: SharedArray | None = None
    known_fingerprint: str | None = None
    listed: bool = False

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

    def one_class(self) -> ImageList:
        """Return all images with one class, for pretraining, which does not use labels."""
        zeros = SharedArray(np.zeros(len(self), np.int64))
        return replace(
            self, numbers=zeros, classes=("image",), known_fingerprint=None, listed=False
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
        """Hash every image's path relative to the root and its size in bytes: SHA-256 in hexadecimal.

        The classes that a label file has are hashed, too.
        """
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
        if self.listed:
            labels = (self.classes[label] for label in self.labels)
            names = (f"{name} {label}" for name, label in zip(names, labels, strict=True))
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


def describe_left_out(images: ImageSource, split: str) -> list[str]:
    """Return the log lines of what lies with the images of a split and is not read; mostly none."""
    return [f"data: {split}: {images.left_out.describe()}"] if images.left_out else []
