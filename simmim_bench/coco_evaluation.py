"""COCO's average precision and recall, from an annotation file and a results file.

In: instances in COCO's JSON, and detections in COCO's results JSON. Out: the twelve figures of boxes and of
masks, and the AP of every class, in percent, [0, 100]. hotcoco computes them, in Rust, with the numbers of
pycocotools, which is the referee: tests and `benchmarks/coco_evaluation.py` compare the two.
"""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simmim_bench.errors import DataError

# pycocotools' order of its twelve figures.
STATS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)
KINDS = {"bbox": "box", "segm": "mask"}
Engine = Literal["hotcoco", "pycocotools"]


@dataclass(frozen=True)
class CocoScores:
    """What an evaluation gives.

    Attributes:
        figures: `box_ap`, ... and `mask_ap`, ...; one that cannot be had (no object of that size) is left out.
        by_class: AP by the name of the class, by "box" and "mask"; classes without an object are left out.
    """

    figures: dict[str, float] = field(default_factory=dict)
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)


def evaluate_coco(annotations: Path, results: Path, engine: Engine = "hotcoco") -> CocoScores:
    """Evaluate boxes and, where annotations and results have them, masks.

    Raises:
        DataError: results that are no list of detections, or of images that the annotations do not have.
    """
    truth, evaluation_of = _open(annotations, engine)
    detections = json.loads(results.read_text(encoding="utf-8"))
    _check(detections, {image["id"] for image in truth.dataset["images"]}, results)
    names = {category["id"]: category["name"] for category in truth.dataset["categories"]}
    has_masks = any(a.get("segmentation") for a in truth.dataset["annotations"])
    scores = CocoScores()
    for kind, prefix in KINDS.items():
        if kind == "segm" and not (
            has_masks and (not detections or any("segmentation" in d for d in detections))
        ):
            continue
        if not detections:  # pycocotools cannot load an empty list; nothing found is AP 0
            scores.figures[f"{prefix}_ap"] = 0.0
            continue
        # loadRes prefers boxes for mask areas where both are there, which official evaluators avoid.
        found = [
            {k: v for k, v in d.items() if k != "bbox"} if kind == "segm" else d for d in detections
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = evaluation_of(truth, truth.loadRes(found), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        for name, value in zip(STATS, evaluation.stats, strict=True):
            if value >= 0:
                scores.figures[f"{prefix}_{name}"] = 100.0 * float(value)
        # (IoU thresholds, recalls, classes, areas, detections): all areas, most detections
        precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
        scores.by_class[prefix] = {
            names[category]: 100.0 * float(precision[:, :, k].mean())
            for k, category in enumerate(sorted(names))
            if precision[0, 0, k] >= 0
        }
    return scores


def _open(annotations: Path, engine: Engine) -> tuple[Any, Any]:
    """Read the annotations with an engine; give them and the engine's evaluation class."""
    with contextlib.redirect_stdout(io.StringIO()):
        if engine == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            return COCO(str(annotations)), COCOeval
        import hotcoco

        return hotcoco.COCO(str(annotations)), hotcoco.COCOeval


def _check(detections: Any, images: set[int], results: Path) -> None:
    if not isinstance(detections, list) or not all(isinstance(d, dict) for d in detections):
        raise DataError(f"{results} is no list of detections in COCO's form.")
    strange = [d.get("image_id") for d in detections if d.get("image_id") not in images]
    if strange:
        raise DataError(
            f"{results} has detections in image_id {strange[0]}, which is not annotated."
        )
