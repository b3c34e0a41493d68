"""COCO files of other people: what a library would take on trust is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simmim_bench.errors import DataError
from simmim_bench.results.coco import evaluate_coco

RUNS = {"size": [4, 4], "counts": [0, 16]}
TRUTH: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "1.png", "height": 4, "width": 4}],
    "categories": [{"id": 1, "name": "a"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
        | {"segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
    ],
}
FOUND = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "score": 0.5}
FOUND |= {"segmentation": {"size": [4, 4], "counts": "0`0"}}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("images"),
        lambda t: t.update(annotations=[5]),
        lambda t: t["images"][0].update(height=10**9),
        lambda t: t["images"][0].update(height="four"),
        lambda t: t["images"][0].pop("id"),
        lambda t: t["annotations"][0].update(image_id=10**400),
        lambda t: t["annotations"][0].update(image_id=[[]]),
        lambda t: t["annotations"][0].update(bbox=[0, 0, 10**400, 4]),
        lambda t: t["annotations"][0].update(segmentation=[[0, 0, 1e18, 0, 4, 4]]),
        lambda t: t["annotations"][0].update(segmentation=[[0, 1e5] * 1000]),
        lambda t: t["annotations"][0].update(
            area=0, segmentation=[[0, 0, 4, 0, 4, 4, 0, float("nan")]]
        ),
        lambda t: t["annotations"][0].update(segmentation={"size": [4, 4], "counts": [1]}),
        lambda t: t["annotations"][0].update(segmentation={"size": [4, 4], "counts": "o"}),
        lambda t: t["annotations"][0].update(segmentation={"size": [10**9, 10**9]}),
        lambda t: t["annotations"][0].update(segmentation=[[[[[]]]]]),
        lambda t: t.update(categories=[{"id": i, "name": "a"} for i in range(20_001)]),
    ],
)
def test_annotations_that_a_library_would_trust_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    truth = json.loads(json.dumps(TRUTH))
    change(truth)
    with pytest.raises(DataError, match=r"t\.json") as raised:
        evaluate_coco(write(tmp_path / "t.json", truth), write(tmp_path / "r.json", [FOUND]))
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "found",
    [
        "[" * 100_000,
        [5],
        [FOUND | {"image_id": 10**30}],
        [FOUND | {"image_id": "x"}],
        [FOUND | {"bbox": [1]}],
        [FOUND | {"score": None}],
        [FOUND | {"score": float("nan")}],
        [FOUND | {"bbox": [0, 0, 4, float("inf")]}],
        [FOUND | {"bbox": [float("nan"), 0, 4, 4]}],
        [FOUND | {"segmentation": {"size": [10**9, 10**9], "counts": "0`0"}}],
        [FOUND | {"segmentation": [[0, 0, 1e18, 0, 4, 4]]}],
        json.dumps([FOUND]).replace('"size"', '"s\\u0069ze"'),
        '[{"image_id": NaN}]',
    ],
)
def test_results_that_a_library_would_trust_are_refused(tmp_path: Path, found: Any) -> None:
    with pytest.raises(DataError, match=r"r\.json"):
        evaluate_coco(write(tmp_path / "t.json", TRUTH), write(tmp_path / "r.json", found))


def test_valid_files_are_scored(tmp_path: Path) -> None:
    scores = evaluate_coco(write(tmp_path / "t.json", TRUTH), write(tmp_path / "r.json", [FOUND]))
    assert scores.figures["box_ap"] == pytest.approx(100)
    assert scores.figures["mask_ap"] == pytest.approx(100)
