"""The checks of `simmim-bench doctor` for a data set in COCO's layout: list everything that is wrong with it.

A run stops at the first fault. The files are read by the same functions as in a run, so that data without
findings here is accepted there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from simmim_bench.data.pixel_format import PixelFormat
from simmim_bench.data.pixels import read_pixels
from simmim_bench.diagnostics.data_checks import FindingGroup, Reading
from simmim_bench.diagnostics.findings import Finding
from simmim_bench.errors import DataError
from simmim_bench.results.coco_file import read_instances
from transfer.detection.coco_faults import (
    MISREAD,
    box_form_faults,
    category_faults,
    crowd_faults,
    entry_faults,
    find_bad,
    is_box,
    reference_faults,
)
from transfer.detection.coco_images import (
    check_decoded_size,
    image_faults,
    missing_images,
    resolve_names,
)
from transfer.detection.coco_layout import ManyCrowds, read_splits, split_paths


def check_coco(data: Path, reading: Reading) -> list[Finding]:
    """Check a folder in COCO's layout.

    Args:
        data: the folder; see `coco_layout`.
        reading: which of the images are decoded; its recipe tells whether many crowds are allowed, its pixel
            format what the images hold.

    Returns:
        Counts, faults and their remedies.
    """
    group = FindingGroup("coco")
    findings: list[Finding] = []
    contents: dict[str, dict[str, Any]] = {}
    for split in ("train", "val"):
        content, found = _read_annotations(data, split, reading, group)
        findings += found
        if content is not None:
            contents[split] = content
            findings += _examine_split(data, split, content, reading, group)
    paths = [split_paths(data, split)[0] for split in contents]
    if contents:
        faults = list(category_faults(paths, list(contents.values())))
        findings += group.problems("categories", faults)
    if all(finding.state != "problem" for finding in findings):
        try:  # what a run requires beyond the checks above, and what it warns of
            for read in read_splits(data, "skip", _many_crowds(reading)):
                findings += [group.finding("splits", "warning", text) for text in read.warnings]
        except DataError as error:
            findings.append(group.finding("splits", "problem", str(error)))
    return findings


def _read_annotations(
    data: Path, split: str, reading: Reading, group: FindingGroup
) -> tuple[dict[str, Any] | None, list[Finding]]:
    """Read the annotation file of a split; None if it is not a COCO instances file."""
    try:
        path, _ = split_paths(data, split)
        reading.display.log(f"coco: reading {path}")
        content = read_instances(path).content
    except DataError as error:
        return None, [group.finding(split, "problem", str(error))]
    faults = list(entry_faults(path, content))
    if faults:
        return None, list(group.problems(split, faults))
    return content, []


def _examine_split(
    data: Path, split: str, content: dict[str, Any], reading: Reading, group: FindingGroup
) -> Iterator[Finding]:
    path, folder = split_paths(data, split)
    yield _count(split, content, group)
    yield from group.problems(f"{split} entries", list(reference_faults(path, content)))
    missing: list[str] = []
    if folder.is_dir():
        resolve_names(content, folder)
        missing = missing_images(content, folder)
    for fault in image_faults(path, content, folder):
        yield group.finding(f"{split} images", "problem", fault, items=missing)

    image_ids = {entry["id"] for entry in content["images"]}
    whole = [a for a in content["annotations"] if a["image_id"] in image_ids and is_box(a["bbox"])]
    usable = {**content, "annotations": whole}
    yield from _bad_objects(split, find_bad(usable), group)
    forms = [*box_form_faults(path, usable)]
    if _many_crowds(reading) == "refuse":
        forms += crowd_faults(path, usable)
    yield from group.problems(f"{split} objects", forms)

    if folder.is_dir():
        absent = set(missing)
        present = [image for image in content["images"] if image["file_name"] not in absent]
        how, faults = reading.read(
            f"coco {split}",
            len(present),
            partial(_check_image, present, folder, reading.pixel_format),
        )
        yield group.finding(f"{split} images", "ok", f"{len(present):,} found; {how}")
        yield from group.problems(f"{split} images", faults)


def _many_crowds(reading: Reading) -> ManyCrowds:
    """Return what the recipe does with splits of many crowds; "refuse" without a recipe of this task."""
    chosen: ManyCrowds = getattr(reading.recipe, "many_crowds", "refuse")
    return chosen


def _count(split: str, content: Mapping[str, Any], group: FindingGroup) -> Finding:
    """Count images, annotations and categories of a split."""
    annotations, images = content["annotations"], content["images"]
    crowds = sum(bool(a["iscrowd"]) for a in annotations)
    annotated = {a["image_id"] for a in annotations}
    without = sum(image["id"] not in annotated for image in images)
    objects = Counter(a["category_id"] for a in annotations)
    unused = [c["name"] for c in content["categories"] if not objects[c["id"]]]
    return group.finding(
        split,
        "ok",
        f"{len(images):,} images ({without:,} without annotations), {len(annotations):,} annotations "
        f"({crowds:,} crowds), {len(content['categories']):,} categories ({len(unused):,} without objects)",
        facts={
            "images": len(images),
            "images_without_annotations": without,
            "annotations": len(annotations),
            "crowds": crowds,
            "categories": len(content["categories"]),
            "categories_without_objects": unused,
        },
    )


def _bad_objects(
    split: str, bad: Mapping[str, list[int]], group: FindingGroup
) -> Iterator[Finding]:
    """Report objects that cannot be trained on; in the val split they are scored unless misread."""
    for kind, ids in bad.items():
        misread = split == "val" and kind in MISREAD
        if split == "train":
            remedy = "correct them, or train without them with -o bad_annotations=skip, as published recipes do"
        else:
            remedy = (
                "correct them" if misread else "correct them; otherwise they are scored as they are"
            )
        yield group.finding(
            f"{split} objects",
            "problem" if misread else "warning",
            f"{len(ids):,} annotations with {kind}",
            remedy=remedy,
            items=[f"annotation {number}" for number in ids],
            facts={"annotations": ids},
        )


def _check_image(
    images: Sequence[Mapping[str, Any]], folder: Path, pixel_format: PixelFormat, index: int
) -> None:
    """Decode an image and compare its size with its entry.

    Raises:
        DataError: the image cannot be decoded, or has another size.
    """
    entry = images[index]
    pixels = read_pixels(folder / entry["file_name"], pixel_format, upright=True)
    check_decoded_size(entry, folder, (pixels.shape[1], pixels.shape[2]))
