"""Read the files of a segmentation data set before training, and compare their labels with the class names.

A run and `simmim-bench doctor` call the same functions: what a run refuses or logs, doctor lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from simmim_bench.data.decode import exif_orientation, read_file
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.data.pixels import decode_pixels
from simmim_bench.diagnostics.data_checks import CHECK_AT_ONCE
from simmim_bench.display import first_names
from simmim_bench.errors import DataError
from transfer.segmentation.ade20k_layout import SegmentationSplit
from transfer.segmentation.label_maps import IGNORED, LabelScheme, read_classes

SAMPLE = 100  # files that a run reads of a split of a large data set before training
SEED = 0
# Names of a first class that begins with label 0 in other layouts; of labelme, CVAT, Cityscapes and Pascal VOC.
BACKGROUND = {"background", "bg", "ignore", "unlabeled", "unlabelled", "void"}


class PairReader:
    """Reads images with their label maps, and keeps what they show together.

    Attributes:
        unread: indices of the pairs that have not been read, in random order: neighbours often show the same scene.
        pixels: (256,) pixels by class; those of `IGNORED` have none.
        turned: images with an EXIF orientation.
        content: hash of each image that was read.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        scheme: LabelScheme,
        pixel_format: PixelFormat = RGB,
    ) -> None:
        self.pairs, self.scheme, self.pixel_format = pairs, scheme, pixel_format
        order = np.random.default_rng(SEED).permutation(len(pairs))
        self.unread = dict.fromkeys(order.tolist())
        self.pixels = np.zeros(256, np.int64)
        self.turned: list[Path] = []
        self.content: dict[bytes, Path] = {}

    def read(self, index: int) -> None:
        """Read the pair of an index.

        Raises:
            DataError: the image or the label map cannot be used.
        """
        path, mask = self.pairs[index]
        self.unread.pop(index, None)
        content = read_file(path)
        height, width = decode_pixels(content, str(path), self.pixel_format, upright=True).shape[1:]
        classes = read_classes(mask, self.scheme, path, (height, width))
        self.pixels += np.bincount(classes.ravel(), minlength=len(self.pixels))
        if exif_orientation(content) != 1:
            self.turned.append(path)
        self.content[hashlib.sha256(content).digest()] = path

    @property
    def labelled(self) -> np.ndarray:
        """Pixels by class, (classes,)."""
        return self.pixels[: self.scheme.classes]

    @property
    def ignored(self) -> int:
        """Pixels without a class."""
        return int(self.pixels[IGNORED])


def check_splits(
    splits: Sequence[SegmentationSplit],
    names: Sequence[str],
    scheme: LabelScheme,
    pixel_format: PixelFormat = RGB,
) -> list[str]:
    """Read every file of a small data set, or a sample of a large one, and check the labels; see `find_faults`.

    Args:
        pixel_format: of the images, as the checkpoint takes them.

    Returns:
        What a user should know of the data, one line each.

    Raises:
        DataError: an image or label map cannot be used, or the labels do not fit the class names.
    """
    few = sum(map(len, splits)) <= CHECK_AT_ONCE
    readers = {}
    for split in splits:
        pairs = list(zip(split.images, split.masks, strict=True))
        readers[split.name] = PairReader(pairs, scheme, pixel_format)
        for index in range(len(pairs)) if few else sample(len(pairs)):
            readers[split.name].read(index)
    root = splits[0].root
    for fault in find_faults(readers, names, root):
        raise DataError(fault)
    remarks = [remark for split in splits for remark in split.remarks()]
    return remarks + (list(label_remarks(readers, names, root)) if few else [])


def sample(count: int) -> list[int]:
    """Return the indices of the files that a run reads of a split of a large data set."""
    chosen = np.random.default_rng(SEED).choice(count, min(count, SAMPLE), replace=False)
    return [int(index) for index in chosen]


def find_faults(readers: Mapping[str, PairReader], names: Sequence[str], root: Path) -> list[str]:
    """Return why a score of this data would mean nothing, one line per reason.

    A sample cannot show that a label is absent. If it looks as if one were whose absence would be a fault, further
    files are read until it is found.

    Args:
        readers: of every split, which have read all its files or a sample.

    Raises:
        DataError: an image or label map that is read here cannot be used.
    """
    every = list(readers.values())
    for reader in every:
        for index in list(reader.unread):
            if np.count_nonzero(reader.labelled) > 1:
                break
            reader.read(index)
    for reader in every if len(every) == 2 else ():
        for index in list(reader.unread):
            if not _lacks_last_label(every):
                break
            reader.read(index)
    return list(_label_faults(readers, names, root))


def _lacks_last_label(readers: Sequence[PairReader]) -> bool:
    """Return whether label 0 is ignored and appears, and no map has the last label."""
    found = any(reader.ignored for reader in readers)
    return (
        readers[0].scheme.reduce_zero_label
        and found
        and not any(reader.labelled[-1] for reader in readers)
    )


def _label_faults(
    readers: Mapping[str, PairReader], names: Sequence[str], root: Path
) -> Iterator[str]:
    """Yield the faults that the labels read so far show."""
    for split, reader in readers.items():
        if not reader.labelled.any():
            yield _all_ignored(root / "annotations" / split, reader.scheme)
    if not all(reader.labelled.any() for reader in readers.values()):
        return
    if len(readers) == 2:
        yield from _shifted_labels(list(readers.values()), names, root)
    if "training" in readers:
        yield from _single_class(readers["training"], names, root)


def _all_ignored(annotations: Path, scheme: LabelScheme) -> str:
    allowed = "1 or above" if scheme.reduce_zero_label else f"0 to {scheme.largest}"
    return (
        f"the annotations of {annotations} contain only label {scheme.ignored}, which is ignored; label some pixels "
        f"{allowed}."
    )


def _shifted_labels(
    readers: Sequence[PairReader], names: Sequence[str], root: Path
) -> Iterator[str]:
    """Yield that the labels seem to begin with 0 although label 0 is ignored.

    That is so if no map has the last label, and all others appear or the first name is that of a background.
    """
    if not _lacks_last_label(readers):
        return
    scheme = readers[0].scheme
    seen = np.flatnonzero(np.sum([reader.labelled for reader in readers], axis=0))
    absent = names[int(seen[-1]) + 1 :]
    if len(seen) == len(names) - 1 or names[0].strip("_ ").lower() in BACKGROUND:
        yield (
            f"{root / 'annotations'}: label 0 is ignored, and label {scheme.largest} ('{names[-1]}') appears in no "
            f"map, so the labels seem to be 0 to {scheme.largest - 1}. If label 0 is '{names[0]}', use -o "
            "reduce_zero_label=false, or number them from 1 with `simmim-bench data convert DIR OUT --keep-zero`; "
            "if 0 is to be ignored, list the classes in classes.txt without "
            f"{', '.join(map(repr, absent))}."
        )


def _single_class(reader: PairReader, names: Sequence[str], root: Path) -> Iterator[str]:
    """Yield that the training maps have one class, of which a constant prediction is right everywhere."""
    present = np.flatnonzero(reader.labelled)
    if len(present) > 1:
        return
    remedy = "label a second class"
    if reader.ignored and reader.scheme.reduce_zero_label:
        remedy += (
            ", or, if label 0 is a class, name it on the first line of classes.txt and use -o "
            "reduce_zero_label=false"
        )
    elif reader.ignored:
        remedy += f", or, if {IGNORED} marks an object, replace it by the label of its class"
    yield (
        f"the annotations of {root / 'annotations' / 'training'} contain one class, '{names[int(present[0])]}', so "
        f"that every prediction would be right; {remedy}."
    )


def label_remarks(
    readers: Mapping[str, PairReader], names: Sequence[str], root: Path
) -> Iterator[str]:
    """Yield what a user should know of splits all of whose files were read, one line each."""
    for split, reader in readers.items():
        absent = [names[k] for k in np.flatnonzero(reader.labelled == 0).tolist()]
        if absent:
            effect = "" if split == "training" else ", and count for mIoU only where predicted"
            yield (
                f"{root / 'annotations' / split}: {len(absent):,} of {len(names):,} classes have no pixel"
                f"{effect}: {first_names(absent)}"
            )
        if reader.turned:
            count = f"{len(reader.turned):,} of {len(reader.pairs):,}"
            yield (
                f"{root / 'images' / split}: EXIF orientation is applied to {count} images, as MMSegmentation does; "
                f"their label maps must be upright as well: {first_names(reader.turned)}"
            )
    if len(readers) == 2:
        first, second = readers.values()
        both = [second.content[key] for key in second.content if key in first.content]
        if both:
            yield (
                f"{root}: {len(both):,} of {len(second.pairs):,} validation images are training images as well (the "
                f"same bytes), which raises the score: {first_names(both)}"
            )
