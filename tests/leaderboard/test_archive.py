"""Tests of `leaderboard keep`: archived records are complete and contain no path of the machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.records import board_of, change, fake_hash, make_record, run_leaderboard

from simmim_bench.leaderboard.check import check_records
from simmim_bench.leaderboard.tables import to_markdown
from simmim_bench.results.metrics import write_logits
from simmim_bench.results.record import read_record
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
