"""Test the average precision of weighted images: it equals the evaluators' on the images that the weights describe."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.coco_scene import scene
from support.referee import referee

from simmim_bench.errors import DataError
from simmim_bench.results.coco import evaluate_coco
from simmim_bench.results.coco_matches import read_matches
from simmim_bench.results.per_image import join_runs, read_image_scores
from simmim_bench.uncertainty.jackknife import group_weights
from simmim_bench.uncertainty.weighted_scores import precisions_of

IMAGES = 12


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def without_ties_in_an_image(results: Path) -> None:
    """Keep equal scores only between images: of an image's copies, no two detections compete for a rank."""
    seen: Counter[tuple[int, float]] = Counter()
    found = read(results)
    for entry in found:
        key = (entry["image_id"], entry["score"])
        seen[key] += 1
        entry["score"] += 1e-4 * (seen[key] - 1)
    results.write_text(json.dumps(found))


def weighted(
    annotations: Path, results: Path, weights: np.ndarray, folder: Path
) -> tuple[Path, Path]:
    """Write the data set that has each image as often as its weight, with new ids."""
    truth, found = read(annotations), read(results)
    by_image = {
        image["id"]: [100 * image["id"] + copy for copy in range(weight)]
        for image, weight in zip(truth["images"], weights.tolist(), strict=True)
    }
    changed = {
        "categories": truth["categories"],
        "images": [{**i, "id": new} for i in truth["images"] for new in by_image[i["id"]]],
        "annotations": [
            {**a, "image_id": new} for a in truth["annotations"] for new in by_image[a["image_id"]]
        ],
    }
    for number, annotation in enumerate(changed["annotations"], 1):
        annotation["id"] = number
    copies = [{**d, "image_id": new} for d in found for new in by_image[d["image_id"]]]
    files = folder / "weighted.json", folder / "weighted_results.json"
    for file, content in zip(files, (changed, copies), strict=True):
        file.write_text(json.dumps(content))
    return files


@pytest.mark.parametrize(("kind", "prefix"), [("bbox", "box"), ("segm", "mask")])
def test_weighted_precision_is_that_of_pycocotools_on_as_many_copies_of_the_images(
    tmp_path: Path, kind: str, prefix: str
) -> None:
    annotations, results = scene(tmp_path)
    without_ties_in_an_image(results)
    resamples = np.random.default_rng(1).multinomial(IMAGES, [1 / IMAGES] * IMAGES, 3)
    weights = np.concatenate([resamples, group_weights(IMAGES)[[1, IMAGES]]])
    metrics = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    ours = {}
    for name in metrics:
        matches = read_matches(annotations, results, f"{prefix}_{name}")
        assert matches is not None
        ours[name] = precisions_of(matches.classes, weights)
    for row, own in enumerate(weights):
        stats = referee(*weighted(annotations, results, own, tmp_path), kind).stats
        for name, wanted in zip(metrics, stats[:6], strict=True):
            assert ours[name][row] == pytest.approx(
                wanted if wanted >= 0 else np.nan, abs=1e-12, nan_ok=True
            )


def test_precision_of_all_images_is_the_evaluators(tmp_path: Path) -> None:
    annotations, results = scene(tmp_path)  # with equal scores within and between images
    figures = evaluate_coco(annotations, results).figures
    precisions = [name for name in figures if "_ap" in name]
    assert len(precisions) >= 10
    for name in precisions:
        found = read_image_scores("coco", results, annotations, name)
        assert found is not None
        assert found.score == pytest.approx(figures[name], abs=1e-9)
        assert found.images == IMAGES
    assert read_image_scores("coco", results, annotations, "box_ar_100") is None
    assert read_image_scores("coco", results, annotations, "mask_ap", masks=False) is None


def test_an_ap_of_zero_varies_with_no_image_and_one_without_objects_is_refused(
    tmp_path: Path,
) -> None:
    annotations, results = scene(tmp_path)
    results.write_text("[]")
    for metric in ("box_ap", "mask_ap"):
        found = read_image_scores("coco", results, annotations, metric)
        assert found is not None
        assert found.score == 0
        assert found.left_out is not None
        assert not found.left_out.any()
        assert not join_runs([found, found]).covariance.any()
    annotations.write_text(json.dumps({**read(annotations), "annotations": []}))
    with pytest.raises(DataError, match="has no annotations"):
        read_image_scores("coco", results, annotations, "box_ap")


def test_objects_of_one_image_alone_have_a_score_without_variance(tmp_path: Path) -> None:
    annotations, results = scene(tmp_path)
    truth = read(annotations)
    of_one = [a for a in truth["annotations"] if a["image_id"] == 3]
    annotations.write_text(json.dumps({**truth, "annotations": of_one}))
    found = read_image_scores("coco", results, annotations, "box_ap")
    assert found is not None
    assert found.left_out is not None
    assert np.flatnonzero(np.isnan(found.left_out)).size == 1
    assert np.isfinite(join_runs([found, found]).covariance).all()


def test_runs_scored_against_other_annotations_are_not_joined(tmp_path: Path) -> None:
    annotations, results = scene(tmp_path)
    first = read_image_scores("coco", results, annotations, "box_ap")
    truth = read(annotations)
    truth["annotations"].pop()
    annotations.write_text(json.dumps(truth))
    second = read_image_scores("coco", results, annotations, "box_ap")
    assert first is not None
    assert second is not None
    with pytest.raises(DataError, match="different images"):
        join_runs([first, second])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', "is not a list of detections"),
        ('[{"image_id": 99, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 1}]', "image_id 99"),
        ('[{"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1], "score": NaN}]', "not a number"),
        ('[{"score": 1}]', "cannot be evaluated"),
        ("[{", "cannot be evaluated"),
    ],
)
def test_damaged_results_are_refused_as_by_the_evaluation(
    tmp_path: Path, content: str, message: str
) -> None:
    annotations, results = scene(tmp_path)
    results.write_text(content)
    with pytest.raises(DataError, match=message):
        read_image_scores("coco", results, annotations, "box_ap")
    with pytest.raises(DataError, match=r"annotations .* do not exist"):
        read_image_scores("coco", results, tmp_path / "missing.json", "box_ap")
