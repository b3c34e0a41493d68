"""The checks of `simmim-bench doctor` for a data set in ImageNet's layout: list everything that is wrong with it.

A run stops at the first fault. The files are read by the same functions as in a run, so that data without
findings here is accepted there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from simmim_bench.data.sources import (
    ImageList,
    class_faults,
    class_sizes,
    list_classes,
    split_folder,
    unshared_classes,
)
from simmim_bench.diagnostics.data_checks import FindingGroup, Reading
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.diagnostics.images import ReadImages
from simmim_bench.display import plural
from simmim_bench.errors import DataError


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
    yield from found.remarks(split, group)


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
