"""Check what of COCO's annotations the evaluators take on trust, and whether there is an object to score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simmim_bench.results.coco_file import fits, is_finite

MAX_AREA = 1e5**2  # of objects that count; pycocotools: cocoeval.py, Params.setDetParams, areaRng
MAX_CATEGORIES = 20_000  # their precisions, 10 x 101 x classes x 4 x 3 numbers, take 2 GB


def missing_objects(annotations: Path, content: dict[str, Any]) -> str | None:
    """Return why every AP of an annotation file would be undefined, if it would; without detections it would be 0."""
    entries = content["annotations"]
    if any(map(is_scored, entries)):
        return None
    if not entries:
        return f"{annotations} has no annotations; annotate some objects."
    crowds = sum(bool(a["iscrowd"]) for a in entries)
    return (
        f"{annotations} has no object that can be scored: {crowds:,} of {len(entries):,} annotations are crowds"
        + (f", the others have an area above {MAX_AREA:.0e}" if crowds < len(entries) else "")
        + "; annotate some objects."
    )


def is_scored(annotation: dict[str, Any]) -> bool:
    """Return whether an annotation counts as an object; detections of others are ignored."""
    return not annotation["iscrowd"] and annotation["area"] <= MAX_AREA


def check_content(content: Any) -> None:
    """Check what of an annotation file the libraries take on trust: types and sizes.

    Raises:
        ValueError: a value cannot be used.
    """
    sections = ("images", "categories", "annotations")
    if not isinstance(content, dict) or not all(
        isinstance(entries := content.get(section), list)
        and all(isinstance(e, dict) for e in entries)
        for section in sections
    ):
        raise ValueError("it is not a COCO instances file")
    images, categories, annotations = (content[section] for section in sections)
    if len(categories) > MAX_CATEGORIES:
        raise ValueError(f"it has {len(categories):,} categories, more than {MAX_CATEGORIES:,}")
    for category in categories:
        if not (_is_id(category["id"]) and isinstance(category["name"], str)):
            raise ValueError(f"a category has id {category['id']!r} and name {category['name']!r}")
    sizes = {}
    for image in images:
        if not all(_is_id(image[key]) for key in ("id", "height", "width")):
            raise ValueError(f"image {image['id']!r} has no id and size in whole numbers")
        sizes[image["id"]] = (image["height"], image["width"])
    known = {category["id"] for category in categories}
    for number, annotation in enumerate(annotations):
        if annotation["image_id"] not in sizes or annotation["category_id"] not in known:
            raise ValueError(f"annotation {number:,} is of an unknown image or category")
        box, mask = annotation["bbox"], annotation.get("segmentation")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
            raise ValueError(f"annotation {number:,} has no box of four numbers")
        if not (_is_finite(annotation["area"]) and annotation["iscrowd"] in (0, 1)):
            raise ValueError(f"annotation {number:,} has no area, or iscrowd is not 0 or 1")
        if mask and not fits(mask, *sizes[annotation["image_id"]]):
            raise ValueError(f"annotation {number:,} has no mask that fits its image")


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and is_finite(value)
