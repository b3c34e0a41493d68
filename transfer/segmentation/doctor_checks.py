"""The checks of `simmim-bench doctor` for a data set in ADE20K's layout: list everything that is wrong with it.

A run stops at the first fault. The files are read by the same functions as in a run, so that data without
findings here is accepted there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from simmim_bench.data.decode import read_image
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.errors import DataError
from transfer.doctor_checks import FindingGroup, Reading
from transfer.segmentation.ade20k_layout import (
    MAX_CLASSES,
    SegmentationSplit,
    list_split,
    read_class_names,
    read_labels,
)

ADE20K_CLASSES = 150  # of a folder without classes.txt: MMSegmentation's ADE20KDataset


def check_ade20k(data: Path, reading: Reading) -> list[Finding]:
    """Check a folder in ADE20K's layout.

    Args:
        data: the folder; see `ade20k_layout`.
        reading: which of the images and label maps are decoded.

    Returns:
        Counts, faults and their remedies.
    """
    group = FindingGroup("ade20k")
    classes, finding = _count_classes(data, group)
    findings = [finding]
    for name in ("training", "validation"):
        try:
            split = list_split(data, name)
        except DataError as error:
            findings.append(group.finding(name, "problem", str(error)))
            continue
        findings += _examine_split(split, name, classes, reading, group)
    return findings


def _count_classes(data: Path, group: FindingGroup) -> tuple[int, Finding]:
    """Return the number of classes and the finding; 255 if classes.txt is damaged."""
    try:
        names = read_class_names(data)
    except DataError as error:
        return MAX_CLASSES, group.finding("classes", "problem", str(error))
    classes = len(names) if names else ADE20K_CLASSES
    source = "named in classes.txt" if names else "ADE20K's own, as there is no classes.txt"
    return classes, group.finding(
        "classes", "ok", f"{classes} classes, {source}", facts={"classes": classes}
    )


def _examine_split(
    split: SegmentationSplit, name: str, classes: int, reading: Reading, group: FindingGroup
) -> Iterator[Finding]:
    pairs = [
        (image, mask)
        for image, mask in zip(split.images, split.masks, strict=True)
        if mask.is_file()
    ]
    pixels = np.zeros(MAX_CLASSES + 1, np.int64)

    def read(index: int) -> None:
        image = read_image(pairs[index][0])
        labels = read_labels(pairs[index][1], classes, (image.height, image.width))
        pixels[:] += np.bincount(labels.ravel(), minlength=len(pixels))

    how, faults = reading.read(f"ade20k {name}", len(pairs), read)
    present = int((pixels[1:] > 0).sum())
    ignored = 100 * pixels[0] / max(1, pixels.sum())
    yield group.finding(
        name,
        "ok",
        f"{len(split):,} images, {len(pairs):,} with a label map; {how}: {present} of {classes} classes appear, "
        f"{ignored:.1f} % of the pixels are label 0, which is ignored",
        facts={"images": len(split), "pairs": len(pairs), "classes_seen": present},
    )
    missing = [str(mask) for mask in split.masks if not mask.is_file()]
    if missing:
        yield group.finding(
            f"{name} maps",
            "problem",
            f"{len(missing):,} images have no label map",
            remedy="add them or remove the images",
            items=missing,
        )
    yield from group.problems(f"{name} files", faults)
    if not present and pairs and how == "all read" and not faults:
        yield group.finding(
            f"{name} labels",
            "problem",
            "the label maps contain only label 0, which is ignored; label some pixels 1 or above",
        )
    yield from _unused_maps(split, name, group)


def _unused_maps(split: SegmentationSplit, name: str, group: FindingGroup) -> Iterator[Finding]:
    annotations = split.root / "annotations" / name
    unused = sorted(set(annotations.rglob("*.png")) - set(split.masks))
    if unused:
        yield group.finding(
            f"{name} maps",
            "warning",
            f"{len(unused):,} label maps have no image (*.jpg) and are not used",
            items=[str(path) for path in unused],
        )
