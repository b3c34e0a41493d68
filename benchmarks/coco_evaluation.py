"""Time the evaluation of COCO boxes and masks by pycocotools and by hotcoco, the default evaluator.

    python benchmarks/coco_evaluation.py

Annotations and results are synthetic: 5,000 images of 80 classes, as in val2017, with seven objects and
`--detections` detections per image. Both evaluators read the same files and must compute the same figures.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import pycocotools
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from timing import compare, report

from simmim_bench.results.coco import CocoScores, evaluate_coco

SIZE = (480, 640)
CLASSES = 80
OBJECTS = 7  # per image; val2017 has 7.3
CORNERS = 12  # of the polygon of a mask


def main() -> None:
    """Parse the arguments, time the alternatives and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=30, help="detections per image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        sys.exit(f"--rounds {arguments.rounds} is too few for quartiles; use 3 or more.")
    with tempfile.TemporaryDirectory() as folder:
        annotations, results = write_synthetic(Path(folder), arguments.images, arguments.detections)
        size = (
            f"{arguments.images} images, {CLASSES} classes, "
            f"{arguments.images * arguments.detections} detections with masks"
        )
        both = [
            LoadedEvaluation(library, annotations, results) for library in (pycocotools, hotcoco)
        ]
        evaluation = compare(
            {one.name: one.evaluate for one in both}, rounds=arguments.rounds, warm_up=False
        )
        report(
            f"evaluating {size}: matching, accumulating, summarising",
            evaluation,
            arguments.json,
            largest_difference_of_a_figure=float(np.abs(both[0].stats - both[1].stats).max()),
        )
        scores: dict[str, CocoScores] = {}

        def by_pycocotools() -> None:
            scores["pycocotools"] = evaluate_coco(annotations, results, "pycocotools")

        def by_hotcoco() -> None:
            scores["hotcoco"] = evaluate_coco(annotations, results)

        from_files = compare(
            {"pycocotools": by_pycocotools, "hotcoco, the default": by_hotcoco},
            rounds=arguments.rounds,
            warm_up=False,
        )
    expected, ours = scores["pycocotools"].figures, scores["hotcoco"].figures
    report(
        f"the same including reading the files: {size}",
        from_files,
        arguments.json and arguments.json.with_stem(f"{arguments.json.stem}_from_files"),
        largest_difference_of_a_figure=max(abs(expected[name] - ours[name]) for name in expected),
        box_ap=round(ours["box_ap"], 3),
        mask_ap=round(ours["mask_ap"], 3),
    )


class LoadedEvaluation:
    """Annotations and results in a library's objects; the results once with boxes and once with masks only."""

    def __init__(self, library: Any, annotations: Path, results: Path) -> None:
        self.name = library.__name__
        self.stats = np.zeros(0)
        masks_only = results.with_name("masks.json")
        masks_only.write_bytes(results.read_bytes().replace(b'"bbox"', b'"_box"'))
        with contextlib.redirect_stdout(io.StringIO()):
            if library is pycocotools:
                truth, self.evaluation = COCO(str(annotations)), COCOeval
            else:
                truth, self.evaluation = hotcoco.COCO(str(annotations)), hotcoco.COCOeval
            found = {"bbox": truth.loadRes(str(results)), "segm": truth.loadRes(str(masks_only))}
        self.truth, self.found = truth, found

    def evaluate(self) -> None:
        """Compute the twelve figures of boxes and of masks."""
        stats = []
        with contextlib.redirect_stdout(io.StringIO()):
            for kind, found in self.found.items():
                evaluation = self.evaluation(self.truth, found, kind)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                stats.append(evaluation.stats)
        self.stats = np.concatenate(stats)


Object = tuple[np.ndarray, int]  # box (x, y, width, height) in pixels, category


def write_synthetic(folder: Path, images: int, detections: int) -> tuple[Path, Path]:
    """Write annotations, and results that find most of the objects among false positives."""
    generator = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        objects = [sample_object(generator) for _ in range(OBJECTS)]
        for box, category in objects:
            annotations.append(annotation(len(annotations) + 1, image, box, category))
        for number in range(detections):
            noise = 0.03 * (1 + number // OBJECTS)
            results.append(detection(generator, image, *objects[number % OBJECTS], noise))
    truth = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for i in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c)} for c in range(1, CLASSES + 1)],
    }
    (folder / "annotations.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    return folder / "annotations.json", folder / "results.json"


def sample_object(generator: np.random.Generator) -> Object:
    """Sample a box within the image and a category."""
    width, height = generator.uniform(8, 300), generator.uniform(8, 240)
    x, y = generator.uniform(0, 640 - width), generator.uniform(0, 480 - height)
    return np.array([x, y, width, height]), int(generator.integers(1, CLASSES + 1))


def annotation(number: int, image: int, box: np.ndarray, category: int) -> dict[str, Any]:
    """Return the annotation of an object."""
    rle = ellipse_rle(box)
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box.round(2).tolist(),
        "area": float(masks.area(rle)),
        "iscrowd": 0,
        "segmentation": rle_to_json(rle),
    }


def detection(
    generator: np.random.Generator, image: int, box: np.ndarray, category: int, noise: float
) -> dict[str, Any]:
    """Return a detection of an object: its box scaled by noise, its category wrong in a fifth of the cases."""
    box = np.maximum(box * generator.normal(1, noise, 4), 1)
    if generator.random() < 0.2:
        category = int(generator.integers(1, CLASSES + 1))
    return {
        "image_id": image,
        "category_id": category,
        "bbox": box.round(2).tolist(),
        "score": float(generator.random()),
        "segmentation": rle_to_json(ellipse_rle(box)),
    }


def ellipse_rle(box: np.ndarray) -> dict[str, Any]:
    """Return the run-length encoding of an ellipse in a box."""
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    x = box[0] + box[2] / 2 * (1 + np.cos(angles))
    y = box[1] + box[3] / 2 * (1 + np.sin(angles))
    polygon = np.stack([x.clip(0, SIZE[1]), y.clip(0, SIZE[0])], 1).flatten().tolist()
    return masks.merge(masks.frPyObjects([polygon], *SIZE))


def rle_to_json(rle: dict[str, Any]) -> dict[str, Any]:
    """Convert a run-length encoding to JSON-compatible values."""
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


if __name__ == "__main__":
    main()
