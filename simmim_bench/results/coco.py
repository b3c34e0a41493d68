"""COCO's average precision and recall, from an annotation file and a results file.

In: instances in COCO's JSON, and detections in COCO's results JSON. Out: the twelve figures of boxes and of
masks, and the AP of every class, in percent, [0, 100]. hotcoco computes them, in Rust, with the numbers of
pycocotools, which is the referee: tests and `benchmarks/coco_evaluation.py` compare the two.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
from collections.abc import Callable
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
Framework = Literal["hotcoco", "pycocotools"]
# On the text, as parsing it in Python takes ten times as long as the evaluation. Run lengths have no quotes.
LIST, EMPTY_LIST = re.compile(rb"\s*\["), re.compile(rb"\s*\[\s*\]\s*")
HAS_MASK = re.compile(rb'"segmentation"\s*:\s*[\[{]\s*[^\]}\s]')


@dataclass(frozen=True)
class CocoScores:
    """What an evaluation gives.

    Attributes:
        figures: `box_ap`, ... and `mask_ap`, ...; one that cannot be had (no object of that size) is left out.
        by_class: AP by the name of the class, by "box" and "mask"; classes without an object are left out.
    """

    figures: dict[str, float] = field(default_factory=dict)
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)


def check_annotations(annotations: Path) -> None:
    """Make sure that an annotation file can be evaluated against, before anything is trained for it.

    Raises:
        DataError: the evaluator cannot read it.
    """
    try:
        _hotcoco(annotations)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{annotations} cannot be evaluated against: {error}; correct it."
        ) from error


def evaluate_coco(
    annotations: Path, results: Path, engine: Framework = "hotcoco", *, masks: bool = True
) -> CocoScores:
    """Evaluate boxes and, where annotations and results have them, masks.

    Args:
        masks: whether the detector gives masks, which an empty list of results does not say.

    Raises:
        DataError: results that are no list of detections, or of images or categories that are not annotated.
    """
    text = results.read_bytes()
    if not LIST.match(text):
        raise DataError(f"{results} is no list of detections in COCO's form.")
    nothing = EMPTY_LIST.fullmatch(text)
    has_masks = (
        masks and HAS_MASK.search(annotations.read_bytes()) and (nothing or HAS_MASK.search(text))
    )
    scores = CocoScores()
    try:
        evaluate, names = {"hotcoco": _hotcoco, "pycocotools": _pycocotools}[engine](annotations)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{annotations} cannot be evaluated against: {error}") from error
    for kind, prefix in KINDS.items():
        if kind == "segm" and not has_masks:
            continue
        if nothing:  # pycocotools cannot load an empty list; nothing found is AP 0
            scores.figures[f"{prefix}_ap"] = 0.0
            continue
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                tempfile.TemporaryDirectory() as folder,
            ):
                found = results
                if kind == "segm":
                    # Where there are boxes, both take a mask's area to be its box's; official evaluators
                    # avoid that.
                    found = Path(folder, results.name)
                    found.write_bytes(text.replace(b'"bbox"', b'"_box"'))
                stats, precision = evaluate(found, kind)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{results} cannot be evaluated: {error}") from error
        for name, value in zip(STATS, stats, strict=True):
            if value >= 0:
                scores.figures[f"{prefix}_{name}"] = 100.0 * float(value)
        # (IoU thresholds, recalls, classes, areas, detections): all areas, most detections
        everywhere = np.asarray(precision)[:, :, :, 0, -1]
        scores.by_class[prefix] = {
            names[category]: 100.0 * float(everywhere[:, :, k].mean())
            for k, category in enumerate(sorted(names))
            if everywhere[0, 0, k] >= 0
        }
    return scores


# From a results file and "bbox" or "segm" to pycocotools' figures and precisions; and the categories' names by id.
Evaluator = Callable[[Path, str], tuple[Any, Any]]
Names = dict[int, str]


def _hotcoco(annotations: Path) -> tuple[Evaluator, Names]:
    """Evaluate without a Python object a detection."""
    import hotcoco

    truth = hotcoco.COCO(str(annotations))

    def evaluate(found: Path, kind: str) -> tuple[Any, Any]:
        detections = truth.load_res(str(found))
        if detections.load_warnings:  # detections that can match nothing
            raise ValueError(detections.load_warnings[0].removeprefix("load_res() warning — "))
        evaluation: Any = hotcoco.COCOeval(truth, detections, kind)
        evaluation.run()
        return evaluation.stats, evaluation.eval["precision"]

    return evaluate, _names(truth)


def _pycocotools(annotations: Path) -> tuple[Evaluator, Names]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))

    def evaluate(found: Path, kind: str) -> tuple[Any, Any]:
        detections = json.loads(found.read_bytes())
        for key, known in (("image_id", truth.imgs), ("category_id", truth.cats)):
            strange = next((d for d in detections if d[key] not in known), None)
            if strange is not None:
                raise ValueError(
                    f"found annotation with {key} {strange[key]} not in the GT dataset"
                )
        evaluation = COCOeval(truth, truth.loadRes(detections), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats, evaluation.eval["precision"]

    return evaluate, _names(truth)


def _names(truth: Any) -> Names:
    return {number: category["name"] for number, category in truth.cats.items()}
