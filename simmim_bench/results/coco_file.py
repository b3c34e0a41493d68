"""Read a COCO instances file: the fields that training and evaluation use, in their proper types.

Exporters differ in fields that nobody uses (`info`, `licenses`, `date_captured`, `keypoints`, ...), which are left
out, and in the types of those that are used: ids as text, an area that is missing, `iscrowd` as true or false. What
has one meaning is converted; all else is kept as it is, for `transfer/detection/coco_faults.py` to refuse.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_bench.errors import DataError
from simmim_bench.results.run_lengths import sum_run_lengths
from simmim_bench.untrusted.json_text import MAX_BYTES_OF_DATA, parse_unlimited
from simmim_bench.untrusted.paths import read_bytes

USED = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": (
        *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "ignore"),
    ),
}
WHOLE = ("id", "image_id", "category_id", "height", "width")
MAX_SIDE = 40_000  # pixels: masks have fewer than 2^31
MAX_OUTLINE = 8e7  # corners times extent: 2,000 corners in an image of 40,000 pixels
MAX_DIGITS = 100  # of a whole number as text; Python refuses to convert more than 4,300
DIGITS = re.compile(r"\s*-?[0-9]+\s*")
NO_ID = "annotations without an id: they are numbered in their order"
NO_AREA = (
    "annotations without an area: it is computed from the mask, or from the box where there is none"
)
NO_BOX = "annotations without a box: it is computed from the mask"
NO_CROWD = "annotations without iscrowd: they are objects"
AS_TEXT = "annotations with boxes or outlines as text: they are read as numbers"


@dataclass(frozen=True)
class Instances:
    """A COCO instances file.

    Attributes:
        content: `images`, `categories` and `annotations` with the fields of `USED`; any other value where the
            file has another form.
        filled_in: what was missing or text and has been filled in, with the number of annotations.
    """

    content: Any
    filled_in: Mapping[str, int]

    def describe(self) -> list[str]:
        """Return a line for each kind of value that was filled in."""
        return [f"{count:,} {what}" for what, count in self.filled_in.items()]


def read_instances(path: Path) -> Instances:
    """Read and clean an instances file in UTF-8 or UTF-16, with or without a byte-order mark.

    Raises:
        DataError: the file does not exist or is not JSON.
    """
    try:
        return clean_instances(
            parse_unlimited(read_bytes(path, "annotation file", MAX_BYTES_OF_DATA))
        )
    except ValueError as error:
        raise DataError(f"annotation file {path} cannot be read as JSON: {error}") from error


def clean_instances(content: Any) -> Instances:
    """Return the used fields of an instances file, in their proper types where a value has one meaning."""
    if not isinstance(content, dict):
        return Instances(content, {})
    filled_in: Counter[str] = Counter()
    cleaned = {
        section: [_clean(entry, keys) for entry in entries]
        if isinstance(entries, list)
        else entries
        for section, keys in USED.items()
        if (entries := content.get(section)) is not None
    }
    images, annotations = cleaned.get("images"), cleaned.get("annotations")
    sizes = {}
    for image in images if isinstance(images, list) else ():
        if isinstance(image, dict) and isinstance(image.get("id"), int):
            sizes[image["id"]] = (image.get("height"), image.get("width"))
    annotations = annotations if isinstance(annotations, list) else []
    entries = [a for a in annotations if isinstance(a, dict)]
    for annotation in entries:
        _fill_in(annotation, sizes, filled_in)
    if entries and all(annotation.get("id") is None for annotation in entries):
        for number, annotation in enumerate(entries, 1):
            annotation["id"] = number
        filled_in[NO_ID] = len(entries)
    return Instances(cleaned, filled_in)


def _clean(entry: Any, keys: tuple[str, ...]) -> Any:
    """Return the used fields of an entry, whole numbers as int and names as text."""
    if not isinstance(entry, dict):
        return entry
    cleaned = {key: entry[key] for key in keys if key in entry}
    for key in WHOLE:
        if key in cleaned and type(cleaned[key]) is not int:
            cleaned[key] = _whole(cleaned[key])
    name = cleaned.get("name")
    if isinstance(name, int | float) and not isinstance(name, bool):
        cleaned["name"] = str(name)
    return cleaned


def _fill_in(
    annotation: dict[str, Any], sizes: Mapping[Any, tuple[Any, Any]], filled_in: Counter[str]
) -> None:
    """Convert the values of an annotation in place, and fill in those that follow from others.

    Args:
        sizes: (height, width) of the images by id.
        filled_in: counts what was filled in.
    """
    mask = _clean_mask(annotation.pop("segmentation", None))
    box = annotation.get("bbox")
    if isinstance(box, list) and any(isinstance(v, str) for v in box):
        annotation["bbox"] = box = [_number(v) for v in box]
        filled_in[AS_TEXT] += 1
    if isinstance(mask, list) and any(
        isinstance(p, list) and p and isinstance(p[0], str) for p in mask
    ):
        mask = [[_number(v) for v in p] if isinstance(p, list) else p for p in mask]
        filled_in[AS_TEXT] += 1
    if mask:
        annotation["segmentation"] = mask
    if not annotation.get("ignore"):
        annotation.pop("ignore", None)

    crowd = annotation.get("iscrowd")
    if crowd is None:
        filled_in[NO_CROWD] += 1
        annotation["iscrowd"] = 0
    elif type(crowd) is not int:
        annotation["iscrowd"] = int(crowd) if isinstance(crowd, bool) else _whole(crowd)

    area = annotation["area"] = _number(annotation.get("area"))
    missing_area = area is None or (_is_number(area) and not (is_finite(area) and area > 0))
    if box and not missing_area:
        return
    image = annotation.get("image_id")
    size = sizes.get(image, (None, None)) if isinstance(image, int) else (None, None)
    encoded = _encode(mask, *size)
    if not box and encoded is not None:
        from pycocotools.mask import toBbox

        annotation["bbox"] = box = toBbox(encoded).tolist()
        filled_in[NO_BOX] += 1
    if missing_area:
        computed = _area(encoded, box)
        if computed > 0 or not _is_number(area):
            annotation["area"] = computed
            filled_in[NO_AREA] += 1


def _clean_mask(mask: Any) -> Any:
    """Return a segmentation without empty outlines; None where nothing is left."""
    if isinstance(mask, list):
        mask = [part for part in mask if part not in ([], None)]
    return mask or None


def _encode(mask: Any, height: Any, width: Any) -> Any:
    """Return the run lengths of a segmentation; None where it has none or is damaged."""
    from pycocotools.mask import frPyObjects, merge

    if not mask or type(height) is not int or type(width) is not int or min(height, width) < 1:
        return None
    try:
        if not fits(mask, height, width):
            return None
        if isinstance(mask, dict):
            text = isinstance(mask["counts"], str)
            return mask if text else frPyObjects(mask, height, width)
        return merge(frPyObjects([list(map(float, part)) for part in mask], height, width))
    except Exception:  # pycocotools raises nearly every type; the fault is reported by the checks
        return None


def fits(mask: Any, height: int, width: int) -> bool:
    """Return whether pycocotools and hotcoco can rasterise a segmentation of an image of this size.

    They take run lengths on trust, and allocate memory by the length of an outline.
    """
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        return False
    if isinstance(mask, dict):
        counts = mask.get("counts")
        if mask.get("size") != [height, width] or not isinstance(counts, str | list):
            return False
        return sum_run_lengths(counts) == height * width
    return isinstance(mask, list) and all(
        isinstance(part, list)
        and len(part) >= 6  # four numbers are a box to pycocotools
        # `max` and `min` pass over NaN, so each number is compared.
        and all(type(v) in (int, float) and abs(v) <= 10 * MAX_SIDE for v in part)
        and max(part) - min(part) <= MAX_OUTLINE / len(part)
        for part in mask
    )


def _area(encoded: Any, box: Any) -> float:
    if encoded is not None:
        from pycocotools.mask import area

        return float(area(encoded))
    if isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)):
        product = max(box[2], 0) * max(box[3], 0)
        return float(product) if is_finite(product) else 0.0
    return 0.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: float) -> bool:
    """Return whether a number is finite as a float: JSON has whole numbers that are too large for one."""
    return abs(value) <= sys.float_info.max


def _whole(value: Any) -> Any:
    """Return a number, or text of digits, as int if it is whole; any other value as it is."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) <= MAX_DIGITS and DIGITS.fullmatch(value):
        return int(value)
    return value


def _number(value: Any) -> Any:
    """Return text of a number as float; any other value as it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
