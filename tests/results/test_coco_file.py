"""Claims about annotation files as exporters write them: what has one meaning does not change the scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as masks
from support.coco_scene import scene

from simmim_bench.results.coco import evaluate_coco
from simmim_bench.results.coco_file import NO_AREA, NO_BOX, NO_CROWD, clean_instances

Edit = Callable[[dict[str, Any]], object]


def every(section: str, **values: Any) -> Edit:
    return lambda content: [entry.update(values) for entry in content[section]]


def each(section: str, key: str, convert: Callable[[Any], Any]) -> Edit:
    return lambda content: [entry.update({key: convert(entry[key])}) for entry in content[section]]


def in_all_ids(convert: Callable[[int], Any]) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        for section, keys in (
            ("images", ["id"]),
            ("categories", ["id"]),
            ("annotations", ["id", "image_id", "category_id"]),
        ):
            for entry in content[section]:
                entry.update({key: convert(entry[key]) for key in keys})

    return edit


def renumber(content: dict[str, Any]) -> None:
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number


def add_empty_outlines(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        if isinstance(annotation["segmentation"], list):
            annotation["segmentation"].append([])


HARMLESS: dict[str, Edit] = {
    "year empty": lambda c: c.update(info={"year": ""}),
    "year text": lambda c: c.update(info={"year": "2024"}),
    "version": lambda c: c.update(info={"version": 1.0}),
    "info list": lambda c: c.update(info=[]),
    "licenses": lambda c: c.update(licenses=[{"id": "1", "name": None}]),
    "licenses text": lambda c: c.update(licenses="MIT"),
    "date_captured": every("images", date_captured=0),
    "license": every("images", license="1"),
    "url": every("images", flickr_url=3),
    "not finite": every("images", gps=float("nan")),
    "supercategory": every("categories", supercategory=3),
    "keypoints": every("annotations", keypoints=None, num_keypoints="x"),
    "score": every("annotations", score="high", ignore=0),
    "area text": each("annotations", "area", str),
    "box text": each("annotations", "bbox", lambda box: [str(v) for v in box]),
    "crowd flag": each("annotations", "iscrowd", bool),
    "crowd text": each("annotations", "iscrowd", str),
    "crowd null": each("annotations", "iscrowd", lambda crowd: crowd or None),
    "size text": each("images", "width", str),
    "ids text": in_all_ids(str),
    "ids float": in_all_ids(float),
    "no ids": lambda c: [a.pop("id") for a in c["annotations"]],
    "id 0": renumber,
    "ids twice": every("annotations", id=1),
    "empty outline": add_empty_outlines,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return scene(tmp_path_factory.mktemp("scene"))


@pytest.mark.parametrize("name", HARMLESS)
def test_fields_that_nobody_uses_and_their_types_do_not_change_the_scores(
    name: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    content = json.loads(files[0].read_text())
    HARMLESS[name](content)
    edited = tmp_path / "annotations.json"
    edited.write_text(json.dumps(content))
    assert evaluate_coco(edited, files[1]) == evaluate_coco(*files)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_the_encoding_does_not_change_the_scores(
    encoding: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    edited = tmp_path / "annotations.json"
    edited.write_bytes(files[0].read_text().encode(encoding))
    assert evaluate_coco(edited, files[1]) == evaluate_coco(*files)


@pytest.mark.parametrize("library", ["hotcoco", "pycocotools"])
def test_the_truth_scores_100_even_if_annotations_are_numbered_from_0(
    library: Any, files: tuple[Path, Path], tmp_path: Path
) -> None:
    content = json.loads(files[0].read_text())
    renumber(content)
    annotations, results = tmp_path / "annotations.json", tmp_path / "results.json"
    annotations.write_text(json.dumps(content))
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    kept = ("image_id", "category_id", "bbox")
    results.write_text(json.dumps([{**{k: a[k] for k in kept}, "score": 1} for a in objects]))
    assert evaluate_coco(annotations, results, library).figures["box_ap"] == pytest.approx(100)


def test_missing_areas_and_boxes_are_those_of_the_masks() -> None:
    outline = [[10.0, 10, 40, 12, 30, 45], [50, 50, 60, 50, 60, 58, 50, 58]]
    encoded = masks.merge(masks.frPyObjects(outline, 64, 80))
    runs = {"size": [64, 80], "counts": encoded["counts"].decode()}
    shared = {"image_id": 1, "category_id": 1}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 64, "width": 80}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 1, **shared, "segmentation": outline},
            {"id": 2, **shared, "segmentation": runs, "area": None, "bbox": []},
            {"id": 3, **shared, "bbox": [1, 2, 5, 4], "area": float("nan"), "iscrowd": 0},
            {"id": 4, **shared, "bbox": [1, 2, 5, 4], "area": "7.5", "iscrowd": 0},
        ],
    }
    read = clean_instances(content)
    outlined, run_lengths, boxed, known = read.content["annotations"]
    rows, columns = np.nonzero(masks.decode(encoded))
    tight = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    for annotation in (outlined, run_lengths):
        assert annotation["area"] == len(rows)
        assert annotation["bbox"] == tight
        assert annotation["iscrowd"] == 0
    assert (boxed["area"], known["area"]) == (20, 7.5)
    assert read.filled_in == {NO_CROWD: 2, NO_BOX: 2, NO_AREA: 3}


def test_the_content_of_a_clean_file_is_kept(files: tuple[Path, Path]) -> None:
    content = json.loads(files[0].read_text())
    read = clean_instances(content)
    assert read.content == content
    assert not read.filled_in


@pytest.mark.parametrize(
    "value",
    [[], {}, {"counts": "abc", "size": [10, None]}, [[1]], "x", 10**400, float("nan"), None],
)
@pytest.mark.parametrize("key", ["image_id", "area", "bbox", "segmentation", "iscrowd"])
def test_values_of_other_types_are_kept_for_the_checks(key: str, value: Any) -> None:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 6, 1, 6, 6]]}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 64, "width": 80}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{**annotation, key: value}],
    }
    assert len(clean_instances(content).content["annotations"]) == 1
