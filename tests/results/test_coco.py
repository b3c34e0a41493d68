"""Tests of COCO's metrics: they equal those of pycocotools, including its edge cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.coco_scene import scene
from support.referee import referee

from simmim_bench.errors import DataError
from simmim_bench.results.coco import STATS, evaluate_coco


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
