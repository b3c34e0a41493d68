"""Tests of reading a run from its record, and of the runs of a row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.coco_scene import scene
from support.records import change, make_record

from simmim_bench.files import sha256_file
from simmim_bench.results.metrics import scores_from_predictions, write_confusion
from simmim_bench.results.record import Record, read_record
from simmim_bench.results.row_runs import RowRuns, join_rows, read_run, varies_with_seed
from simmim_bench.results.run_files import MissingFileError


def test_an_image_without_pixels_to_score_counts(tmp_path: Path) -> None:
    path = make_record(tmp_path)
    file = path.parent / "predictions" / "logits.npz"
    confusions = [np.array([[30, 10], [n, 50]]) for n in range(7)]
    write_confusion(file, [*confusions, np.zeros((2, 2), int)], ["wall", "sky"])
    change(
        path,
        task="ade20k",
        metrics=scores_from_predictions("ade20k", file, None),
        predictions={"file": "predictions/logits.npz", "sha256": sha256_file(file)},
        evaluated=8,
        expected=8,
    )
    assert read_run(path, read_record(path), ["miou"])["miou"].images == 8


def test_annotations_are_found_in_an_archive(tmp_path: Path) -> None:
    path = make_record(tmp_path / "archive" / "runs")
    annotations, results = scene(tmp_path)
    stored = path.parent / "predictions" / "results.json"
    stored.write_bytes(results.read_bytes())
    fingerprint = sha256_file(annotations)
    change(
        path,
        task="coco",
        metrics={"box_ap": scores_from_predictions("coco", stored, annotations)["box_ap"]},
        predictions={"file": "predictions/results.json", "sha256": sha256_file(stored)},
        data={"root": "coco", "annotations": "coco/val.json", "fingerprint": fingerprint},
    )
    with pytest.raises(MissingFileError, match=r"annotations coco/val.json do not exist, or have"):
        read_run(path, read_record(path), ["box_ap"])
    archived = tmp_path / "archive" / "annotations" / f"{fingerprint[:16]}.json"
    archived.parent.mkdir()
    archived.write_bytes(annotations.read_bytes())
    assert [*read_run(path, read_record(path), ["box_ap", "nothing"])] == ["box_ap"]


def of(path: Path, task: str, name: str, method: str) -> Record:
    checkpoint = json.loads(path.read_text())["checkpoint"]
    change(
        path, task=task, checkpoint=checkpoint | {"name": name, "provenance": {"method": method}}
    )
    return read_record(path)


def test_random_weights_vary_whatever_the_task(tmp_path: Path) -> None:
    path = make_record(tmp_path)
    assert not varies_with_seed(of(path, "knn", "runs/a", "simmim"))
    assert varies_with_seed(of(path, "knn", "runs/a", "random"))
    assert varies_with_seed(of(path, "knn", "random:vit_b", ""))
    assert varies_with_seed(of(path, "linear", "runs/a", "simmim"))
    assert varies_with_seed(of(path, "fewshot-3%", "runs/a", "simmim"))


def test_runs_are_numbered_once_in_every_row_that_has_them(tmp_path: Path) -> None:
    paths = [make_record(tmp_path, seed=seed, correct=seed + 2) for seed in range(3)]
    scores = {path: read_run(path, read_record(path), ["top1"])["top1"] for path in paths}
    first, second, third = paths
    method = RowRuns([("0", [third]), ("1", [first, second])], unit="pretraining")
    runs, (ours, theirs) = join_rows([RowRuns([(5, [second])]), method], scores)
    assert runs.scores.tolist() == pytest.approx([30, 40, 20])
    assert (ours.units, ours.keys, ours.unit) == (((0,),), (5,), "seed")
    assert (theirs.units, theirs.keys) == (((1,), (2, 0)), ("0", "1"))
    assert theirs.score(runs) == pytest.approx((40 + (20 + 30) / 2) / 2)
