"""Tests of `leaderboard keep`: archived records are complete and contain no path of the machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.records import board_of, change, fake_hash, make_record, run_leaderboard

from simmim_bench.leaderboard.tables import to_markdown
from simmim_bench.results.record import read_record


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


def test_archived_records_contain_no_absolute_path(tmp_path: Path) -> None:
    path = make_record(tmp_path / "runs")
    change(path, data={"root": str(tmp_path / "data" / "d"), "fingerprint": fake_hash("f")})
    change(path, command=["simmim-bench", "transfer", "--data", str(tmp_path / "data" / "d")])
    archive = tmp_path / "archive"
    assert run_leaderboard("keep", tmp_path / "runs", "--out", archive).exit_code == 0
    (record,) = archive.rglob("record.json")
    assert str(tmp_path) not in record.read_text()
    assert read_record(record).data["root"] == "data/d"
