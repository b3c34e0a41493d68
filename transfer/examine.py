"""Look at data sets before a run does: all that is wrong with one, where a run stops at the first.

In: a folder in the layout of ImageNet, COCO or ADE20K. Out: findings: counts, what is wrong, what to do.
The files are read by the readers of the runs themselves, so that what passes here passes there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from simmim_bench.data.decode import decode_image, read_image
from simmim_bench.data.sources import ImageList, empty_class, list_classes
from simmim_bench.diagnostics.findings import Finding, Severity
from simmim_bench.display import Display
from simmim_bench.errors import DataError
from simmim_bench.files import read_json
from transfer.detection.coco_layout import (
    MISREAD,
    category_faults,
    entry_faults,
    find_bad,
    image_faults,
    is_box,
    missing_images,
    read_splits,
    reference_faults,
    split_paths,
)
from transfer.segmentation.ade20k_layout import (
    CHECK_AT_ONCE,
    MAX_CLASSES,
    SegmentationSplit,
    list_split,
    read_class_names,
    read_labels,
)

SAMPLE = 500  # files of a large split that are read
SEED = 0
ADE20K_CLASSES = 150  # of a folder without classes.txt: MMSegmentation's ADE20KDataset


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How many files are read.

    Attributes:
        every_file: all of them; else those of splits of up to `CHECK_AT_ONCE`, and `SAMPLE` of larger ones.
    """

    display: Display
    every_file: bool = False

    def choose(self, count: int) -> list[int]:
        """Give the numbers of the files to read, ascending."""
        if self.every_file or count <= CHECK_AT_ONCE:
            return list(range(count))
        drawn = np.random.default_rng(SEED).choice(count, SAMPLE, replace=False)
        return sorted(int(number) for number in drawn)

    def read(self, what: str, count: int, read: Callable[[int], object]) -> tuple[str, list[str]]:
        """Read the files; say how many, and give the messages of those that cannot be used."""
        numbers, faults = self.choose(count), []
        with self.display.task(what, len(numbers)) as task:
            for number in numbers:
                try:
                    read(number)
                except DataError as error:
                    faults.append(str(error))
                task.advance()
        how = "all read" if len(numbers) == count else f"{len(numbers):,} read (seed {SEED})"
        return how, faults


@dataclass(frozen=True)
class FindingGroup:
    """Makes the findings of one data set."""

    name: str

    def finding(self, name: str, state: Severity, said: str, **more: Any) -> Finding:
        """Make a finding of this group."""
        return Finding(group=self.name, name=name, state=state, said=said, **more)

    def problems(self, name: str, faults: Sequence[str], **more: Any) -> Iterator[Finding]:
        """Make one finding of all faults, or none."""
        if len(faults) == 1:
            yield self.finding(name, "problem", faults[0], items=(), **more)
        elif faults:
            yield self.finding(name, "problem", f"{len(faults)} faults", items=faults, **more)


def examine_imagenet(data: Path, reading: Reading) -> list[Finding]:
    """Look at a folder in ImageNet's layout, `{train,val}/CLASS/image`."""
    return list(_imagenet(data, reading, FindingGroup("imagenet")))


def _imagenet(data: Path, reading: Reading, group: FindingGroup) -> Iterator[Finding]:
    classes: dict[str, set[str]] = {}
    for split in ("train", "val"):
        try:
            found, outside = list_classes(data, split)
        except DataError as error:
            yield group.finding(split, "problem", str(error))
            continue
        classes[split] = set(found)
        sizes = [len(images) for images in found.values()]
        images = ImageList(
            data,
            tuple(path for paths in found.values() for path in paths),
            tuple(label for label, size in enumerate(sizes) for _ in range(size)),
            tuple(found),
        )
        how, faults = reading.read(
            f"imagenet {split}",
            len(images),
            lambda i, images=images: decode_image(images.read(i), images.name(i)),  # type: ignore[misc]
        )
        yield group.finding(
            split,
            "ok",
            f"{len(images):,} images of {len(found):,} classes, {min(sizes):,} to {max(sizes):,} a class; {how}",
            facts={"images": len(images), "classes": len(found), "fewest": min(sizes)},
        )
        empty = [empty_class(data / split / name) for name, paths in found.items() if not paths]
        yield from group.problems(f"{split} classes", empty)
        yield from group.problems(f"{split} images", faults)
        if outside:
            yield group.finding(
                f"{split} images",
                "warning",
                f"{len(outside):,} images lie beside the class folders and are not used",
                items=[str(path) for path in outside],
            )
    if len(classes) == 2:
        for here, there in (("train", "val"), ("val", "train")):
            odd = sorted(classes[here] - classes[there])
            if odd:
                yield group.finding(
                    "classes",
                    "problem",
                    f"{len(odd):,} of the classes of {here}/ are not in {there}/",
                    remedy="give train/ and val/ the same class folders",
                    items=odd,
                )


def examine_coco(data: Path, reading: Reading) -> list[Finding]:
    """Look at a folder in COCO's layout."""
    group = FindingGroup("coco")
    findings = []
    categories: dict[str, list[int]] = {}
    for split in ("train", "val"):
        findings += list(_coco_split(data, split, reading, group, categories))
    if len(categories) == 2:
        faults = list(category_faults(data, sorted(categories["train"]), sorted(categories["val"])))
        findings += group.problems("categories", faults)
    if all(finding.state != "problem" for finding in findings):
        try:  # what the runs ask for beyond that
            read_splits(data, "skip")
        except DataError as error:
            findings.append(group.finding("splits", "problem", str(error)))
    return findings


def _coco_split(
    data: Path, split: str, reading: Reading, group: FindingGroup, categories: dict[str, list[int]]
) -> Iterator[Finding]:
    """Look at one split; its category ids are left in `categories`."""
    try:
        path, folder = split_paths(data, split)
        reading.display.log(f"reading {path}")
        content = read_json(path, "annotation file")
    except DataError as error:
        yield group.finding(split, "problem", str(error))
        return
    faults = list(entry_faults(path, content))
    if faults:  # what is no COCO file cannot be counted
        yield from group.problems(split, faults)
        return
    categories[split] = [category["id"] for category in content["categories"]]
    yield _count(split, content, group)
    yield from group.problems(f"{split} entries", list(reference_faults(path, content)))
    missing = missing_images(content, folder) if folder.is_dir() else []
    for fault in image_faults(path, content, folder):
        yield group.finding(f"{split} images", "problem", fault, items=missing)

    ids = {key: {entry["id"] for entry in content[key]} for key in ("images", "categories")}
    whole = [
        a for a in content["annotations"] if a["image_id"] in ids["images"] and is_box(a["bbox"])
    ]
    yield from _bad(split, find_bad({**content, "annotations": whole}), group)

    absent = set(missing)
    here = [image for image in content["images"] if image["file_name"] not in absent]
    if folder.is_dir():
        check = partial(_check_image, here, folder)
        how, faults = reading.read(f"coco {split}", len(here), check)
        yield group.finding(f"{split} images", "ok", f"{len(here):,} there; {how}")
        yield from group.problems(f"{split} images", faults)


def _count(split: str, content: Mapping[str, Any], group: FindingGroup) -> Finding:
    annotations, images = content["annotations"], content["images"]
    crowds = sum(bool(a["iscrowd"]) for a in annotations)
    seen = {a["image_id"] for a in annotations}
    without = sum(image["id"] not in seen for image in images)
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


def _bad(split: str, bad: Mapping[str, list[int]], group: FindingGroup) -> Iterator[Finding]:
    """Say which objects cannot be learnt from: trained without in train/, scored as they are in val/."""
    for kind, numbers in bad.items():
        misread = split == "val" and kind in MISREAD
        if split == "train":
            remedy = "correct them, or train without them by -o bad_annotations=skip, as published recipes do"
        else:
            remedy = "correct them" if misread else "correct them; else they are scored as they are"
        yield group.finding(
            f"{split} objects",
            "problem" if misread else "warning",
            f"{len(numbers):,} annotations with {kind}",
            remedy=remedy,
            items=[f"annotation {number}" for number in numbers],
            facts={"annotations": numbers},
        )


def _check_image(images: Sequence[Mapping[str, Any]], folder: Path, number: int) -> None:
    entry = images[number]
    image = read_image(folder / entry["file_name"])
    if (image.width, image.height) != (entry["width"], entry["height"]):
        raise DataError(
            f"image {folder / entry['file_name']} is {image.width} x {image.height} pixels, its entry says "
            f"{entry['width']} x {entry['height']}; correct one of them."
        )


def examine_ade20k(data: Path, reading: Reading) -> list[Finding]:
    """Look at a folder in ADE20K's layout."""
    return list(_ade20k(data, reading, FindingGroup("ade20k")))


def _ade20k(data: Path, reading: Reading, group: FindingGroup) -> Iterator[Finding]:
    classes = ADE20K_CLASSES
    try:
        names = read_class_names(data)
        classes = len(names) if names else ADE20K_CLASSES
        where = "named in classes.txt" if names else "ADE20K's own, as there is no classes.txt"
        yield group.finding(
            "classes", "ok", f"{classes} classes, {where}", facts={"classes": classes}
        )
    except DataError as error:
        classes = MAX_CLASSES  # labels cannot be judged
        yield group.finding("classes", "problem", str(error))
    for name in ("training", "validation"):
        try:
            split = list_split(data, name)
        except DataError as error:
            yield group.finding(name, "problem", str(error))
            continue
        yield from _ade20k_split(split, name, classes, reading, group)


def _ade20k_split(
    split: SegmentationSplit, name: str, classes: int, reading: Reading, group: FindingGroup
) -> Iterator[Finding]:
    missing = [str(mask) for mask in split.masks if not mask.is_file()]
    pairs = [
        (image, mask)
        for image, mask in zip(split.images, split.masks, strict=True)
        if mask.is_file()
    ]
    pixels = np.zeros(MAX_CLASSES + 1, np.int64)

    def read(number: int) -> None:
        image = read_image(pairs[number][0])
        labels = read_labels(pairs[number][1], classes, (image.height, image.width))
        pixels[:] += np.bincount(labels.ravel(), minlength=len(pixels))

    how, faults = reading.read(f"ade20k {name}", len(pairs), read)
    seen = int((pixels[1:] > 0).sum())
    ignored = 100 * pixels[0] / max(1, pixels.sum())
    yield group.finding(
        name,
        "ok",
        f"{len(split):,} images, {len(pairs):,} with a label map; {how}: {seen} of {classes} classes appear, "
        f"{ignored:.1f} % of the pixels are label 0, which is ignored",
        facts={"images": len(split), "pairs": len(pairs), "classes_seen": seen},
    )
    if missing:
        yield group.finding(
            f"{name} maps",
            "problem",
            f"{len(missing):,} images have no label map",
            remedy="add them or remove the images",
            items=missing,
        )
    yield from group.problems(f"{name} files", faults)
    if not seen and pairs and how == "all read" and not faults:
        yield group.finding(
            f"{name} labels",
            "problem",
            "the label maps hold nothing but label 0, which is ignored; label some pixels 1 or above",
        )
    annotations = split.root / "annotations" / name
    odd = sorted(set(annotations.rglob("*.png")) - set(split.masks))
    if odd:
        yield group.finding(
            f"{name} maps",
            "warning",
            f"{len(odd):,} label maps have no image (*.jpg) and are not used",
            items=[str(path) for path in odd],
        )


EXAMINERS: dict[str, Callable[[Path, Reading], list[Finding]]] = {
    "imagenet": examine_imagenet,
    "coco": examine_coco,
    "ade20k": examine_ade20k,
}
