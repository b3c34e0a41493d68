"""Read which detections of a COCO results file are correct, image by image, to score some of the images.

hotcoco matches detections with objects, as in `coco.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simmim_bench.results.coco import (
    KINDS,
    Results,
    load_detections,
    load_objects,
    read_results,
    results_file,
)
from simmim_bench.uncertainty.weighted_scores import ClassMatches

# The average precisions among `coco.STATS`: the area in pixels, in the words of hotcoco, and the IoU threshold, None
# for the mean over all ten.
PRECISIONS = {
    "ap": ("all", None),
    "ap50": ("all", 0.5),
    "ap75": ("all", 0.75),
    "ap_small": ("small", None),
    "ap_medium": ("medium", None),
    "ap_large": ("large", None),
}


@dataclass(frozen=True)
class Matches:
    """The matches of one kind.

    Attributes:
        classes: of the classes with an object that counts.
        images: number of images.
    """

    classes: tuple[ClassMatches, ...]
    images: int


def read_matches(
    annotations: Path, results: Path, metric: str, *, masks: bool = True
) -> Matches | None:
    """Match the detections of a results file.

    Args:
        metric: key in a record's metrics, such as `box_ap`.
        masks: see `evaluate_coco`.

    Returns:
        None for a metric that is not an average precision, or that the files do not have.

    Raises:
        DataError: the results or annotations do not exist or are damaged.
    """
    prefix, _, name = metric.partition("_")
    kind = {value: key for key, value in KINDS.items()}.get(prefix)
    if kind is None or name not in PRECISIONS:
        return None
    area, threshold = PRECISIONS[name]
    found = read_results(annotations, results, load_objects, masks=masks)
    if kind not in found.kinds:
        return None
    return _match(found, kind, area, threshold)


def _match(found: Results[Any], kind: str, area: str, threshold: float | None) -> Matches:
    import hotcoco

    images = sorted({image["id"] for image in found.truth["images"]})
    numbers = {image: number for number, image in enumerate(images)}
    classes = []
    with results_file(found, kind) as file:
        detections = load_detections(found.loaded, file)
        # One class at a time: the lists of all would take gigabytes.
        for category in sorted({category["id"] for category in found.truth["categories"]}):
            evaluation: Any = hotcoco.COCOeval(found.loaded, detections, kind)
            params = evaluation.params
            ranges = dict(zip(params.area_rng_lbl, params.area_rng, strict=True))
            params.cat_ids, params.area_rng, params.area_rng_lbl = (
                [category],
                [ranges[area]],
                [area],
            )
            if threshold is not None:
                params.iou_thrs = [threshold]
            evaluation.evaluate()
            with _without_collection():
                matches = _class_matches(evaluation.eval_imgs, numbers)
            if len(matches.objects):
                classes.append(matches)
    return Matches(tuple(classes), len(images))


def _class_matches(
    entries: Sequence[Mapping[str, Any] | None], numbers: Mapping[int, int]
) -> ClassMatches:
    """Join the entries of one class, in the order of the images: equal scores are ranked in it."""
    present = sorted(
        (entry for entry in entries if entry is not None), key=lambda entry: entry["image_id"]
    )
    if not present:
        nothing = np.zeros((0, 0), np.bool_)
        return ClassMatches(np.zeros(0, np.int64), nothing, nothing, np.zeros(0, np.int64))
    scores = _join([entry["dtScores"] for entry in present], np.float64)
    order = np.argsort(-scores, kind="stable")
    ignored = _join([entry["dtIgnore"] for entry in present], np.bool_)[:, order]
    matched = _join([entry["dtMatched"] for entry in present], np.bool_)[:, order]
    counts = ~_join([entry["gtIgnore"] for entry in present], np.bool_)
    image = np.array([numbers[entry["image_id"]] for entry in present], np.int64)
    return ClassMatches(
        image=image.repeat([len(entry["dtScores"]) for entry in present])[order],
        correct=matched & ~ignored,
        ignored=ignored,
        objects=image.repeat([len(entry["gtIgnore"]) for entry in present])[counts],
    )


def _join(parts: Sequence[Any], dtype: type) -> np.ndarray[Any, Any]:
    """Concatenate lists along their last axis."""
    return np.concatenate([np.array(part, dtype) for part in parts], axis=-1)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Pause the garbage collector, which would visit millions of lists again and again: a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
