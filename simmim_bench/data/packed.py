"""Images at known positions in tar shards, with class labels: any process reads any image in any order.

The positions come from the index that `simmim-bench pack` writes (`packed_index.py`), or from a scan of the shards
(`labelled_shards.py`). Packed images are listed in the order of their source, whatever their order in the shards.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from simmim_bench.data.decode import unreadable
from simmim_bench.data.listing import LeftOut, hash_names_and_sizes
from simmim_bench.data.names import FileNames, SharedArray
from simmim_bench.errors import DataError

UNLABELLED = -1  # instead of a class: the image is in no class folder, or has no KEY.cls
MOST_OPEN = 4096  # shards that a process keeps open, but a quarter of the files that it may open


@dataclass(frozen=True)
class Packing:
    """How images were packed.

    Attributes:
        short_side: images with a longer short side were resized to it, in pixels.
        quality: JPEG quality of the resized images.
    """

    short_side: int
    quality: int


class ShardFiles:
    """Tar shards of which every process keeps some open; reads do not move a position that processes share."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self.paths = paths
        self._open = lru_cache(maxsize=_most_open())(_Descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardFiles, (self.paths,)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return bytes of a shard; fewer than `size` at its end.

        Raises:
            OSError: they cannot be read.
        """
        opened = self._open(self.paths[shard])
        content = os.pread(opened.number, size, offset)
        # A read may be cut short, as every read of 2 GiB or more is.
        while (left := size - len(content)) and (
            more := os.pread(opened.number, left, offset + len(content))
        ):
            content += more
        return content


def _most_open() -> int:
    """Return how many shards a process keeps open."""
    try:
        import resource
    except ImportError:  # Windows, whose limit is 512
        return 128
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_OPEN if allowed == resource.RLIM_INFINITY else min(MOST_OPEN, allowed // 4)


class _Descriptor:
    """A file that is open for reading until nothing refers to this object."""

    number = -1

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


@dataclass(frozen=True, eq=False)
class PackedImages:
    """Images in tar shards, at known positions.

    Attributes:
        folder: of the shards, one split.
        positions: shard, offset and size in bytes of every image, (N, 3) int64.
        numbers: the class of every image, int64; `UNLABELLED` for none.
        names: of every image, relative to the folder of the split that was packed: CLASS/NAME.
        resized: whether an image was re-encoded, (N,) bool; otherwise it has the bytes of its source.
        packing: None for shards that `pack` did not write.
        above: what the source's fingerprint has before the names, such as "train/".
    """

    folder: Path
    files: ShardFiles
    positions: SharedArray
    numbers: SharedArray
    classes: tuple[str, ...]
    names: FileNames
    resized: SharedArray
    packing: Packing | None = None
    above: str = ""
    left_out: LeftOut = field(default_factory=LeftOut)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labels(self) -> np.ndarray:
        """The class of every image, int64."""
        return self.numbers.values

    def read(self, index: int) -> bytes:
        """Return the content of an image file."""
        shard, offset, size = self.positions.values[index].tolist()
        try:
            content = self.files.read(shard, offset, size)
        except OSError as error:
            raise unreadable(self.name(index), error.strerror) from error
        if len(content) < size:
            raise DataError(
                f"image {self.name(index)} cannot be read: the shard ends before it; use another copy of the shard."
            )
        return content

    def name(self, index: int) -> str:
        """Return the shard and the name of an image."""
        shard = int(self.positions.values[index, 0])
        return f"{self.files.paths[shard]}:{self.names[index]}"

    def subset(self, indices: Sequence[int]) -> PackedImages:
        """Return a source of some images, in the order of `indices`, with the same classes."""
        chosen = np.asarray(indices, np.int64)
        return replace(
            self,
            positions=SharedArray(self.positions.values[chosen]),
            numbers=SharedArray(self.labels[chosen]),
            names=self.names.take(chosen),
            resized=SharedArray(self.resized.values[chosen]),
        )

    def one_class(self) -> PackedImages:
        """Return all images with one class, for pretraining, which does not use labels."""
        zeros = SharedArray(np.zeros(len(self), np.int64))
        return replace(self, numbers=zeros, classes=("image",))

    def fingerprint(self) -> str:
        """Hash every image's name and size, and how it was packed: SHA-256 in hexadecimal.

        Images that were all copied unchanged are the source's images, and have its fingerprint.
        """
        return self._fingerprint

    @cached_property  # a task may ask for it before every epoch
    def _fingerprint(self) -> str:
        sizes = self.positions.values[:, 2].tolist()
        listed = [(self.above + n, s) for n, s in zip(self.names, sizes, strict=True)]
        changed = int(self.resized.values.sum())
        if self.packing is not None and changed:
            how = f"short_side={self.packing.short_side} quality={self.packing.quality}"
            listed.append((f"packed {how}", changed))
        return hash_names_and_sizes(iter(listed))


def describe_packing(images: object) -> dict[str, Any]:
    """Describe how images were packed, as a record stores it; empty for those that were not, or not changed."""
    if not isinstance(images, PackedImages) or images.packing is None:
        return {}
    changed = int(images.resized.values.sum())
    return {"packed": {**asdict(images.packing), "resized": changed}} if changed else {}


def packing_in_words(images: object) -> str:
    """Return how images were packed, after a semicolon; empty for those that were not."""
    if not isinstance(images, PackedImages) or images.packing is None:
        return ""
    changed, packing = int(images.resized.values.sum()), images.packing
    return (
        f"; packed by simmim-bench pack: {changed:,} reduced to a short side of {packing.short_side} pixels at JPEG "
        f"quality {packing.quality}, {len(images) - changed:,} as they were"
    )
