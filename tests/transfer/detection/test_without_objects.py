"""COCO annotations without an object to score are refused in one line, in a run before training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.referee import referee

from simmim_bench.diagnostics.data_checks import Reading
from simmim_bench.display import Display
from simmim_bench.errors import DataError
from simmim_bench.results.coco import evaluate_coco
from transfer.detection.coco_layout import read_split, read_splits
from transfer.detection.doctor_checks import check_coco

Change = Callable[[list[dict[str, Any]]], object]
FOUND = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "score": 0.5}
MASK = [[0, 0, 4, 0, 4, 4, 0, 4]]
CASES: list[tuple[Change, str]] = [
    (list.clear, "has no annotations"),
    (lambda all_: [a.update(iscrowd=1) for a in all_], r"(\d+) of \1 annotations are crowds"),
    (
        lambda all_: [a.update(iscrowd=n % 2, area=2e10) for n, a in enumerate(all_)],
        r"are crowds, the others have an area above 1e\+10",
    ),
]


def annotation(number: int, **more: Any) -> dict[str, Any]:
    fixed = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
    return {"id": number, **fixed, "segmentation": MASK, **more}


def files(folder: Path, objects: list[dict[str, Any]], found: list[Any]) -> tuple[Path, Path]:
    image = {"id": 1, "file_name": "1.png", "height": 4, "width": 4}
    truth = {"images": [image], "categories": [{"id": 1, "name": "a"}], "annotations": objects}
    for name, content in (("truth.json", truth), ("found.json", found)):
        (folder / name).write_text(json.dumps(content))
    return folder / "truth.json", folder / "found.json"


@pytest.mark.parametrize("library", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("found", [[], [FOUND]], ids=["none found", "found"])
@pytest.mark.parametrize(("change", "message"), CASES)
def test_a_score_without_objects_is_refused(
    tmp_path: Path, found: list[Any], change: Change, message: str, library: Any
) -> None:
    objects = [annotation(1), annotation(2)]
    change(objects)
    truth, results = files(tmp_path, objects, found)
    if found:  # what the official evaluator computes of it: nothing
        assert referee(truth, results, "bbox").stats[0] == -1
    with pytest.raises(DataError, match=message) as error:
        evaluate_coco(truth, results, library)
    assert str(truth) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("library", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize(
    "found", [[], [{**FOUND, "segmentation": {"size": [4, 4], "counts": "0`0"}}]]
)
def test_masks_of_crowds_alone_have_no_mask_ap(
    tmp_path: Path, found: list[Any], library: Any
) -> None:
    objects = [annotation(1), annotation(2, iscrowd=1)]
    del objects[0]["segmentation"]
    figures = evaluate_coco(*files(tmp_path, objects, found), library).figures
    assert figures["box_ap"] == pytest.approx(100 if found else 0)
    assert not any(name.startswith("mask") for name in figures)


@pytest.mark.parametrize(("change", "message"), CASES)
def test_a_run_and_doctor_refuse_a_val_split_without_objects(
    pocket: Path, tmp_path: Path, change: Change, message: str
) -> None:
    shutil.copytree(pocket / "coco", tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    change(content["annotations"])
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as refused:
        read_splits(tmp_path / "coco", "skip", "ignore")
    with pytest.raises(DataError, match=message):
        read_split(tmp_path / "coco", "val", "skip", "ignore")
    findings = check_coco(tmp_path / "coco", Reading(display=Display(quiet=True)))
    said = [f.said for f in findings if f.state == "problem"]
    if "crowds" not in message:
        assert said == [str(refused.value)]
    else:
        assert any("crowds" in line for line in said)
