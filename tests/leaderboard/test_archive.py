"""Tests of `leaderboard keep`: archived records are complete and contain no path of the machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from click.testing import CliRunner
from support.records import board_of, change, make_record

from simmim_bench.cli.main import cli
from simmim_bench.leaderboard.tables import to_markdown
from simmim_bench.results.record import read_record


def test_kept_records_hold_where_the_runs_are_gone(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed in range(2):
        make_record(runs, seed=seed)
    kept = tmp_path / "kept"
    assert (
        CliRunner().invoke(cli, ["leaderboard", "keep", str(runs), "--out", str(kept)]).exit_code
        == 0
    )
    before = to_markdown(board_of(runs))
    shutil.rmtree(runs)
    assert to_markdown(board_of(kept)) == before
    arguments = [str(kept), "--out", str(tmp_path / "out")]
    assert (
        CliRunner().invoke(cli, ["leaderboard", "build", "--no-reported", *arguments]).exit_code
        == 0
    )
    done = CliRunner().invoke(cli, ["leaderboard", "check", "--no-reported", *arguments])
    assert done.output == "2 records and their tables hold.\n"


def test_kept_records_name_no_folder_of_the_machine(tmp_path: Path) -> None:
    path = make_record(tmp_path / "runs")
    change(path, data={"root": str(tmp_path / "data" / "d"), "fingerprint": "f"})
    change(path, command=["simmim-bench", "transfer", "--data", str(tmp_path / "data" / "d")])
    kept = tmp_path / "kept"
    arguments = ["leaderboard", "keep", str(tmp_path / "runs"), "--out", str(kept)]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    (found,) = kept.rglob("record.json")
    assert str(tmp_path) not in found.read_text()
    assert read_record(found).data["root"] == "data/d"
