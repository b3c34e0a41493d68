"""COCO scores computed by pycocotools, the reference for ours."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def referee(annotations: Path, results: Path, kind: str) -> COCOeval:
    """Evaluate a results file as pycocotools' own demo does.

    Args:
        kind: "bbox" or "segm".
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        found = json.loads(results.read_text())
        if kind == "segm":  # with boxes, its loader would take the boxes' areas
            found = [{k: v for k, v in d.items() if k != "bbox"} for d in found]
        evaluation = COCOeval(truth, truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
