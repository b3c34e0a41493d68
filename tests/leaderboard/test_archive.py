"""Tests of `leaderboard keep`: archived records are complete and contain no path of the machine."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.coco_scene import scene
from support.records import board_of, change, fake_hash, make_record, run_leaderboard

from simmim_bench.errors import DataError
from simmim_bench.files import sha256_file
from simmim_bench.leaderboard.check import check_records
from simmim_bench.leaderboard.tables import to_markdown
from simmim_bench.results.metrics import scores_from_predictions, write_logits
from simmim_bench.results.record import read_record
from simmim_bench.results.run_files import find_scored_files
from simmim_bench.untrusted.gzips import read_maybe_gzipped
from transfer.recipes import RECIPES


def test_archived_records_pass_the_check_without_the_runs(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed in range(2):
        make_record(runs, seed=seed)
    archive = tmp_path / "archive"
    assert run_leaderboard("keep", runs, "--out", archive).exit_code == 0
    before = to_markdown(board_of(runs))
    shutil.rmtree(runs)
    assert to_markdown(board_of(archive)) == before
    arguments = ("--no-reported", archive, "--out", tmp_path / "out")
    assert run_leaderboard("build", *arguments).exit_code == 0
    assert run_leaderboard("check", *arguments).output == "verified: 2 records, 4 tables.\n"


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_predictions_that_were_not_scored_are_not_kept(tmp_path: Path, damage: str) -> None:
    make_record(tmp_path / "runs", label="good")
    path = make_record(tmp_path / "runs", label="bad")
    # Files outside of the record's folder in the archive, which would be written first.
    Image.new("RGB", (4, 4)).save(path.parent / "reconstructions.png")
    content = json.loads(path.read_text())
    change(path, checkpoint=content["checkpoint"] | {"name": str(path.parent)})
    file = path.parent / "predictions" / "logits.npz"
    if damage == "changed":
        write_logits(file, np.eye(6)[[0] * 10], np.zeros(10, int))
    else:
        file.unlink()
    archive = tmp_path / "archive"
    kept = run_leaderboard("keep", tmp_path / "runs", "--out", archive)
    assert getattr(kept.exception, "exit_code", None) == 4
    (problem,) = str(kept.exception).splitlines()
    checked = check_records({path: read_record(path)}, RECIPES)
    assert problem == f"{path} was not kept: {checked[0].removeprefix(f'{path}: ')}"
    assert not (archive / "checkpoints").exists()
    (record,) = archive.rglob("record.json")
    assert read_record(record).checkpoint["label"] == "good"


def test_archived_records_contain_no_absolute_path(tmp_path: Path) -> None:
    path = make_record(tmp_path / "runs")
    change(path, data={"root": str(tmp_path / "data" / "d"), "fingerprint": fake_hash("f")})
    change(path, command=["simmim-bench", "transfer", "--data", str(tmp_path / "data" / "d")])
    archive = tmp_path / "archive"
    assert run_leaderboard("keep", tmp_path / "runs", "--out", archive).exit_code == 0
    (record,) = archive.rglob("record.json")
    assert str(tmp_path) not in record.read_text()
    assert read_record(record).data["root"] == "data/d"


def test_coco_results_are_kept_compressed_and_scored_from_there(tmp_path: Path) -> None:
    annotations, results = scene(tmp_path, with_masks=False)
    path = make_record(tmp_path / "runs")
    file = path.parent / "predictions" / "coco_results.json"
    shutil.copy(results, file)
    scores = scores_from_predictions("coco", file, annotations)
    change(
        path,
        task="coco",
        metrics=scores,
        predictions={"file": "predictions/coco_results.json", "sha256": sha256_file(file)},
        data={
            "root": "d",
            "annotations": str(annotations),
            "fingerprint": sha256_file(annotations),
        },
    )
    archive = tmp_path / "archive"
    done = run_leaderboard("keep", path.parent, "--out", archive)
    assert done.exit_code == 0, done.output
    (kept,) = archive.rglob("record.json")
    record = read_record(kept)
    (compressed,) = (kept.parent / "predictions").iterdir()
    assert compressed.name == "coco_results.json.gz"
    assert gzip.decompress(compressed.read_bytes()) == file.read_bytes()
    assert record.predictions["original_sha256"] == sha256_file(file)
    assert scores_from_predictions("coco", *find_scored_files(kept, record)) == scores

    annotations.unlink()  # the copy remains
    assert run_leaderboard("keep", kept.parent, "--out", tmp_path / "again").exit_code == 0
    refused = run_leaderboard("keep", path.parent, "--out", tmp_path / "third")
    assert "annotations" in str(refused.exception)
    assert not list((tmp_path / "third").rglob("record.json"))


@pytest.mark.parametrize(
    ("content", "largest", "reason"),
    [
        (gzip.compress(b"[" + b" " * 10**6), 1 << 30, "expands to more than 100 times its size"),
        (gzip.compress(bytes(range(256)) * 8), 2_000, "expands to more than 2,000 bytes"),
        (gzip.compress(b"[]") + gzip.compress(b"[]"), 2_000, "has 22 bytes after its end"),
        (b"[]", 2_000, "cannot be expanded"),
        (b"", 2_000, "cut off"),
    ],
    ids=("exploding", "large", "several members", "no gzip", "empty"),
)
def test_a_damaged_or_exploding_compressed_file_is_refused(
    tmp_path: Path, content: bytes, largest: int, reason: str
) -> None:
    path = tmp_path / "results.json.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_maybe_gzipped(path, "predictions", largest)


def test_a_compact_copy_has_the_scores_and_intervals_of_the_original(tmp_path: Path) -> None:
    for label, correct in (("a", 20), ("b", 24)):
        for seed in range(2):
            path = make_record(
                tmp_path / "runs", label=label, seed=seed, images=40, correct=correct + seed
            )
    original = read_record(path)
    assert "ece" in original.metrics
    archive = tmp_path / "archive"
    arguments = (tmp_path / "runs", "--out", archive, "--compact")
    assert run_leaderboard("keep", *arguments).exit_code == 0
    assert to_markdown(board_of(archive)) == to_markdown(board_of(tmp_path / "runs"))
    assert not check_records({p: read_record(p) for p in archive.rglob("record.json")}, RECIPES)
    copies = [read_record(p) for p in archive.rglob("record.json")]
    (copy,) = (
        c for c in copies if c.predictions["original_sha256"] == original.predictions["sha256"]
    )
    assert copy.metrics == {name: original.metrics[name] for name in ("top1", "top5")}
    # Of a copy of the copy, the hash is still that of the run's file.
    again = tmp_path / "again"
    assert run_leaderboard("keep", archive, "--out", again, "--compact").exit_code == 0
    hashes = {read_record(p).predictions["original_sha256"] for p in again.rglob("record.json")}
    assert hashes == {c.predictions["original_sha256"] for c in copies}
