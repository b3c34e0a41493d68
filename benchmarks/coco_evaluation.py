"""Time the evaluation of COCO results, boxes and masks: by pycocotools, and by the default evaluator.

    python benchmarks/coco_evaluation.py

Annotations and results are drawn: 5,000 images of 80 classes, as many as val2017 has, with seven objects and
`--detections` detections each. Both read the same files and must come to the same figures.
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
from side_by_side import compare, report

from simmim_bench.results.coco import CocoScores, evaluate_coco

SIZE = (480, 640)
CLASSES = 80
OBJECTS = 7  # an image; val2017 has 7.3
CORNERS = 12  # of the polygon that a mask is drawn from


def main() -> None:
    """Read the arguments, draw, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=30, help="an image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        sys.exit("--rounds must be at least 3: quartiles need them.")
    with tempfile.TemporaryDirectory() as folder:
        annotations, results = draw(Path(folder), arguments.images, arguments.detections)
        what = (
            f"{arguments.images} images, {CLASSES} classes, "
            f"{arguments.images * arguments.detections} detections with masks"
        )
        both = [Loaded(pycocotools, annotations, results), Loaded(hotcoco, annotations, results)]
        alone = compare(
            {one.name: one.evaluate for one in both}, rounds=arguments.rounds, warm_up=False
        )
        report(
            f"evaluating {what}: matching, accumulating, the figures",
            alone,
            arguments.json,
            largest_difference_of_a_figure=float(np.abs(both[0].stats - both[1].stats).max()),
        )
        scores: dict[str, CocoScores] = {}

        def by_pycocotools() -> None:
            scores["pycocotools"] = evaluate_coco(annotations, results, "pycocotools")

        def by_hotcoco() -> None:
            scores["hotcoco"] = evaluate_coco(annotations, results)

        whole = compare(
            {"pycocotools": by_pycocotools, "hotcoco, the default": by_hotcoco},
            rounds=arguments.rounds,
            warm_up=False,
        )
    referee, ours = scores["pycocotools"].figures, scores["hotcoco"].figures
    report(
        f"the same from the files on: reading, and {what}",
        whole,
        arguments.json and arguments.json.with_stem(f"{arguments.json.stem}_from_files"),
        largest_difference_of_a_figure=max(abs(referee[name] - ours[name]) for name in referee),
        box_ap=round(ours["box_ap"], 3),
        mask_ap=round(ours["mask_ap"], 3),
    )


class Loaded:
    """Annotations and results in a library's own objects, results once with boxes and once with masks alone."""

    def __init__(self, library: Any, annotations: Path, results: Path) -> None:
        self.name = library.__name__
        self.stats = np.zeros(0)
        masks_alone = results.with_name("masks.json")
        masks_alone.write_bytes(results.read_bytes().replace(b'"bbox"', b'"_box"'))
        with contextlib.redirect_stdout(io.StringIO()):
            if library is pycocotools:
                truth, self.evaluation = COCO(str(annotations)), COCOeval
            else:
                truth, self.evaluation = hotcoco.COCO(str(annotations)), hotcoco.COCOeval
            found = {"bbox": truth.loadRes(str(results)), "segm": truth.loadRes(str(masks_alone))}
        self.truth, self.found = truth, found

    def evaluate(self) -> None:
        """Come to the twelve figures of boxes and of masks."""
        stats = []
        with contextlib.redirect_stdout(io.StringIO()):
            for kind, found in self.found.items():
                evaluation = self.evaluation(self.truth, found, kind)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                stats.append(evaluation.stats)
        self.stats = np.concatenate(stats)


def draw(folder: Path, images: int, detections: int) -> tuple[Path, Path]:
    """Write annotations, and results that find most of them, with false ones between."""
    generator = np.random.default_rng(0)
    objects, found = [], []
    for image in range(1, images + 1):
        own = []
        for _ in range(OBJECTS):
            width, height = generator.uniform(8, 300), generator.uniform(8, 240)
            x, y = generator.uniform(0, 640 - width), generator.uniform(0, 480 - height)
            own.append((np.array([x, y, width, height]), int(generator.integers(1, CLASSES + 1))))
        for box, category in own:
            rle = blob(box)
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box.round(2).tolist(),
                    "area": float(masks.area(rle)),
                    "iscrowd": 0,
                    "segmentation": text(rle),
                }
            )
        for number in range(detections):
            box, category = own[number % OBJECTS]
            box = box * generator.normal(1, 0.03 * (1 + number // OBJECTS), 4)
            box = np.maximum(box, 1)
            if generator.random() < 0.2:
                category = int(generator.integers(1, CLASSES + 1))
            found.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "bbox": box.round(2).tolist(),
                    "score": float(generator.random()),
                    "segmentation": text(blob(box)),
                }
            )
    truth = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for i in range(1, images + 1)
        ],
        "annotations": objects,
        "categories": [{"id": c, "name": str(c)} for c in range(1, CLASSES + 1)],
    }
    (folder / "annotations.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(found))
    return folder / "annotations.json", folder / "results.json"


def blob(box: np.ndarray) -> dict[str, object]:
    """Give the run lengths of an ellipse in a box."""
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    x = box[0] + box[2] / 2 * (1 + np.cos(angles))
    y = box[1] + box[3] / 2 * (1 + np.sin(angles))
    polygon = np.stack([x.clip(0, SIZE[1]), y.clip(0, SIZE[0])], 1).flatten().tolist()
    return masks.merge(masks.frPyObjects([polygon], *SIZE))


def text(rle: dict) -> dict[str, object]:
    """Give run lengths as JSON has them."""
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


if __name__ == "__main__":
    main()
