"""Tests of detections, scores and records of COCO transfers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simmim_bench.results.record import Record

pytest.importorskip("detectron2")
from support.detection import RECIPE, annotations_of, read_quietly, run
from support.referee import referee


@pytest.mark.heavy
def test_recorded_ap_equals_that_of_pycocotools(finished: tuple[Path, Record], coco: Path) -> None:
    out, record = finished
    results = out / record.predictions["file"]
    val = annotations_of(coco, "val")
    assert json.loads(results.read_text())
    for kind, metric in (("bbox", "box_ap"), ("segm", "mask_ap")):
        expected = 100 * float(referee(val, results, kind).stats[0])
        assert record.metrics[metric] == pytest.approx(expected, abs=1e-6)
    by_class = json.loads((out / "ap_by_class.json").read_text())
    for kind in ("box", "mask"):
        mean = np.mean(list(by_class[kind].values()))
        assert record.metrics[f"{kind}_ap"] == pytest.approx(mean)
    assert (record.evaluated, record.expected) == (5, 5)
    assert json.loads((out / "record.json").read_text())["task"] == "coco"
    assert (out / "predictions.png").stat().st_size > 1000


@pytest.mark.heavy
def test_results_are_in_cocos_form(finished: tuple[Path, Record], coco: Path) -> None:
    out, record = finished
    truth = read_quietly(annotations_of(coco, "val"))
    for result in json.loads((out / record.predictions["file"]).read_text()):
        assert result["category_id"] in truth.cats
        image = truth.imgs[result["image_id"]]
        x, y, width, height = result["bbox"]
        assert min(x, y) >= 0
        assert x + width <= image["width"] + 1e-3
        assert y + height <= image["height"] + 1e-3
        assert result["segmentation"]["size"] == [image["height"], image["width"]]
        assert isinstance(result["segmentation"]["counts"], str)


@pytest.mark.heavy
def test_a_run_without_detections_scores_zero(coco: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, max_iters=1, score_threshold=1.0)
    assert run(tmp_path / "run", coco, recipe).metrics == {"box_ap": 0.0, "mask_ap": 0.0}
