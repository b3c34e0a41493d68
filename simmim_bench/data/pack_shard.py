"""Write one tar shard of re-encoded images: the same bytes whenever and wherever it is written.

Members are KEY.jpg and, with a label, KEY.cls, the class number as text, as WebDataset reads them. Headers have no
time, no owner and one mode.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Protocol

import numpy as np

from simmim_bench.data.names import FileNames
from simmim_bench.data.pack_source import PackSource
from simmim_bench.data.packed import UNLABELLED, Packing
from simmim_bench.data.reencode import reencode
from simmim_bench.data.shards import LABEL
from simmim_bench.errors import DataError
from simmim_bench.files import replacing, write_arrays
from simmim_bench.untrusted.arrays import read_arrays

SEED = 0  # of the order of training images
PART = {
    "rows": "iu",
    "offsets": "iu",
    "sizes": "iu",
    "resized": "b",
    "skipped": "iu",
    "bytes": "iu",
}


@dataclass(frozen=True)
class ShardPlan:
    """Which images a split's shards have.

    Attributes:
        keys: of every image of the source.
        order: images of the source, in the order of the shards, (N,) int64.
        size: images per shard.
    """

    source: PackSource
    keys: FileNames
    order: np.ndarray
    size: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self.order) // self.size)

    def rows(self, shard: int) -> np.ndarray:
        """Return the images of a shard, by their index in the source."""
        rows: np.ndarray = self.order[shard * self.size : (shard + 1) * self.size]
        return rows


def plan_order(split: str, count: int) -> np.ndarray:
    """Return the order of a split's images in its shards.

    Readers of WebDataset read shards from their beginning, and need training images of mixed classes; validation
    images are scored in the order of the source, which then reads the disk sequentially. Ours read at random, and list
    both in the order of the source.
    """
    if split == "val":
        return np.arange(count)
    return np.random.Generator(np.random.PCG64(SEED)).permutation(count)


class Count(Protocol):
    """Counts what a process has done."""

    def image(self) -> None:
        """Count an image that is packed."""

    def skip(self, error: DataError) -> None:
        """Count an image that cannot be read; raise the error if too many."""


def write_shard(
    plan: ShardPlan, shard: int, packing: Packing, path: Path, part: Path, count: Count
) -> None:
    """Write a shard, then the positions of its images, whose file says that the shard is complete.

    Args:
        path: of the shard.
        part: of the positions, .npz.

    Raises:
        DataError: an image cannot be read, or the disk is full.
    """
    source = plan.source
    columns: dict[str, list[int]] = {name: [] for name in ("rows", "offsets", "sizes", "resized")}
    skipped, read = [], 0
    with replacing(path, "DST") as temporary, open(temporary, "wb") as file:
        for row in plan.rows(shard).tolist():
            count.image()
            try:
                content = source.images.read(row)
                stored = reencode(content, source.images.name(row), packing)
            except DataError as error:
                count.skip(error)
                skipped.append(row)
                continue
            read += len(content)
            key, label = plan.keys[row], int(source.labels[row])
            offset = _write_member(file, key + stored.suffix, stored.content)
            if label != UNLABELLED:
                _write_member(file, key + LABEL, str(label).encode())
            values = (row, offset, len(stored.content), stored.resized)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(int(value))
        file.write(bytes(2 * tarfile.BLOCKSIZE))  # the end of a tar file
        file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
        size = file.tell()
    write_arrays(
        part,
        **{
            name: np.array(values, np.int64)
            for name, values in columns.items()
            if name != "resized"
        },
        resized=np.array(columns["resized"], bool),
        skipped=np.array(skipped, np.int64),
        bytes=np.array([size, read], np.int64),
    )


def read_part(path: Path, part: Path) -> dict[str, np.ndarray] | None:
    """Return the positions of a shard's images; None if the shard is not complete.

    Raises:
        DataError: the file of the positions is damaged.
    """
    if not (path.is_file() and part.is_file()):
        return None
    found = read_arrays(part, "list of packed images", PART)
    return found if path.stat().st_size == found["bytes"][0] else None


def _write_member(file: BufferedWriter, name: str, content: bytes) -> int:
    """Write a file and return the offset of its content."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(content), 0o644
    file.write(header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    offset = file.tell()
    file.write(content)
    file.write(bytes(-len(content) % tarfile.BLOCKSIZE))
    return offset
