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


def with_runs(*runs: int, size: tuple[int, int] = (4, 4), compressed: bool = True) -> Any:
    """Return a detection whose mask has these run lengths, compressed as pycocotools' maskApi.c does it."""
    text = ""
    for k, run in enumerate(runs):
        rest, more = run - (runs[k - 2] if k > 2 else 0), True
        while more:
            group, rest = rest & 31, rest >> 5
            more = rest != (-1 if group & 16 else 0)
            text += chr(48 + group + 32 * more)
    counts = text if compressed else list(runs)
    return FOUND | {"segmentation": {"size": list(size), "counts": counts}}


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(
    ("runs", "size"),
    [
        # hotcoco scores it, as if the rest were empty; pycocotools never returns.
        ((0, 8), (4, 4)),
        ((0, 16, 4000), (4, 4)),
        ((0, 400), (4, 4)),
        ((0,), (4, 4)),
        ((0, 8, 4, 8, 4, -8), (4, 4)),
        ((0, 20), (4, 5)),  # an image of that size exists, but it is another
    ],
)
def test_masks_that_do_not_fill_their_image_are_refused(
    tmp_path: Path, runs: tuple[int, ...], size: tuple[int, int], compressed: bool
) -> None:
    truth = json.loads(json.dumps(TRUTH))
    truth["images"].append({"id": 2, "file_name": "2.png", "height": 4, "width": 5})
    results = [FOUND, with_runs(*runs, size=size, compressed=compressed)]
    with pytest.raises(DataError, match=r"r\.json.*( detection 1 |-8)"):
        evaluate_coco(write(tmp_path / "t.json", truth), write(tmp_path / "r.json", results))


@pytest.mark.parametrize(
    "arrange",
    [
        lambda found: found,
        lambda found: dict(reversed(found.items())),
        lambda found: found | {"segmentation": dict(reversed(found["segmentation"].items()))},
        lambda found: found | {"segmentation": found["segmentation"] | {"more": [1]}},
        lambda found: found | {"image_id": 1.0},
    ],
)
def test_masks_are_scored_in_any_arrangement(
    tmp_path: Path, arrange: Callable[[dict[str, Any]], object]
) -> None:
    """Half of the object: precision 1 at IoU 0.5 alone, one of ten thresholds."""
    runs = (0, 1, 3, 1, 3, 1, 3, 1, 3)  # one of four rows
    for wanted, masks in ((10.0, [with_runs(0, 8, 8)]), (0.0, [with_runs(*runs)])):
        results = write(tmp_path / "r.json", [arrange(mask) for mask in masks])
        scores = evaluate_coco(write(tmp_path / "t.json", TRUTH), results)
        assert scores.figures["mask_ap"] == pytest.approx(wanted)


def test_a_detection_without_a_mask_is_scored_beside_others(tmp_path: Path) -> None:
    box_alone = {key: value for key, value in FOUND.items() if key != "segmentation"}
    results = write(tmp_path / "r.json", [FOUND, box_alone | {"image_id": 1}])
    assert evaluate_coco(write(tmp_path / "t.json", TRUTH), results).figures["box_ap"] > 0


def test_valid_files_are_scored(tmp_path: Path) -> None:
    scores = evaluate_coco(write(tmp_path / "t.json", TRUTH), write(tmp_path / "r.json", [FOUND]))
    assert scores.figures["box_ap"] == pytest.approx(100)
    assert scores.figures["mask_ap"] == pytest.approx(100)
