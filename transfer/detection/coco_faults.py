"""Find faults of a COCO instances file and its images.

A fault is a message that names the file, the value and the remedy. `find_bad` finds objects that only training
cannot use; a recipe may skip those.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

NUMBER = (int, float)
REQUIRED: dict[str, dict[str, Any]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "categories": {"id": int, "name": str},
    "annotations": {
        "id": int,
        "image_id": int,
        "category_id": int,
        "bbox": list,
        "area": NUMBER,
        "iscrowd": int,
    },
}
# Faults of objects. Records store the number of skipped objects under these texts: do not change them.
POLYGON = "a polygon that is not three corners or more, [[x1, y1, x2, y2, x3, y3, ...], ...]"
RUN_LENGTHS = "run lengths without size and counts"
NO_MASK = "no mask, while others have one"
NO_AREA = "a box without area"
OUTSIDE = "a box outside of its image"
MISREAD = (POLYGON, RUN_LENGTHS)  # pycocotools takes four numbers for a box, and fails on others


def entry_faults(path: Path, content: Any) -> Iterator[str]:
    """Yield a message for every missing list or key, every value of a wrong type and every duplicate id."""
    for section, keys in REQUIRED.items():
        entries = content.get(section) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not entries:
            yield f"{path} has no list of {section}; it is not a COCO instances file."
            continue
        for index, entry in enumerate(entries):
            yield from _key_faults(f"{path}: entry {index} of {section}", entry, keys)
        yield from _duplicate_ids(path, section, entries)
        if section == "categories":
            yield from _duplicate_names(path, entries)


def _key_faults(where: str, entry: Any, keys: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"{where} is {json.dumps(entry)}; it must be an object."
        return
    for key, kind in keys.items():
        if key not in entry:
            yield f"{where} lacks '{key}', which pycocotools needs; add it."
        elif isinstance(entry[key], bool) or not isinstance(entry[key], kind):
            expected = "a number" if kind is NUMBER else f"of type {kind.__name__}"
            yield f"{where} has {key} {json.dumps(entry[key])}, which is not {expected}; correct it."
    if entry.get("ignore"):
        yield (
            f"{where} has 'ignore', which COCO does not define; remove it, or mark a crowd with iscrowd 1."
        )


def _duplicate_ids(path: Path, section: str, entries: list[Any]) -> Iterator[str]:
    ids = [n for e in entries if isinstance(e, dict) and isinstance(n := e.get("id"), int)]
    duplicates = [(n, count) for n, count in Counter(ids).items() if count > 1]
    if duplicates:
        number, count = duplicates[0]
        yield (
            f"{path}: id {number} occurs {count} times in {section} ({len(duplicates)} ids occur more than once); "
            "make ids unique."
        )


def _duplicate_names(path: Path, entries: list[Any]) -> Iterator[str]:
    names = [n for e in entries if isinstance(e, dict) and isinstance(n := e.get("name"), str)]
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{path}: {count} categories are called '{name}'; rename all but one."


def category_faults(
    paths: Sequence[Path], train: Sequence[int], val: Sequence[int]
) -> Iterator[str]:
    """Yield a message if the two splits have different category ids.

    Args:
        paths: the annotation files of train and val.
    """
    unshared = sorted(set(train) ^ set(val))
    if unshared:
        yield (
            f"{' and '.join(path.name for path in paths)} in {paths[0].parent} have different categories: id "
            f"{unshared[0]} is in one of them only; use the same categories in both."
        )


def reference_faults(path: Path, content: dict[str, Any]) -> Iterator[str]:
    """Yield a message for references to missing images or categories, and for invalid boxes."""
    annotations = content["annotations"]
    for key, section in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in content[section]}
        dangling = [a for a in annotations if a[key] not in known]
        if dangling:
            yield (
                f"{path}: annotation {dangling[0]['id']} has {key} {dangling[0][key]}, which is not in {section} "
                f"({len(dangling)} such annotations); correct them, or add the entry."
            )
    boxless = [a for a in annotations if not is_box(a["bbox"])]
    if boxless:
        yield (
            f"{path}: annotation {boxless[0]['id']} has bbox {boxless[0]['bbox']}, which is not a box "
            f"({len(boxless)} such annotations); use [x, y, width, height]."
        )


def is_box(box: Any) -> bool:
    """Return whether a value is a list of four finite numbers."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, int | float) and math.isfinite(v) for v in box)
    )


def image_faults(path: Path, content: dict[str, Any], images: Path) -> Iterator[str]:
    """Yield a message if images of an annotation file are not on disk.

    Args:
        images: the folder that the `file_name`s are relative to.
    """
    if not images.is_dir():
        yield f"image folder {images} does not exist; {path} refers to the images in it."
        return
    missing = missing_images(content, images)
    if missing:
        yield (
            f"image {images / missing[0]} does not exist ({len(missing)} of the {len(content['images'])} images of "
            f"{path} are missing); add them or remove their entries."
        )


def missing_images(content: dict[str, Any], images: Path) -> list[str]:
    """Return the names of the images that are not on disk."""
    present = set(os.listdir(images))  # one listing: 118,000 single checks are slow on a network
    names = [image["file_name"] for image in content["images"]]
    return [n for n in names if n not in present and not (images / n).is_file()]


def find_bad(content: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the ids of the annotations that cannot be trained on, by fault.

    COCO's own training set has two boxes without area.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    has_masks = any(a.get("segmentation") for a in objects)
    bad: dict[str, list[int]] = {}
    for annotation in content["annotations"]:
        for kind in _object_faults(annotation, *sizes[annotation["image_id"]]):
            bad.setdefault(kind, []).append(annotation["id"])
        if has_masks and not annotation["iscrowd"] and not annotation.get("segmentation"):
            bad.setdefault(NO_MASK, []).append(annotation["id"])
    return bad


def _object_faults(annotation: Mapping[str, Any], width: int, height: int) -> Iterator[str]:
    mask = annotation.get("segmentation")
    if isinstance(mask, dict):
        if not {"size", "counts"} <= set(mask):
            yield RUN_LENGTHS
    elif mask and not (isinstance(mask, list) and all(map(_is_polygon, mask))):
        yield POLYGON
    x, y, w, h = annotation["bbox"]
    if w <= 0 or h <= 0:
        yield NO_AREA
    elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
        yield OUTSIDE


def _is_polygon(corners: Any) -> bool:
    return isinstance(corners, list) and len(corners) >= 6 and not len(corners) % 2
