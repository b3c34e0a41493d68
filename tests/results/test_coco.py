"""Tests of COCO's metrics: they equal those of pycocotools, including its edge cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as masks
from support.referee import referee

from simmim_bench.errors import DataError
from simmim_bench.results.coco import STATS, evaluate_coco

SIDE = 96


def scene(folder: Path, *, with_masks: bool = True, images: int = 12) -> tuple[Path, Path]:
    """Write annotations with crowds, an image without objects and a class without objects; and detections."""
    generator = np.random.default_rng(0)
    objects: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in range(1, images):  # the last image has no annotation, but detections
        for _ in range(6):
            x, y = generator.uniform(0, 50, 2)
            w, h = generator.uniform(3, 45, 2)
            crowd = bool(generator.random() < 0.1)
            category = int(generator.integers(1, 5)) * 3
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            rle = masks.merge(masks.frPyObjects([polygon], SIDE, SIDE))
            entry: dict[str, Any] = {
                "id": len(objects) + 1,
                "image_id": image,
                "category_id": category,
                "bbox": [x, y, w, h],
                "area": float(w * h),
                "iscrowd": int(crowd),
            }
            if with_masks:
                counts = rle["counts"].decode()
                entry["segmentation"] = (
                    {"size": [SIDE, SIDE], "counts": counts} if crowd else [polygon]
                )
            objects.append(entry)
    for entry in objects * 2:
        x, y, w, h = np.array(entry["bbox"]) + generator.normal(0, 1.5, 4)
        w, h = max(w, 1.0), max(h, 1.0)
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        rle = masks.merge(masks.frPyObjects([[max(0.0, v) for v in polygon]], SIDE, SIDE))
        detection: dict[str, Any] = {
            "image_id": entry["image_id"] if generator.random() < 0.95 else images,
            "category_id": entry["category_id"] if generator.random() < 0.9 else 3,
            "bbox": [float(v) for v in (x, y, w, h)],
            "score": round(float(generator.random()), 2),  # with ties
        }
        if with_masks:
            detection["segmentation"] = {"size": [SIDE, SIDE], "counts": rle["counts"].decode()}
        found.append(detection)
    truth = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": SIDE, "width": SIDE}
            for i in range(1, images + 1)
        ],
        "annotations": objects,
        "categories": [{"id": 3 * c, "name": f"class {c}"} for c in range(1, 6)],
    }
    annotations, results = folder / "annotations.json", folder / "results.json"
    annotations.write_text(json.dumps(truth))
    results.write_text(json.dumps(found))
    return annotations, results


def test_all_metrics_equal_those_of_pycocotools(tmp_path: Path) -> None:
    annotations, results = scene(tmp_path)
    scores = evaluate_coco(annotations, results)
    assert evaluate_coco(annotations, results, "pycocotools") == scores
    for kind, prefix in (("bbox", "box"), ("segm", "mask")):
        evaluation = referee(annotations, results, kind)
        for name, value in zip(STATS, evaluation.stats, strict=True):
            if value < 0:
                assert f"{prefix}_{name}" not in scores.figures
            else:
                assert scores.figures[f"{prefix}_{name}"] == pytest.approx(100 * value, abs=1e-6)
        assert 20 < scores.figures[f"{prefix}_ap"] < 99
        for k in range(4):  # class 5 has no object
            precision = evaluation.eval["precision"][:, :, k, 0, 2]
            wanted = 100 * precision[precision > -1].mean()
            assert scores.by_class[prefix][f"class {k + 1}"] == pytest.approx(wanted, abs=1e-6)
        assert len(scores.by_class[prefix]) == 4
        mean = np.mean(list(scores.by_class[prefix].values()))
        assert scores.figures[f"{prefix}_ap"] == pytest.approx(mean)


@pytest.mark.parametrize("library", ["hotcoco", "pycocotools"])
def test_boxes_alone_have_no_mask_metrics_and_no_detections_score_zero(
    tmp_path: Path, library: Any
) -> None:
    annotations, results = scene(tmp_path, with_masks=False)
    figures = evaluate_coco(annotations, results, library).figures
    assert figures["box_ap"] == pytest.approx(
        100 * referee(annotations, results, "bbox").stats[0], abs=1e-6
    )
    assert not any(name.startswith("mask") for name in figures)
    results.write_text("[]")
    assert evaluate_coco(annotations, results, library).figures == {"box_ap": 0.0}
    annotations, results = scene(tmp_path)
    results.write_text("[]")
    assert evaluate_coco(annotations, results, library).figures == {"box_ap": 0.0, "mask_ap": 0.0}


DETECTION = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 1}


@pytest.mark.parametrize("library", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"a": 1}, "is not a list of detections"),
        ([{**DETECTION, "image_id": 99}], "image_id 99"),
        ([{**DETECTION, "category_id": 4}], "category_id 4"),
        ([{"score": 1}], "cannot be evaluated: .*image_id"),
    ],
)
def test_files_that_are_not_results_are_refused(
    tmp_path: Path, found: Any, message: str, library: Any
) -> None:
    annotations, results = scene(tmp_path)
    results.write_text(json.dumps(found))
    with pytest.raises(DataError, match=message):
        evaluate_coco(annotations, results, library)


def test_indentation_and_order_of_keys_do_not_change_the_scores(tmp_path: Path) -> None:
    annotations, results = scene(tmp_path)
    scores = evaluate_coco(annotations, results)
    found = json.loads(results.read_text())
    results.write_text(json.dumps([dict(reversed(d.items())) for d in found], indent=2))
    assert evaluate_coco(annotations, results) == scores
    results.write_text(json.dumps([dict(sorted(d.items())) for d in found], separators=(",", ":")))
    assert evaluate_coco(annotations, results) == scores
