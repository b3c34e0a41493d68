"""The checks of `simmim-bench doctor` for a data set in ImageNet's layout: list everything that is wrong with it.

A run stops at the first fault. The files are read by the same functions as in a run, so that data without
findings here is accepted there.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from simmim_bench.data.decode import decode_image, exif_orientation
from simmim_bench.data.sources import (
    ImageList,
    class_faults,
    class_sizes,
    list_classes,
    split_folder,
    unshared_classes,
)
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.display import plural
from simmim_bench.errors import DataError
from transfer.doctor_checks import FindingGroup, Reading

DARK = 15  # of 255: the upper 8 of 16 bits that hold values of 12 bits


@dataclass
class ReadImages:
    """What the images of a split that were read are found to be.

    Attributes:
        turned: images with an EXIF orientation other than upright.
        dark: images without a pixel above `DARK`.
        copies: names of the images by the hash of their content.
    """

    turned: list[str] = field(default_factory=list)
    dark: list[str] = field(default_factory=list)
    copies: dict[bytes, list[str]] = field(default_factory=lambda: defaultdict(list))

    def read(self, images: ImageList, index: int) -> None:
        """Decode an image, as a run does, and note what it is."""
        content, name = images.read(index), images.name(index)
        image = decode_image(content, name)
        if int(np.asarray(image).max()) <= DARK:
            self.dark.append(name)
        if exif_orientation(content) != 1:
            self.turned.append(name)
        self.copies[hashlib.sha256(content).digest()].append(name)


def check_imagenet(data: Path, reading: Reading) -> list[Finding]:
    """Check a folder in ImageNet's layout, `{train,val}/CLASS/image`.

    Args:
        reading: which of the images are decoded.

    Returns:
        Counts, faults and their remedies.
    """
    group = FindingGroup("imagenet")
    findings: list[Finding] = []
    classes: dict[str, list[str]] = {}
    known = {split: ReadImages() for split in ("train", "val")}
    for split, found_in in known.items():
        try:
            images = list_classes(data, split)
        except DataError as error:
            findings.append(group.finding(split, "problem", str(error)))
            continue
        classes[split] = [*images.classes]
        findings += _examine_split(data, split, images, found_in, reading, group)
        if images.left_out:
            findings.append(group.finding(f"{split} files", "warning", images.left_out.describe()))
    if len(classes) == 2:
        faults = unshared_classes(classes["train"], classes["val"])
        findings += group.problems("classes", faults)
    findings += _shared_images(known["train"], known["val"], group)
    return findings


def _examine_split(
    data: Path,
    split: str,
    images: ImageList,
    found: ReadImages,
    reading: Reading,
    group: FindingGroup,
) -> Iterator[Finding]:
    sizes = class_sizes(images)
    how, faults = reading.read(
        f"imagenet {split}", len(images), lambda index: found.read(images, index)
    )
    yield group.finding(
        split,
        "ok",
        f"{len(images):,} images of {len(sizes):,} classes, {min(sizes):,} to {max(sizes):,} per class; {how}",
        facts={"images": len(images), "classes": len(sizes), "fewest": min(sizes)},
    )
    yield from group.problems(f"{split} classes", class_faults(split_folder(data, split), images))
    yield from group.problems(f"{split} images", faults)
    if found.turned:
        yield group.finding(
            f"{split} orientation",
            "warning",
            f"{plural(len(found.turned), 'image has', 'images have')} an EXIF orientation, which classification and "
            "pretraining do not apply, as published pipelines do not",
            remedy="to have them upright, rotate the files",
            items=found.turned,
        )
    if found.dark:
        yield group.finding(
            f"{split} range",
            "warning",
            f"{plural(len(found.dark), 'image is', 'images are')} nearly black: no pixel is above {DARK} of 255",
            remedy="where 12 bits are stored as 16, multiply the pixels by 16",
            items=found.dark,
        )
    again = [names for names in found.copies.values() if len(names) > 1]
    if again:
        extra = sum(len(names) - 1 for names in again)
        yield group.finding(
            f"{split} copies",
            "warning",
            f"{extra:,} of the {len(images):,} images {'are copies' if extra > 1 else 'is a copy'} of another one",
            items=[" = ".join(names) for names in again],
        )


def _shared_images(train: ReadImages, val: ReadImages, group: FindingGroup) -> Iterator[Finding]:
    """Report images of val/ that train/ holds as well, among the images that were read."""
    shared = [key for key in val.copies if key in train.copies]
    if shared:
        yield group.finding(
            "copies",
            "warning",
            f"{plural(len(shared), 'image', 'images')} of val/ {'are' if len(shared) > 1 else 'is'} in train/ as well, "
            "so that the score is too high",
            remedy="remove them from one of the splits",
            items=[f"{val.copies[key][0]} = {train.copies[key][0]}" for key in shared],
        )
