"""Fuzz what `leaderboard build` and `check` read: records, predictions and COCO's files.

`make fuzz` runs the targets for longer; FUZZ_SECONDS and FUZZ_SEED set the length and the seed.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.fuzz import check, fuzz
from support.fuzz_mutators import mutate_array, mutate_json, mutate_zip, write_files
from support.records import make_record

from simmim_bench.errors import DataError
from simmim_bench.files import sha256_file
from simmim_bench.leaderboard import check as check_module
from simmim_bench.leaderboard import page_data as page_module
from simmim_bench.leaderboard import page_files
from simmim_bench.leaderboard.board import build_board
from simmim_bench.leaderboard.check import check_records
from simmim_bench.leaderboard.page import scale_curve
from simmim_bench.leaderboard.page_data import page_data
from simmim_bench.leaderboard.published import add_published
from simmim_bench.leaderboard.reported import read_reported
from simmim_bench.leaderboard.tables import to_csv, to_json, to_latex, to_markdown
from simmim_bench.results import calibration, coco, coco_file, coco_truth, metrics, run_lengths
from simmim_bench.results import record as record_module
from simmim_bench.results.coco import evaluate_coco
from simmim_bench.results.coco_file import read_instances
from simmim_bench.results.metrics import scores_from_predictions, write_confusion
from simmim_bench.results.per_image import read_image_scores
from simmim_bench.results.record import read_record
from simmim_bench.untrusted import arrays, json_text
from transfer.detection import coco_faults, coco_images
from transfer.detection.coco_faults import entry_faults, find_bad, reference_faults
from transfer.detection.coco_images import image_faults, resolve_names
from transfer.recipes import RECIPES

mutate_npz = partial(mutate_zip, mutate=mutate_array)


def test_records(tmp_path: Path, seconds: float | None) -> None:
    path = make_record(tmp_path)
    record = json.loads(path.read_bytes())
    (path.parent / "env.json").write_text("{}")
    (tmp_path / "weights").write_bytes(b"")
    truth_file = tmp_path / "truth.json"
    truth_file.write_text(json.dumps(truth()))
    data = {"annotations": str(truth_file), "fingerprint": sha256_file(truth_file)}
    seeds = [
        json.dumps(record | change).encode()
        for change in (
            {},
            {"schema": 1},
            {"predictions": record["predictions"] | {"file": "predictions/other.npz"}},
            {"checkpoint": record["checkpoint"] | {"name": str(tmp_path / "weights")}},
            {"task": "coco", "data": record["data"] | data},
            {"task": "coco", "data": record["data"] | data | {"fingerprint": "0" * 64}},
            {"details": {"processes": 2}, "evaluated": 9},
        )
    ]
    reported = read_reported()

    def show(path: Path) -> None:
        records = {path: read_record(path)}
        board = add_published(build_board(records), reported)
        for table in (to_markdown(board), to_csv(board), to_latex(board)):
            table.encode(errors="backslashreplace")
        json.loads(to_json(board))
        page_data(board)
        problems = check_records(records, RECIPES)
        assert not any("cannot be checked" in problem for problem in problems), problems

    covers: list[Any] = [json_text, record_module.read_record, record_module._find_non_finite]
    covers += [record_module._from_version_1, page_files.describe_record, page_module._row]
    covers += [check_module.check_records, check_module._check_scores, check_module._check_recipe]
    covers += [check_module._has_fields, check_module._check_checkpoint, check_module._check_status]
    check(fuzz(show, seeds, path, seconds=seconds, covers=covers, mutate=mutate_json))


def test_curves_and_scores_by_class(tmp_path: Path, seconds: float | None) -> None:
    """Mutate the files beside a record: one JSON text that holds them, with lines of the curve as values or texts."""
    record = make_record(tmp_path)
    files = {
        "metrics.jsonl": [{"step": n, "loss": 1 / n, "lr": 1e-3} for n in range(1, 9)],
        "iou_by_class.json": {"a": 50.0, "b": 0.0},
        "ap_by_class.json": {"box": {"a": 50.0}, "mask": {"a": 40.0}},
    }
    seeds = [files, {"ap_by_class.json": files["ap_by_class.json"], "metrics.jsonl": ["{", "1"]}]
    board = build_board({record: read_record(record)})

    def show(path: Path) -> None:
        write_files(path, record.parent, files)
        for shown in page_data(board)["records"]:
            scale_curve(shown["curve"])
            json.dumps(shown["by_class"], allow_nan=False)

    covers: list[Any] = [page_files._curve, page_files._point, page_files._scores_by_class]
    covers += [page_files._flatten_scores, json_text.parse_json, json_text.check_limits]
    path = tmp_path / "files.json"
    contents = [json.dumps(seed).encode() for seed in seeds]
    check(fuzz(show, contents, path, seconds=seconds, covers=covers, mutate=mutate_json))


@pytest.mark.parametrize("task", ["knn", "linear", "ade20k"])
def test_predictions(tmp_path: Path, seconds: float | None, task: str) -> None:
    """Mutate a ranking and a confusion matrix."""
    seed = make_record(tmp_path).parent / "predictions" / "logits.npz"
    covers: list[Any] = [
        arrays,
        metrics.read_ranking,
        metrics._ranking,
        calibration,
        metrics._count,
    ]
    covers += [metrics.classification_scores]
    if task == "ade20k":
        seed = tmp_path / "c.npz"
        write_confusion(seed, [np.eye(3, dtype=int)] * 2, ["a", "b", "c"])
        covers = [arrays, metrics.read_confusions, metrics._check_entries, metrics._count]
        covers += [metrics.segmentation_scores]
    with np.load(seed) as stored:
        np.savez(seed, **stored)  # without compression, which hides the content from the mutations

    def score(path: Path) -> None:
        scores = scores_from_predictions(task, path, None)
        for metric, value in scores.items():
            assert 0 <= value <= (3.5e38 if metric == "nll" else 100)
        shown = "miou" if task == "ade20k" else "top1"
        by_image = read_image_scores(task, path, None, shown)
        assert by_image is not None
        assert by_image.score == pytest.approx(scores[shown], abs=1e-9)

    path = tmp_path / "x.npz"
    check(fuzz(score, [seed.read_bytes()], path, seconds=seconds, covers=covers, mutate=mutate_npz))


def truth() -> dict[str, Any]:
    shape = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 4, "width": 4 + n} for n in (1, 2)],
        "categories": [{"id": n, "name": f"c{n}"} for n in (1, 2)],
        "annotations": [
            {"id": 1, **shape, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]},
            {"id": 2, **shape, "segmentation": {"size": [4, 5], "counts": [0, 16, 4]}},
            {"id": 3, **shape, "category_id": 2, "segmentation": {"size": [4, 5], "counts": "0d0"}},
        ],
    }


def test_coco_annotations(tmp_path: Path, seconds: float | None) -> None:
    results = tmp_path / "results.json"
    found = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "score": 0.5}
    results.write_text(json.dumps([found | {"segmentation": {"size": [4, 5], "counts": "0d0"}}]))
    images = tmp_path / "data" / "val2017"
    images.mkdir(parents=True)
    Image.new("RGB", (5, 4)).save(images / "1.png")
    (images / "2.png").touch()

    def read(path: Path) -> None:
        refused: DataError | None = None
        try:
            evaluate_coco(path, results)
        except DataError as error:
            refused = error
        content = read_instances(path).content
        if not (list(entry_faults(path, content)) or list(reference_faults(path, content))):
            resolve_names(content, images)
            list(image_faults(path, content, images))
            find_bad(content)
        if refused is not None:
            raise refused

    covers: list[Any] = [coco_file, coco_truth.check_content, coco_faults, coco_images]
    seeds, path = [json.dumps(truth()).encode()], tmp_path / "truth.json"
    check(fuzz(read, seeds, path, seconds=seconds, covers=covers, mutate=mutate_json))


def test_coco_results(tmp_path: Path, seconds: float | None) -> None:
    annotations = tmp_path / "truth.json"
    annotations.write_text(json.dumps(truth()))
    found = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "score": 0.5}
    mask = {"segmentation": {"size": [4, 5], "counts": "0d0"}}
    seeds = [json.dumps([found | mask, found]).encode(), json.dumps([found] * 3).encode()]

    def score(path: Path) -> None:
        figures = evaluate_coco(annotations, path).figures
        assert all(0 <= value <= 100 + 1e-9 for value in figures.values())
        by_image = read_image_scores("coco", path, annotations, "box_ap")
        assert by_image is not None
        assert by_image.score == pytest.approx(figures["box_ap"], abs=1e-9)

    covers: list[Any] = [coco.evaluate_coco, run_lengths, coco.results_file, coco._ap_by_class]
    path = tmp_path / "r.json"
    check(fuzz(score, seeds, path, seconds=seconds, covers=covers, mutate=mutate_json))
