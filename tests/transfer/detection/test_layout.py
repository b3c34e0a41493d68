"""Tests of COCO's layout: bad annotations and missing files are refused before training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simmim_bench.errors import DataError
from transfer.detection.coco_layout import read_splits

pytest.importorskip("detectron2")
from support.detection import annotations_of, change


def _drop_objects(content: Any) -> None:
    content["annotations"] = [{**a, "iscrowd": 1} for a in content["annotations"]]


BAD_ANNOTATIONS: dict[str, tuple[Callable[[Any], object], str]] = {
    "image_id": (
        lambda c: c["annotations"][1].update(image_id=404),
        r"annotation 2 has image_id 404, which is not in images \(1 such annotations\)",
    ),
    "category": (
        lambda c: c["annotations"][1].update(category_id=4),
        "category_id 4, which is not in categories",
    ),
    "twice": (
        lambda c: c["annotations"].append(c["annotations"][0]),
        "id 1 occurs 2 times in annotations",
    ),
    "area": (lambda c: c["annotations"][0].update(area="big"), 'has area "big"'),
    "id": (
        lambda c: c["images"][0].update(id="a"),
        r'entry 0 of images has id "a", which is not a',
    ),
    "negative id": (lambda c: c["annotations"][0].update(id=-1), r"has id -1, which is not from 0"),
    "size": (
        lambda c: c["images"][0].update(width=None),
        "has width null, which is not a whole number",
    ),
    "crowd": (lambda c: c["annotations"][0].update(iscrowd="no"), 'has iscrowd "no"'),
    "crowds": (
        lambda c: c["annotations"][0].update(iscrowd=2),
        "has iscrowd 2, which is not from 0 to 1",
    ),
    "entry": (lambda c: c["images"].insert(0, 3), "entry 0 of images is 3; it must be an object"),
    "ignore": (lambda c: c["annotations"][0].update(ignore=1), "has 'ignore', which COCO does not"),
    "names": (
        lambda c: [category.update(name="all") for category in c["categories"]],
        "objects have [0-9]+ categories that are called 'all'",
    ),
    "flat": (
        lambda c: c["annotations"][0].update(segmentation=[1, 2, 3, 4, 5, 6]),
        "1 with a polygon that is not",
    ),
    "text": (
        lambda c: c["annotations"][0].update(segmentation="x"),
        "1 with a polygon that is not",
    ),
    "run lengths": (
        lambda c: c["annotations"][0].update(segmentation={"size": [64, 64]}),
        "1 with run lengths without size and counts",
    ),
    "no mask": (
        lambda c: c["annotations"][0].update(segmentation=None, iscrowd=0),
        "1 with no mask, while others have one",
    ),
    "bbox": (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"bbox \[1, 2, 3\]"),
    "box": (lambda c: c["annotations"][0].update(bbox=[1, 2, None, 3]), "annotation 1 has bbox"),
    "polygon": (
        lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]),
        r"1 with a polygon that is not three corners .*first is annotation 1\).*bad_annotations=skip",
    ),
    "no area": (
        lambda c: [a.update(bbox=[1, 2, 0, 4]) for a in c["annotations"][3:5]],
        r"2 with a box without area \(the first is annotation 4\)",
    ),
    "outside": (
        lambda c: c["annotations"][0].update(bbox=[64, 2, 5, 4]),
        "1 with a box outside of its image",
    ),
    "file": (lambda c: c["images"][0].update(file_name="gone.jpg"), "gone.jpg does not exist"),
    "objects": (_drop_objects, "annotations are crowds"),
    "list": (lambda c: c.pop("annotations"), "no list of annotations"),
    "classes": (
        lambda c: c["categories"].append({"id": 90, "name": "x"}),
        "different categories: id 90",
    ),
}


@pytest.mark.parametrize("case", BAD_ANNOTATIONS)
def test_bad_annotations_are_refused_before_training(case: str, own_coco: Path) -> None:
    edit, message = BAD_ANNOTATIONS[case]
    change(annotations_of(own_coco), edit)
    with pytest.raises(DataError, match=message):
        read_splits(own_coco, "refuse")


def test_bad_annotations_are_skipped_if_the_recipe_says_skip(own_coco: Path) -> None:
    def damage(content: Any) -> None:
        by_image: dict[int, Any] = {}
        for annotation in content["annotations"]:
            if not annotation["iscrowd"]:
                by_image.setdefault(annotation["image_id"], annotation)
        first, second, third, *_ = by_image.values()
        first.update(id=1001, segmentation=[[1, 2, 3, 4]])
        second.update(id=1002, bbox=[3, 4, 0, 5])
        third.update(id=1003, bbox=[-9, 0, 4, 4])

    before = [len(d["annotations"]) for d in read_splits(own_coco, "skip")[0].dataset_dicts()]
    change(annotations_of(own_coco), damage)
    train, _ = read_splits(own_coco, "skip")
    assert list(train.skipped.values()) == [(1001,), (1002,), (1003,)]
    after = [len(d["annotations"]) for d in train.dataset_dicts()]
    assert sum(before) - sum(after) == 3
    assert all("id" not in a for d in train.dataset_dicts() for a in d["annotations"])


def test_val_objects_without_masks_are_refused_if_training_objects_have_masks(
    own_coco: Path,
) -> None:
    change(annotations_of(own_coco, "val"), lambda c: c["annotations"][0].pop("segmentation"))
    with pytest.raises(DataError, match=r"instances_val2017.* with no mask, while others"):
        read_splits(own_coco, "refuse")
    with pytest.raises(DataError, match=r"annotation 1 has no mask \(1 annotations have none"):
        read_splits(own_coco, "skip")


def test_a_split_of_crowds_alone_is_refused_even_if_they_are_ignored(own_coco: Path) -> None:
    change(annotations_of(own_coco), _drop_objects)
    with pytest.raises(DataError, match="no usable annotation"):
        read_splits(own_coco, "refuse", "ignore")


def test_a_val_polygon_that_pycocotools_would_misread_is_refused_even_if_skipping(
    own_coco: Path,
) -> None:
    change(
        annotations_of(own_coco, "val"),
        lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]),
    )
    with pytest.raises(DataError, match=r"instances_val2017.*three corners .*Correct them\.$"):
        read_splits(own_coco, "skip")


@pytest.mark.parametrize(
    "gone", [".", "annotations/instances_val2017.json", "train2017"], ids=["data", "json", "images"]
)
def test_missing_paths_are_named(gone: str, own_coco: Path) -> None:
    path = own_coco / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=f"{path} does not exist"):
        read_splits(own_coco, "refuse")


def test_broken_json_is_refused(own_coco: Path) -> None:
    annotations_of(own_coco).write_text('{"images": [')
    with pytest.raises(DataError, match=r"instances_train2017.json cannot be read as JSON"):
        read_splits(own_coco, "refuse")
