"""COCO scores computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def referee(annotations: Path, results: Path, kind: str) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        found = json.loads(results.read_text())
        if kind == "segm":  # its loader would score the boxes' areas
            found = [{k: v for k, v in d.items() if k != "bbox"} for d in found]
        evaluation = COCOeval(truth, truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
