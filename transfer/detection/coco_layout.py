"""COCO's layout on disk, checked before anything is trained.

In: DATA with `annotations/instances_{train,val}2017.json` and the images in `{train,val}2017/`.
Out: a `CocoSplit`. Category ids may have gaps: inside they are 0, 1, ... in the order of the ids, results
carry the ids of the file. What cannot be used is named with its count, and refused, or left out where the
recipe says so.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from simmim_bench.errors import DataError
from simmim_bench.files import read_json, sha256_file
from simmim_bench.results.coco import check_annotations

BadAnnotations = Literal["refuse", "skip"]
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


@dataclass(frozen=True, kw_only=True)
class CocoSplit:
    """One split whose annotations have been checked.

    Attributes:
        annotations: the JSON file.
        images: the folder that the `file_name`s are in.
        category_ids: as in the file, sorted; a class is an index into them.
        class_names: in the same order.
        has_masks: whether the objects that can be learnt from have a segmentation.
        without_mask: ids of all annotations, crowds included, that have none.
        count: images in the file.
        skipped: ids of the annotations that are not trained on, by what is wrong with them.
    """

    annotations: Path
    images: Path
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    has_masks: bool
    without_mask: tuple[int, ...]
    count: int
    skipped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def dataset_dicts(self) -> list[dict[str, Any]]:
        """Read the split in Detectron2's own form, with classes for category ids, without what is skipped."""
        from detectron2.data.datasets import load_coco_json

        # Without a dataset name Detectron2 leaves its global catalogs, and the category ids, alone.
        dicts: list[dict[str, Any]] = load_coco_json(
            str(self.annotations), str(self.images), extra_annotation_keys=["id"]
        )
        class_of = {category_id: i for i, category_id in enumerate(self.category_ids)}
        skipped = {number for numbers in self.skipped.values() for number in numbers}
        for image in dicts:
            image["annotations"] = [a for a in image["annotations"] if a.pop("id") not in skipped]
            for annotation in image["annotations"]:
                annotation["category_id"] = class_of[annotation["category_id"]]
        return dicts


def read_splits(data: Path, bad_annotations: BadAnnotations) -> tuple[CocoSplit, CocoSplit]:
    """Check both splits and give (train, val).

    Args:
        bad_annotations: refuse objects that cannot be learnt from (`find_bad`), or leave them out of the
            training. In the val split they are scored as pycocotools does, which only a polygon that it
            would take for a box prevents.

    Raises:
        DataError: a file or folder is missing, the JSON is broken, names what it does not have, or has
            nothing to train on or to score; or the splits have different categories.
    """
    train, val = (read_split(data, split, bad_annotations) for split in ("train", "val"))
    _refuse(category_faults(data, train.category_ids, val.category_ids))
    if train.has_masks and val.without_mask:
        raise DataError(
            f"{val.annotations}: annotation {val.without_mask[0]} has no mask, as {len(val.without_mask)} have "
            "none, crowds included, while the training objects have: no mask AP can be computed. Add them, or "
            "take 'segmentation' out of both files to score boxes alone."
        )
    return train, val


def read_split(
    data: Path, split: Literal["train", "val"], bad_annotations: BadAnnotations
) -> CocoSplit:
    """Check one split; see `read_splits`."""
    path, images = split_paths(data, split)
    content = read_json(path, "annotation file")
    _refuse(entry_faults(path, content))
    _refuse(reference_faults(path, content))
    _refuse(image_faults(path, content, images))
    bad = find_bad(content)
    _refuse_bad(path, bad if bad_annotations == "refuse" else {})
    if split == "val":
        _refuse_bad(path, {kind: bad[kind] for kind in MISREAD if kind in bad})
        check_annotations(path)
    unusable = {number for numbers in bad.values() for number in numbers}
    objects = [a for a in content["annotations"] if not a["iscrowd"] and a["id"] not in unusable]
    if not objects:
        raise DataError(
            f"{path} has no usable annotation: none but crowds or bad ones; annotate some objects."
        )
    categories = sorted(content["categories"], key=lambda c: c["id"])
    return CocoSplit(
        annotations=path,
        images=images,
        category_ids=tuple(c["id"] for c in categories),
        class_names=tuple(c["name"] for c in categories),
        has_masks=bool(objects[0].get("segmentation")),
        without_mask=tuple(a["id"] for a in content["annotations"] if not a.get("segmentation")),
        count=len(content["images"]),
        skipped={kind: tuple(numbers) for kind, numbers in bad.items()} if split == "train" else {},
    )


def split_paths(data: Path, split: str) -> tuple[Path, Path]:
    """Give the annotation file and the folder of images of a split, "train" or "val".

    Raises:
        DataError: the data folder is missing.
    """
    if not data.is_dir():
        raise DataError(f"data folder {data} is not there; --data takes a folder in COCO's layout.")
    return data / "annotations" / f"instances_{split}2017.json", data / f"{split}2017"


POLYGON = "a polygon that is not three corners or more, [[x1, y1, x2, y2, x3, y3, ...], ...]"
RUN_LENGTHS = "run lengths without size and counts"
NO_MASK = "no mask, while others have one"
NO_AREA = "a box without area"
OUTSIDE = "a box outside of its image"
MISREAD = (POLYGON, RUN_LENGTHS)  # pycocotools takes four numbers for a box, and fails on others


def find_bad(content: Mapping[str, Any]) -> dict[str, list[int]]:
    """Find objects that cannot be learnt from, by what is wrong with them: the ids of their annotations.

    COCO's own training set has two boxes without area.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    masks = any(a.get("segmentation") for a in objects)
    bad: dict[str, list[int]] = {}
    for annotation in content["annotations"]:
        for kind in _faults(annotation, *sizes[annotation["image_id"]]):
            bad.setdefault(kind, []).append(annotation["id"])
        if masks and not annotation["iscrowd"] and not annotation.get("segmentation"):
            bad.setdefault(NO_MASK, []).append(annotation["id"])
    return bad


def _faults(annotation: Mapping[str, Any], width: int, height: int) -> Iterator[str]:
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


def _refuse(faults: Iterable[str]) -> None:
    """Raise the first of some faults, if there is one."""
    for fault in faults:
        raise DataError(fault)


def _refuse_bad(path: Path, bad: Mapping[str, list[int]]) -> None:
    if not bad:
        return
    counted = [
        f"{len(numbers)} with {kind} (the first is annotation {numbers[0]})"
        for kind, numbers in bad.items()
    ]
    raise DataError(
        f"{path} has annotations that cannot be used: {'; '.join(counted)}. Correct them"
        + (", or train without them by -o bad_annotations=skip." if "train" in path.name else ".")
    )


def entry_faults(path: Path, content: Any) -> Iterator[str]:
    """Find where a file lacks a list or a key, or has an id twice."""
    for part, keys in REQUIRED.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not entries:
            yield f"{path} has no list of {part}; it is not a COCO instances file."
            continue
        for index, entry in enumerate(entries):
            where = f"{path}: entry {index} of {part}"
            if not isinstance(entry, dict):
                yield f"{where} is {json.dumps(entry)}; it must be an object."
                continue
            for key, kind in keys.items():
                if key not in entry:
                    yield f"{where} lacks '{key}', which pycocotools needs; add it."
                elif isinstance(entry[key], bool) or not isinstance(entry[key], kind):
                    wanted = "a number" if kind is NUMBER else f"of type {kind.__name__}"
                    yield f"{where} has {key} {json.dumps(entry[key])}, which is not {wanted}; correct it."
            if entry.get("ignore"):
                yield (
                    f"{where} has 'ignore', which COCO does not know; take it out, or mark a crowd by iscrowd 1."
                )
        ids = [n for e in entries if isinstance(e, dict) and isinstance(n := e.get("id"), int)]
        twice = [(n, times) for n, times in Counter(ids).items() if times > 1]
        if twice:
            number, times = twice[0]
            yield (
                f"{path}: id {number} is {times} times in {part}, as {len(twice)} ids are more than once; "
                "make ids unique."
            )
        if part == "categories":
            called = [
                n for e in entries if isinstance(e, dict) and isinstance(n := e.get("name"), str)
            ]
            for name, times in Counter(called).items():
                if times > 1:
                    yield f"{path}: {times} categories are called '{name}'; give each its own name."


def category_faults(data: Path, train: Sequence[int], val: Sequence[int]) -> Iterator[str]:
    """Find whether the splits have different category ids."""
    odd = sorted(set(train) ^ set(val))
    if odd:
        names = [split_paths(data, split)[0].name for split in ("train", "val")]
        yield (
            f"{' and '.join(names)} in {data / 'annotations'} have different categories: id {odd[0]} is in one "
            "of them only; give both the same list."
        )


def reference_faults(path: Path, content: dict[str, Any]) -> Iterator[str]:
    """Find annotations of images or categories that are not in the file, or without a box."""
    annotations = content["annotations"]
    for key, part in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in content[part]}
        strange = [a for a in annotations if a[key] not in known]
        if strange:
            yield (
                f"{path}: annotation {strange[0]['id']} has {key} {strange[0][key]}, which is not in {part}, "
                f"as {len(strange)} annotations have; correct them, or add the entry."
            )
    boxless = [a for a in annotations if not is_box(a["bbox"])]
    if boxless:
        yield (
            f"{path}: annotation {boxless[0]['id']} has bbox {boxless[0]['bbox']}, one of {len(boxless)} that "
            "are no box; give [x, y, width, height]."
        )


def is_box(box: Any) -> bool:
    """Say whether a value is four finite numbers."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, int | float) and math.isfinite(v) for v in box)
    )


def image_faults(path: Path, content: dict[str, Any], images: Path) -> Iterator[str]:
    """Find whether a file names images that are not on disk."""
    if not images.is_dir():
        yield f"image folder {images} is not there; {path} names the images in it."
        return
    missing = missing_images(content, images)
    if missing:
        yield (
            f"image {images / missing[0]} is not there, as {len(missing)} of {len(content['images'])} that {path} "
            "names; add them or remove their entries."
        )


def missing_images(content: dict[str, Any], images: Path) -> list[str]:
    """Give the names of the images that are not on disk."""
    present = set(os.listdir(images))  # one listing: a look at each of 118,000 is slow on a network
    names = [image["file_name"] for image in content["images"]]
    return [n for n in names if n not in present and not (images / n).is_file()]


def data_identity(data: Path, train: CocoSplit, val: CocoSplit) -> dict[str, str]:
    """Say for the record which data was learnt from and which was scored."""
    return {
        "root": str(data),
        "annotations": str(val.annotations),
        "fingerprint": sha256_file(val.annotations),
        "train_fingerprint": sha256_file(train.annotations),
    }
