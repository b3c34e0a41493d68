"""Find faults of a COCO instances file.

A fault is a message that names the file, the value and the remedy. `find_bad` finds objects that only training
cannot use; a recipe may skip those. The content is that of `simmim_bench.results.coco_file.read_instances`. Faults
of image files are found by `coco_images.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simmim_bench.results.coco_file import is_finite
from simmim_bench.results.coco_truth import missing_objects
from simmim_bench.results.run_lengths import sum_run_lengths
from simmim_bench.untrusted.text import shorten

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
EXPECTED = {int: "a whole number", str: "text", list: "a list", NUMBER: "a number"}
LEAST, MOST = {"height": 1, "width": 1}, {"iscrowd": 1}  # allowed values; otherwise 0 to MAX_ID
MAX_ID = 2**53  # larger whole numbers are not exact in every program that reads JSON
# Faults of objects. Records store the number of skipped objects under these texts: do not change them.
POLYGON = "a polygon that is not three corners or more, [[x1, y1, x2, y2, x3, y3, ...], ...]"
RUN_LENGTHS = "run lengths without size and counts"
RUN_LENGTHS_SIZE = "run lengths whose size is not [height, width] of their image"
RUN_LENGTHS_SUM = "run lengths that do not add up to the pixels of their image"
NO_MASK = "no mask, while others have one"
NO_AREA = "a box without area"
OUTSIDE = "a box outside of its image"
MASK_OUTSIDE = "a mask outside of its image"
# pycocotools takes four numbers for a box, reads run lengths of another size as another mask, and fails on others.
MISREAD = (POLYGON, RUN_LENGTHS, RUN_LENGTHS_SIZE, RUN_LENGTHS_SUM)
# Of COCO 2017's annotations 1.2 % are crowds; CVAT exports every object that was painted with its brush as one.
MANY_CROWDS = 0.2
ROUNDING = 1.0  # pixels by which exporters' boxes may leave the image
OFTEN = 0.25  # corners taken for sizes leave the image for three boxes in four, where objects lie anywhere


def entry_faults(path: Path, content: Any) -> Iterator[str]:
    """Yield a message for every missing list or key, every value of a wrong type and every duplicate id."""
    for section, keys in REQUIRED.items():
        entries = content.get(section) if isinstance(content, dict) else None
        if section == "annotations" and entries == []:
            yield str(missing_objects(path, content))
            continue
        if not isinstance(entries, list) or not entries:
            yield f"{path} has no list of {section}; it is not a COCO instances file."
            continue
        for index, entry in enumerate(entries):
            yield from _key_faults(f"{path}: entry {index} of {section}", entry, keys)
        yield from _duplicate_ids(path, section, entries)


def _key_faults(where: str, entry: Any, keys: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"{where} is {_shown(entry)}; it must be an object."
        return
    for key, kind in keys.items():
        if key not in entry:
            yield f"{where} lacks '{key}', which pycocotools needs; add it."
        elif isinstance(entry[key], bool) or not isinstance(entry[key], kind):
            expected = EXPECTED[kind]
            yield f"{where} has {key} {_shown(entry[key])}, which is not {expected}; correct it."
        elif kind is int and not LEAST.get(key, 0) <= entry[key] <= MOST.get(key, MAX_ID):
            yield (
                f"{where} has {key} {entry[key]}, which is not from {LEAST.get(key, 0)} to {MOST.get(key, MAX_ID)}; "
                "correct it."
            )
    if entry.get("ignore"):
        yield (
            f"{where} has 'ignore', which COCO does not define; remove it, or mark a crowd with iscrowd 1."
        )


def _shown(value: Any) -> str:
    """Return a JSON value for a message, not more than a line of it."""
    try:
        return shorten(json.dumps(value))
    except RecursionError:
        return "a deeply nested value"


def _duplicate_ids(path: Path, section: str, entries: list[Any]) -> Iterator[str]:
    ids = [n for e in entries if isinstance(e, dict) and isinstance(n := e.get("id"), int)]
    duplicates = [(n, count) for n, count in Counter(ids).items() if count > 1]
    if duplicates:
        number, count = duplicates[0]
        yield (
            f"{path}: id {number} occurs {count} times in {section} ({len(duplicates)} ids occur more than once); "
            "make ids unique."
        )


def category_faults(paths: Sequence[Path], contents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a message if splits have different categories, or if objects have two categories of one name.

    A category without objects may have the name of another one: Roboflow adds the project's name as the parent of
    all categories.

    Args:
        paths: the annotation files, of one or more splits.
        contents: of these files.
    """
    first, *others = ({c["id"]: c["name"] for c in content["categories"]} for content in contents)
    where = " and ".join(map(str, paths))
    for other in others:
        unshared = sorted(set(first) ^ set(other))
        if unshared:
            yield (
                f"{where} have different categories: id {unshared[0]} is in one of them only; use the same categories "
                "in both."
            )
        renamed = [n for n in first if other.get(n, first[n]) != first[n]]
        if renamed:
            n = renamed[0]
            yield (
                f"{where} have different categories: id {n} is '{first[n]}' in the first and '{other[n]}' in the "
                f"second ({len(renamed)} ids differ); number the categories alike in both."
            )
    used = {a["category_id"] for content in contents for a in content["annotations"]}
    for name, count in Counter(first[n] for n in used if n in first).items():
        if count > 1:
            yield f"{where}: objects have {count} categories that are called '{name}'; rename all but one."


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
        and all(isinstance(v, int | float) and is_finite(v) for v in box)
    )


def crowd_faults(path: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message if more than a fifth of the annotations are crowds: they are probably single objects."""
    annotations = content["annotations"]
    crowds = [a for a in annotations if a["iscrowd"]]
    if len(crowds) > MANY_CROWDS * len(annotations):
        yield (
            f"{path}: {len(crowds):,} of {len(annotations):,} annotations are crowds (iscrowd 1; the first is "
            f"annotation {crowds[0]['id']}), which are not trained on and not scored. CVAT exports objects painted "
            "with its brush as crowds. If they are single objects, `simmim-bench data convert DIR OUT --crowds "
            "objects` sets their iscrowd to 0; otherwise ignore them with -o many_crowds=ignore."
        )


def box_form_faults(path: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message if the boxes are corners, [x1, y1, x2, y2], or fractions of the image."""
    boxes, sizes = _boxes_and_sizes(content)
    if not len(boxes):
        return
    if boxes.min() >= 0 and boxes.max() <= 1 and sizes.min() > 1:
        yield (
            f"{path}: all {len(boxes):,} boxes have values from 0 to 1; they seem to be fractions of the image. "
            "Multiply them by its width and height: COCO's boxes are [x, y, width, height] in pixels."
        )
        return
    start, extent = boxes[:, :2], boxes[:, 2:]
    as_corners = ((extent > start) & (extent <= sizes + ROUNDING)).all()
    leaving = (start + extent > sizes + ROUNDING).any(1)
    if as_corners and leaving.mean() >= OFTEN:
        yield (
            f"{path}: {leaving.sum():,} of {len(boxes):,} boxes leave their image, and none does as [x1, y1, x2, y2]; "
            "they seem to be corners. Convert them to COCO's [x, y, width, height]."
        )


def boxes_leaving(content: Mapping[str, Any]) -> int:
    """Count the boxes that are partly outside of their image, by more than a pixel."""
    boxes, sizes = _boxes_and_sizes(content)
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    leaving = ((start < -ROUNDING) | (end > sizes + ROUNDING)).any(1)
    inside = ((start < sizes) & (end > 0)).all(1)
    return int((leaving & inside).sum())


def masks_elsewhere(content: Mapping[str, Any]) -> int:
    """Count the objects none of whose outlines overlaps the box."""
    return sum(
        all(_is_outside(p, *annotation["bbox"]) for p in mask)
        for annotation in content["annotations"]
        if isinstance(mask := annotation.get("segmentation"), list) and all(map(_is_polygon, mask))
    )


def _boxes_and_sizes(content: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes (N, 4) and the (width, height) of their images (N, 2)."""
    size_of = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    annotations = content["annotations"]
    boxes = np.array([a["bbox"] for a in annotations], float).reshape(-1, 4)
    sizes = np.array([size_of[a["image_id"]] for a in annotations], float).reshape(-1, 2)
    return boxes, sizes


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
        yield from _run_length_faults(mask, width, height)
    elif mask and not (isinstance(mask, list) and all(map(_is_polygon, mask))):
        yield POLYGON
    elif mask and all(_is_outside(polygon, 0, 0, width, height) for polygon in mask):
        yield MASK_OUTSIDE
    x, y, w, h = annotation["bbox"]
    if w <= 0 or h <= 0:
        yield NO_AREA
    elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
        yield OUTSIDE


def _run_length_faults(mask: Mapping[str, Any], width: int, height: int) -> Iterator[str]:
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list) or not isinstance(counts, str | list):
        yield RUN_LENGTHS
    elif size != [height, width]:
        yield RUN_LENGTHS_SIZE
    elif sum_run_lengths(counts) != height * width:
        yield RUN_LENGTHS_SUM


def _is_polygon(corners: Any) -> bool:
    return (
        isinstance(corners, list)
        and len(corners) >= 6
        and not len(corners) % 2
        and all(type(v) in NUMBER and is_finite(v) for v in corners)
    )


def _is_outside(corners: Sequence[float], x: float, y: float, w: float, h: float) -> bool:
    """Return whether a polygon's bounding box does not touch a box."""
    if x <= corners[0] <= x + w and y <= corners[1] <= y + h:  # of nearly all polygons
        return False
    xs, ys = corners[0::2], corners[1::2]
    return min(xs) >= x + w or min(ys) >= y + h or max(xs) <= x or max(ys) <= y
