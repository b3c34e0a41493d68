"""Transfers on photographs, which are not part of the project: `make test-slow COCO=FOLDER ADE20K=FOLDER`.

COCO's folder has masks and crowds; ADE20K's has eight training images or more. Without these folders, synthetic images
are used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support.referee import referee

from simmim_bench.cli.main import cli
from simmim_bench.pocket.write import PocketCounts, write_pocket
from simmim_bench.results.coco import STATS, evaluate_coco

pytestmark = pytest.mark.slow
FEW = 8


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = PocketCounts(
        imagenet_train=10,
        imagenet_val=10,
        coco_train=30,
        coco_val=30,
        ade20k_train=16,
        ade20k_val=1,
    )
    out = tmp_path_factory.mktemp("synthetic")
    write_pocket(out, img_size=(256, 256), counts=counts)
    return out


@pytest.fixture(scope="module")
def coco(synthetic: Path) -> Path:
    return Path(os.environ.get("COCO") or synthetic / "coco")


@pytest.fixture(scope="module")
def ade20k(synthetic: Path) -> Path:
    return Path(os.environ.get("ADE20K") or synthetic / "ade20k")


def read(data: Path, split: str) -> dict[str, Any]:
    path = data / "annotations" / f"instances_{split}2017.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def of_large_objects(data: Path, out: Path) -> Path:
    """Copy the images with the relatively largest smallest object, as both splits of a data set."""
    content = read(data, "train")
    areas = defaultdict(list)
    for annotation in content["annotations"]:
        areas[annotation["image_id"]].append(annotation["area"])
    annotated = [image for image in content["images"] if areas[image["id"]]]
    annotated.sort(key=lambda i: -min(areas[i["id"]]) / (i["width"] * i["height"]))
    chosen = {image["id"]: image for image in annotated[:FEW]}
    few = {
        **content,
        "images": list(chosen.values()),
        "annotations": [a for a in content["annotations"] if a["image_id"] in chosen],
    }
    for split in ("train", "val"):
        (out / f"{split}2017").mkdir(parents=True)
        for image in chosen.values():
            shutil.copy(data / "train2017" / image["file_name"], out / f"{split}2017")
        (out / "annotations").mkdir(exist_ok=True)
        (out / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(few))
    return out


def test_a_small_detector_overfits_eight_images(coco: Path, tmp_path: Path) -> None:
    data = of_large_objects(coco, tmp_path / "few")
    arguments = ["transfer", "coco", "--ckpt", "random:swin_pocket", "--recipe", "coco_small"]
    run = tmp_path / "run"
    arguments += ["-o", "scale_range=1,1"]  # without augmentation by scale
    done = CliRunner().invoke(
        cli, [*arguments, "--data", str(data), "--out", str(run), "--quiet", "--json"]
    )
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["box_ap"] > 50
    assert metrics["mask_ap"] > 50


def of_many_classes(data: Path, out: Path) -> Path:
    """Copy the images with the most classes of at least half a percent of the pixels, as both splits."""

    def negative_class_count(mask: Path) -> int:
        counts = np.bincount(np.asarray(Image.open(mask)).ravel(), minlength=256)[1:]
        return -int((counts >= 0.005 * counts.sum()).sum())

    masks = sorted((data / "annotations" / "training").glob("*.png"))
    for mask in sorted(masks, key=negative_class_count)[:FEW]:
        image = next((data / "images" / "training").glob(f"{mask.stem}.*"))
        for split in ("training", "validation"):
            for kind, file in (("annotations", mask), ("images", image)):
                (out / kind / split).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, out / kind / split)
    if (data / "classes.txt").exists():
        shutil.copy(data / "classes.txt", out)
    return out


def test_a_small_segmentor_overfits_eight_images(ade20k: Path, tmp_path: Path) -> None:
    data = of_many_classes(ade20k, tmp_path / "few")
    arguments = ["transfer", "ade20k", "--ckpt", "random:swin_pocket", "--recipe", "ade20k_small"]
    for override in ("scale_range=1,1", "img_size=120,160", "max_iters=600"):
        arguments += ["-o", override]
    done = CliRunner().invoke(
        cli, [*arguments, "--data", str(data), "--out", str(tmp_path / "run"), "--quiet", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["metrics"]["miou"] > 60


def test_scores_on_real_annotations_equal_those_of_pycocotools(coco: Path, tmp_path: Path) -> None:
    """Every object is detected, some with shifted boxes; there are crowds and images without objects."""
    content = read(coco, "val")
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    found = []
    for number, annotation in enumerate(content["annotations"]):
        x, y, w, h = annotation["bbox"]
        detection = {key: annotation[key] for key in ("image_id", "category_id")}
        shift = 0.1 * (number % 4)
        box = [x + shift * w, y, w, h * (1 - shift)]
        height, width = sizes[annotation["image_id"]]
        found.append({**detection, "bbox": box, "score": (number * 37 % 101) / 101})
        found[-1]["segmentation"] = rectangle(box, height, width)
    assert any(annotation["iscrowd"] for annotation in content["annotations"])
    annotations = coco / "annotations" / "instances_val2017.json"
    results = tmp_path / "results.json"
    results.write_text(json.dumps(found))
    scores = evaluate_coco(annotations, results)
    for kind, prefix in (("bbox", "box"), ("segm", "mask")):
        for name, value in zip(STATS, referee(annotations, results, kind).stats, strict=True):
            assert scores.figures.get(f"{prefix}_{name}", -100) == pytest.approx(
                100 * value, abs=1e-6
            )
    assert scores.figures["box_ap"] > scores.figures["mask_ap"] > 0


def rectangle(box: list[float], height: int, width: int) -> dict[str, Any]:
    """Return the run lengths of a box's pixels."""
    from pycocotools import mask as masks

    x, y, w, h = box
    corners = [max(0, x), max(0, y), x + w, max(0, y), x + w, y + h, max(0, x), y + h]
    rle = masks.merge(masks.frPyObjects([corners], height, width))
    return {"size": [height, width], "counts": rle["counts"].decode()}
