"""Tests of the board: groups of protocols, ranks, seeds, and the records that it is built from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.records import board_of, change, fake_hash, make_record

from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.protocols import group_protocols
from simmim_bench.tasks import columns


def test_random_weights_share_a_group_with_the_checkpoints_of_each_data_set(
    tmp_path: Path,
) -> None:
    for data in ("x", "y"):
        for task in ("linear", "knn"):
            for label in (data, "r"):
                path = make_record(tmp_path / data, label=label, task=task)
                change(path, data={"root": data, "fingerprint": fake_hash(data)})
    board = board_of(tmp_path)
    assert sorted(sorted(row.label for row in group.rows) for group in board.groups) == [
        ["r", "x"],
        ["r", "y"],
    ]
    scored = [i for i, column in enumerate(columns()) if column.task in ("linear", "knn")]
    assert all(row.cells[i] is not None for row in board.rows for i in scored)


def test_a_protocol_is_in_one_group_and_a_group_has_one_protocol_per_task() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        evaluated = [
            [*{(f"t{t}", f"p{t}{p}") for t, p in generator.integers(0, 4, (n, 2))}]
            for n in generator.integers(1, 8, 5)
        ]
        groups = group_protocols(evaluated)
        placed = [pair for group in groups for pair in group.items()]
        assert sorted(placed) == sorted({pair for pairs in evaluated for pair in pairs})


def test_rows_are_ranked_by_the_columns_that_all_rows_have(tmp_path: Path) -> None:
    make_record(tmp_path, label="a", correct=6)
    make_record(tmp_path, label="a", correct=10, task="knn")
    make_record(tmp_path, label="b", correct=7)
    assert [row.label for row in board_of(tmp_path).rows] == ["b", "a"]


def test_checkpoints_with_the_same_label_are_distinguished_by_their_hash(tmp_path: Path) -> None:
    first = make_record(tmp_path / "1", label="a")
    second = make_record(tmp_path / "2", label="a", correct=7)
    checkpoint = json.loads(first.read_text())["checkpoint"]
    change(first, checkpoint=checkpoint | {"sha256": "12345678" * 8})
    change(second, checkpoint=checkpoint | {"sha256": "abcdef00" * 8})
    assert sorted(row.label for row in board_of(tmp_path).rows) == ["a [12345678]", "a [abcdef00]"]


def test_a_copied_record_does_not_count_and_contradicting_ones_are_left_out(tmp_path: Path) -> None:
    path = make_record(tmp_path / "runs")
    assert len(find_records([tmp_path / "runs", tmp_path]).records) == 1
    shutil.copytree(path.parent, tmp_path / "runs" / "copy")
    make_record(tmp_path / "runs", seed=1, correct=8)
    (row,) = board_of(tmp_path / "runs").rows
    cell = row.cells[1]
    assert cell is not None
    assert sorted(cell.values) == pytest.approx([60.0, 80.0])
    make_record(tmp_path / "other", correct=7)
    found = find_records([tmp_path / "runs", tmp_path / "other"])
    assert [record.seed for record in found.records.values()] == [1]
    assert len(found.problems) == 3
    for problem in found.problems:
        assert "same checkpoint, protocol and seed but different predictions" in problem


def test_a_record_without_a_score_that_has_a_column_is_in_no_row(tmp_path: Path) -> None:
    change(make_record(tmp_path, label="b"), metrics={"other": 1.0})
    assert board_of(tmp_path).groups == ()
    make_record(tmp_path, label="a")
    assert [row.label for row in board_of(tmp_path).rows] == ["a"]
