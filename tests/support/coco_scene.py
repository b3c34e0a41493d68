"""A small COCO data set with the cases that evaluators differ in, and detections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as masks

SIDE = 96


def scene(folder: Path, *, with_masks: bool = True, images: int = 12) -> tuple[Path, Path]:
    """Write annotations with crowds, an image without objects and a class without objects; and detections."""
    generator = np.random.default_rng(0)
    objects: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in range(1, images):  # the last image has no annotation, but detections
        for _ in range(6):
            x, y = generator.uniform(0, 50, 2)
            w, h = generator.uniform(3, 45, 2)
            crowd = bool(generator.random() < 0.1)
            category = int(generator.integers(1, 5)) * 3
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            rle = masks.merge(masks.frPyObjects([polygon], SIDE, SIDE))
            entry: dict[str, Any] = {
                "id": len(objects) + 1,
                "image_id": image,
                "category_id": category,
                "bbox": [x, y, w, h],
                "area": float(w * h),
                "iscrowd": int(crowd),
            }
            if with_masks:
                counts = rle["counts"].decode()
                entry["segmentation"] = (
                    {"size": [SIDE, SIDE], "counts": counts} if crowd else [polygon]
                )
            objects.append(entry)
    for entry in objects * 2:
        x, y, w, h = np.array(entry["bbox"]) + generator.normal(0, 1.5, 4)
        w, h = max(w, 1.0), max(h, 1.0)
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        rle = masks.merge(masks.frPyObjects([[max(0.0, v) for v in polygon]], SIDE, SIDE))
        detection: dict[str, Any] = {
            "image_id": entry["image_id"] if generator.random() < 0.95 else images,
            "category_id": entry["category_id"] if generator.random() < 0.9 else 3,
            "bbox": [float(v) for v in (x, y, w, h)],
            "score": round(float(generator.random()), 2),  # with ties
        }
        if with_masks:
            detection["segmentation"] = {"size": [SIDE, SIDE], "counts": rle["counts"].decode()}
        found.append(detection)
    truth = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": SIDE, "width": SIDE}
            for i in range(1, images + 1)
        ],
        "annotations": objects,
        "categories": [{"id": 3 * c, "name": f"class {c}"} for c in range(1, 6)],
    }
    annotations, results = folder / "annotations.json", folder / "results.json"
    annotations.write_text(json.dumps(truth))
    results.write_text(json.dumps(found))
    return annotations, results
