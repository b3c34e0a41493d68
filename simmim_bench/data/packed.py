"""Images in tar shards with an index, as `simmim-bench pack` writes them, or as WebDataset does with class labels.

`index.npz` beside the shards has the name, label and position of every image, so that nothing is scanned when the
images are opened, and any process reads any image in any order. It is untrusted: positions are checked against the
sizes of the shards, which have to be those that the index names. Images are listed in the order of the packed source,
whatever their order in the shards.
"""

from __future__ import annotations

import json
import os
import resource
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
from simmim_bench.files import escape, write_arrays
from simmim_bench.untrusted.arrays import read_arrays
from simmim_bench.untrusted.json_text import parse_json

INDEX = "index.npz"
VERSION = 1
UNLABELLED = -1  # instead of a class: the image is in no class folder, or has no KEY.cls
MAX_INDEX_BYTES = 8 << 30  # ImageNet-22k's 14 million images have 1 GB
MOST_OPEN = 4096  # shards that a process keeps open, but a quarter of the files that it may open
# The arrays of an index, with the kinds of their types: `about` is JSON; of every image, in the order of the source,
# shard, position in bytes, class, whether it was re-encoded, and name; of every shard, its size in bytes.
ARRAYS = {
    "about": "u",
    "shards": "iu",
    "offsets": "iu",
    "sizes": "iu",
    "labels": "i",
    "resized": "b",
    "names": "u",
    "name_offsets": "iu",
    "shard_bytes": "iu",
}


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
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MOST_OPEN if allowed == resource.RLIM_INFINITY else min(MOST_OPEN, allowed // 4)
        self._open = lru_cache(maxsize=most)(_Descriptor)

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


def write_index(images: PackedImages) -> None:
    """Write the index of shards next to them."""
    assert images.packing is not None
    about = {
        "version": VERSION,
        **asdict(images.packing),
        "above": images.above,
        "classes": images.classes,
    }
    write_arrays(
        images.folder / INDEX,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        shards=images.positions.values[:, 0].astype(np.int32),
        offsets=images.positions.values[:, 1],
        sizes=images.positions.values[:, 2],
        labels=images.labels.astype(np.int32),
        resized=images.resized.values,
        names=images.names.buffer.values,
        name_offsets=images.names.offsets.values,
        shard_bytes=np.array([path.stat().st_size for path in images.files.paths], np.int64),
    )


def open_packed(folder: Path, left_out: LeftOut | None = None) -> PackedImages:
    """Open the shards of a folder by their index.

    Args:
        left_out: what lies beside the shards and is not read.

    Raises:
        DataError: the index is damaged, or is not that of these shards.
    """
    path = folder / INDEX
    arrays = read_arrays(path, "index", ARRAYS, max_bytes=MAX_INDEX_BYTES)
    try:
        packing, above, classes = _read_about(arrays["about"].tobytes())
        columns = ("shards", "offsets", "sizes", "labels")
        count = len(arrays["shards"])
        if any(arrays[name].shape != (count,) for name in (*columns, "resized")) or not count:
            raise ValueError("its columns differ in length, or are empty")
        shards, offsets, sizes, labels = (arrays[name].astype(np.int64) for name in columns)
        names = _read_names(arrays["names"], arrays["name_offsets"], count)
        shard_bytes = arrays["shard_bytes"].astype(np.int64).ravel()
        if (shards < 0).any() or (shards >= len(shard_bytes)).any():
            raise ValueError("an image is in a shard that it does not list")
        # Compared without a sum, which could exceed 64 bits.
        if (offsets < 0).any() or (sizes < 0).any() or (sizes > shard_bytes[shards]).any():
            raise ValueError("an image is outside of its shard")
        if (offsets > shard_bytes[shards] - sizes).any():
            raise ValueError("an image is outside of its shard")
        if (labels < UNLABELLED).any() or (labels >= len(classes)).any():
            raise ValueError("a label is no class")
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"index {path} cannot be read: {escape(str(error))}; use another copy of the folder, or pack again."
        ) from error
    paths = tuple(folder / shard_name(number) for number in range(len(shard_bytes)))
    _check_shards(folder, paths, shard_bytes.tolist())
    return PackedImages(
        folder,
        ShardFiles(paths),
        SharedArray(np.stack([shards, offsets, sizes], axis=1)),
        SharedArray(labels),
        classes,
        names,
        SharedArray(arrays["resized"].astype(bool)),
        packing,
        above,
        left_out or LeftOut(),
    )


def shard_name(number: int) -> str:
    """Return the file name of a shard of a split."""
    return f"{number:06d}.tar"


def _read_about(content: bytes) -> tuple[Packing, str, tuple[str, ...]]:
    about = parse_json(content)
    if not isinstance(about, dict):
        raise ValueError("its description is no JSON object")
    if about.get("version") != VERSION:
        raise ValueError(
            f"it has version {about.get('version')!r}, and this simmim-bench reads version {VERSION}"
        )
    short_side, quality, above = about["short_side"], about["quality"], about["above"]
    classes = about["classes"]
    if not (isinstance(short_side, int) and isinstance(quality, int) and isinstance(above, str)):
        raise ValueError("its description has values of other types")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are no list of names")
    if len(set(classes)) < len(classes):
        raise ValueError("two of its classes have one name")
    return Packing(short_side, quality), above, tuple(classes)


def _read_names(buffer: np.ndarray, offsets: np.ndarray, count: int) -> FileNames:
    offsets = offsets.astype(np.int64).ravel()
    ordered = len(offsets) == count + 1 and offsets[0] == 0 and bool((np.diff(offsets) > 0).all())
    if buffer.dtype != np.uint8 or not ordered or offsets[-1] != buffer.size:
        raise ValueError("its names are damaged")
    if (buffer == 0).any():
        raise ValueError("a name has a zero byte")
    return FileNames(SharedArray(buffer.ravel()), SharedArray(offsets))


def _check_shards(folder: Path, paths: Sequence[Path], sizes: Sequence[int]) -> None:
    """Check that shards are those that an index was written for."""
    for path, size in zip(paths, sizes, strict=True):
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(
                f"shard {path} cannot be read: {error.strerror}; {folder / INDEX} lists it: copy the whole folder "
                "again."
            ) from error
        if found != size:
            raise DataError(
                f"shard {path} has {found:,} bytes, but {folder / INDEX} was written for {size:,}; copy the whole "
                "folder again, or remove the index to have the shards scanned."
            )
    more = sorted({p.name for p in folder.glob("*.tar")} - {p.name for p in paths})
    if more:
        raise DataError(
            f"{folder / INDEX} does not list {more[0]}, so that its images would be left out; remove the shard, or "
            "remove the index to have all shards scanned."
        )
