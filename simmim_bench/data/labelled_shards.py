"""Open the tar shards of a folder with their class labels: by an index, or by KEY.cls beside KEY.jpg (WebDataset)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from simmim_bench.data.listing import LeftOut, list_tree
from simmim_bench.data.names import FileNames, SharedArray
from simmim_bench.data.packed import UNLABELLED, PackedImages, ShardFiles
from simmim_bench.data.packed_index import INDEX, open_packed
from simmim_bench.data.shards import TarMember, list_shards, sample_key, sorted_shards
from simmim_bench.errors import DataError
from simmim_bench.untrusted.tables import read_text_lines
from simmim_bench.untrusted.text import visible

LABEL_BYTES = 20  # of a number of 64 bits
CLASSES = "classes.txt"  # line i names class i


def holds_shards(folder: Path, classes: Sequence[str]) -> bool:
    """Return whether the classes of a folder are those of its tar shards.

    Tar files without an index beside class folders may be the archives that these were extracted from.
    """
    return bool(sorted_shards(folder)) and (not classes or (folder / INDEX).is_file())


def packed_images(folder: Path) -> PackedImages:
    """Open the tar shards of a folder with their labels, by the index if there is one.

    Returns:
        The images; without a label, `UNLABELLED`.

    Raises:
        DataError: see `open_packed` and `labelled_shards`.
    """
    beside = beside_shards(folder)
    if (folder / INDEX).is_file():
        return open_packed(folder, beside)
    return labelled_shards(folder, beside)


def beside_shards(folder: Path) -> LeftOut:
    """Return what lies beside the shards of a folder."""
    paths, left_out = list_tree(folder)
    read = {INDEX, *(shard.name for shard in sorted_shards(folder))}
    files = tuple(name for name in left_out.files if name not in read)
    return replace(left_out, files=files, outside=tuple(paths.names))


def only_labelled(images: PackedImages) -> PackedImages:
    """Return the images of shards that have a label."""
    labelled = np.flatnonzero(images.labels != UNLABELLED)
    if not len(labelled):
        raise DataError(
            f"the shards in {images.folder} have no class labels, KEY.cls beside KEY.jpg; use them for pretraining, or "
            "pack a folder with train/CLASS/ and val/CLASS/."
        )
    if len(labelled) == len(images):
        return images
    outside = tuple(images.names.take(np.flatnonzero(images.labels == UNLABELLED)))
    left_out = replace(images.left_out, outside=(*images.left_out.outside, *outside))
    return replace(images.subset(labelled.tolist()), left_out=left_out)


def labelled_shards(folder: Path, beside: LeftOut | None = None) -> PackedImages:
    """List the images in the tar files of a folder that have no index, with the labels of their KEY.cls.

    The classes are named by `classes.txt` in the folder or the one above it, else by their numbers.

    Args:
        beside: what lies beside the shards and is not read.

    Returns:
        The images; without a label, `UNLABELLED`.

    Raises:
        DataError: see `tar_shards`; or a label is no number, or has no name in `classes.txt`, or that is damaged.
    """
    paths = tuple(sorted_shards(folder))
    images, label_members = list_shards(paths, beside or LeftOut())
    files = ShardFiles(paths)
    numbers = np.full(len(images), UNLABELLED, np.int64)
    for row, member in enumerate(images.members):
        label = label_members.get((member.shard, sample_key(member.name)))
        if label is not None:
            numbers[row] = _read_label(files, paths[label.shard], label)
    present = np.unique(numbers[numbers != UNLABELLED])
    found = (f / CLASSES for f in (folder, folder.parent) if (f / CLASSES).exists())
    lines = next((read_text_lines(path, "list of classes") for path in found), None)
    if lines is not None and len(present) and present[-1] >= len(lines):
        raise DataError(
            f"an image in {folder} has class {present[-1]}, but {CLASSES} names {len(lines):,} classes, from 0; add "
            "the missing lines."
        )
    if lines is None:  # the distinct numbers, in their order
        known = numbers != UNLABELLED
        numbers[known] = np.searchsorted(present, numbers[known])
    left_out = images.left_out
    if label_members:
        read = {f"{paths[m.shard].name}:{m.name}" for m in label_members.values()}
        left_out = replace(
            left_out, files=tuple(f for f in left_out.files if f not in read and f != CLASSES)
        )
    return PackedImages(
        folder,
        files,
        SharedArray(np.array([(m.shard, m.offset, m.size) for m in images.members], np.int64)),
        SharedArray(numbers),
        tuple(map(str, present)) if lines is None else tuple(lines),
        FileNames.pack(member.name.removeprefix("./") for member in images.members),
        SharedArray(np.zeros(len(images), bool)),
        left_out=left_out,
    )


def _read_label(files: ShardFiles, shard: Path, label: TarMember) -> int:
    text = b""
    if label.size <= LABEL_BYTES:
        try:
            text = files.read(label.shard, label.offset, label.size).strip()
        except OSError as error:
            raise DataError(f"shard {shard} cannot be read: {error.strerror}.") from error
    if not text.isdigit() or len(text) > LABEL_BYTES - 2:
        raise DataError(
            f"{visible(label.name)} in shard {shard} is no class number; write 0, 1, 2, ... as text."
        )
    return int(text)
