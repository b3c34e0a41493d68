"""Read and write the index of packed images: name, class and position of every image of a split.

`index.npz` lies beside the shards, so that nothing is scanned when the images are opened. It is untrusted: positions
are checked against the sizes of the shards, which have to be those that the index names.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from simmim_bench.data.listing import LeftOut
from simmim_bench.data.names import FileNames, SharedArray
from simmim_bench.data.packed import UNLABELLED, PackedImages, Packing, ShardFiles
from simmim_bench.data.shards import sorted_shards
from simmim_bench.errors import DataError
from simmim_bench.files import escape, write_arrays
from simmim_bench.untrusted.arrays import read_arrays
from simmim_bench.untrusted.json_text import parse_json

INDEX = "index.npz"
VERSION = 1
MAX_INDEX_BYTES = 8 << 30  # ImageNet-22k's 14 million images have 1 GB
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
    return PackedImages(
        folder,
        ShardFiles(_check_shards(folder, shard_bytes)),
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


def _check_shards(folder: Path, sizes: np.ndarray) -> tuple[Path, ...]:
    """Check that shards are those that an index was written for, and return their paths.

    Args:
        sizes: in bytes, int64; of a damaged index, more than there are shards.
    """
    paths = []
    for number, size in enumerate(sizes):
        path = folder / shard_name(number)
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
        paths.append(path)
    more = sorted(path.name for path in {*sorted_shards(folder)} - {*paths})
    if more:
        raise DataError(
            f"{folder / INDEX} does not list {more[0]}, so that its images would be left out; remove the shard, or "
            "remove the index to have all shards scanned."
        )
    return tuple(paths)
