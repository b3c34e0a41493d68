"""Tests of the rows of methods, which were pretrained with several seeds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from support.records import (
    board_of,
    change,
    fake_hash,
    make_record,
    plain_cells,
    pretrained,
    run_leaderboard,
    table_lines,
)

from simmim_bench.leaderboard.board import Board, select_columns
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.small_set_tables import small_sets_to_markdown
from simmim_bench.leaderboard.tables import to_csv, to_json, to_latex, to_markdown

LINEAR = 1  # index of the column
# Correctly classified images of 100 by method and pretraining seed, for each transfer seed.
SCORES: dict[str, dict[int, Sequence[int]]] = {
    "MAE": {0: (60, 62), 1: (50, 52, 54), 2: (64,)},
    "SimMIM": {0: (40, 41), 10: (44, 46), 2: (42, 42)},
}


def write_methods(
    root: Path, scores: Mapping[str, Mapping[int, Sequence[int]]], task: str = "linear"
) -> None:
    for method, by_seed in scores.items():
        for pretraining, counts in by_seed.items():
            for seed, correct in enumerate(counts):
                path = make_record(
                    root / f"{method}{pretraining}",
                    task=task,
                    correct=correct,
                    seed=seed,
                    images=100,
                )
                pretrained(path, method, pretraining)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    write_methods(tmp_path, SCORES)
    return board_of(tmp_path)


def test_a_method_has_a_row_whose_units_are_pretrainings(board: Board) -> None:
    assert [row.label for row in board.rows] == [
        "MAE (3 pretrainings)",
        "SimMIM (3 pretrainings)",
    ]
    for row in board.rows:
        by_seed = SCORES[row.label.partition(" ")[0]]
        cell = row.cells[LINEAR]
        assert cell is not None
        assert cell.unit == "pretraining"
        means = [np.mean(by_seed[seed]) for seed in sorted(by_seed)]
        assert cell.values == pytest.approx(means)
        assert cell.std == pytest.approx(np.std(means, ddof=1))
        assert len(cell.records) == sum(map(len, by_seed.values()))
        assert [one.pretraining_seed for one in row.pretrainings] == sorted(by_seed)
        assert cell.rank is not None
        members = [one.cells[LINEAR] for one in row.pretrainings]
        assert [(m.rank, m.best) for m in members if m is not None] == [(None, False)] * 3
        assert all(m is not None and m.uncertainty is not None for m in members)


def test_the_interval_of_methods_is_that_of_welch_and_the_images(board: Board) -> None:
    """Spread over pretrainings, not over transfer seeds, decides whether methods can be distinguished."""
    sample = board.groups[0].samples[LINEAR]
    assert sample is not None
    found = sample.compare("MAE (3 pretrainings)", "SimMIM (3 pretrainings)")
    assert found is not None
    assert (found.unit, found.units) == ("pretraining", (3, 3))
    means = [[np.mean(one) for one in by_seed.values()] for by_seed in SCORES.values()]
    assert found.points == pytest.approx(np.mean(means[0]) - np.mean(means[1]))
    # MAE's pretrainings have a spread of 6 points: the interval is far wider than the seeds' 1.
    assert found.high - found.points > 8
    checkpoints = sample.compare(
        *(row.pretrainings[0].label for row in board.rows),
    )
    assert checkpoints is not None
    assert (checkpoints.unit, checkpoints.units) == ("seed", (2, 2))
    # The spread over transfer seeds is pooled over all checkpoints, here for one with a single seed.
    single = sample.compare(*(row.pretrainings[-1 - i].label for i, row in enumerate(board.rows)))
    assert single is not None
    assert (single.units, single.without_units) == ((1, 2), False)
    assert sample.spread is not None
    assert sample.spread.freedom == 1 + 2 + 1 + 1 + 1


def test_pretrainings_are_listed_below_their_method(board: Board, tmp_path: Path) -> None:
    shown = select_columns(board)
    lines = table_lines(plain_cells(to_markdown(shown)))
    assert [line.split(" | ")[0] for line in lines[2:10]] == [
        "| MAE (3 pretrainings)",
        "| – seed 0",
        "| – seed 1",
        "| – seed 2",
        "| SimMIM (3 pretrainings)",
        "| – seed 0",
        "| – seed 2",
        "| – seed 10",
    ]
    assert "| 59.0<br>pretrainings ± 6.2<br>images ± 4." in lines[2].replace("**", "")
    assert "| 61.0<br>seeds ± 1.4<br>images ± 4." in lines[3]
    assert "| 64.0<br>images ± 4." in lines[5]
    text = to_markdown(shown)
    assert "pretrainings ±: sample standard deviation over checkpoints of one method" in text
    assert "only a row of several pretrainings is about a method" in text
    assert r"\quad -- seed 10 & " in to_latex(shown)
    printed = run_leaderboard("show", tmp_path).output
    assert "│ – seed 10 " in printed
    rows = list(csv.DictReader(io.StringIO(to_csv(shown))))
    assert [row["method"] for row in rows] == [
        *("", *["MAE (3 pretrainings)"] * 3),
        *("", *["SimMIM (3 pretrainings)"] * 3),
    ]
    assert rows[0]["sha256"] == ""
    method = json.loads(to_json(shown))["rows"][0]
    assert method["scores"]["linear/top1"]["unit"] == "pretraining"
    assert [len(one["scores"]) for one in method["pretrainings"]] == [len(shown.columns)] * 3


def test_changes_of_a_pretraining_are_listed(tmp_path: Path) -> None:
    write_methods(tmp_path / "runs", SCORES)
    before = tmp_path / "before.json"
    before.write_text(to_json(board_of(tmp_path / "runs")))
    same = run_leaderboard("show", tmp_path / "runs", "--against", before)
    assert same.output == "The leaderboard has not changed.\n"
    write_methods(tmp_path / "runs", {"MAE": {0: (70, 62)}})
    changed = run_leaderboard("show", tmp_path / "runs", "--against", before).output
    assert "| linear/top1 | linear | 61.00 ± 1.41 (2) | 66.00 ± 5.66 (2) |" in changed
    assert (
        "| MAE (3 pretrainings) | linear/top1 | linear | 59.00 ± 6.24 (3 pretrainings) | 60.67"
        in changed
    )
    assert "SimMIM" not in changed


def test_checkpoints_of_one_pretraining_seed_are_no_pretrainings(tmp_path: Path) -> None:
    write_methods(tmp_path, {"MAE": {0: (60, 61)}, "SimMIM": {0: (50, 51)}})
    again = make_record(tmp_path / "again", correct=55, images=100, label="again")
    pretrained(again, "MAE", 0)
    checkpoint = json.loads(again.read_text())["checkpoint"] | {"sha256": "1" * 64}
    again.write_text(json.dumps(json.loads(again.read_text()) | {"checkpoint": checkpoint}))
    board = board_of(tmp_path)
    assert [row.pretrainings for row in board.rows] == [()] * 3


def test_a_method_is_ranked_over_its_pretrainings(tmp_path: Path) -> None:
    write_methods(
        tmp_path, {"MAE": {0: (70, 71), 1: (40, 41)}, "SimMIM": {0: (54, 55), 1: (53, 54)}}
    )
    cells = [row.cells[LINEAR] for row in board_of(tmp_path).rows]
    # The checkpoints differ by far more than their seeds, the methods do not.
    assert [(c.rank, c.best) for c in cells if c is not None] == [(1, True), (1, True)]
    assert find_records([tmp_path]).board(overall=True).rows[0].mean_rank == 1.5


def test_methods_have_rows_in_tables_of_named_data_sets(tmp_path: Path) -> None:
    write_methods(tmp_path, SCORES)
    for path in tmp_path.rglob("record.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"data": record["data"] | {"name": "pets"}}))
    board = board_of(tmp_path)
    (table,) = board.small_sets
    assert [row.label for row in table.rows] == [
        "MAE (3 pretrainings)",
        "SimMIM (3 pretrainings)",
    ]
    lines = plain_cells(small_sets_to_markdown(board)).splitlines()
    assert lines[5].startswith("| – seed 0 | 61.0<br>seeds ± 1.4<br>images ± ")
    mean = table.rows[0].mean
    assert mean is not None
    assert mean.std == pytest.approx(np.std([61, 52, 64], ddof=1))


def test_means_of_methods_vary_with_their_pretrainings(tmp_path: Path) -> None:
    """A pretraining that is good on all data sets is no more certain for their number."""
    counts = {"MAE": {0: 70, 1: 60, 2: 50}, "SimMIM": {0: 55, 1: 45, 2: 35}}
    for method, by_seed in counts.items():
        for pretraining, correct in by_seed.items():
            for name in "abcdefgh":
                root = tmp_path / name / f"{method}{pretraining}"
                path = make_record(root, label="x", correct=correct, images=100)
                pretrained(path, method, pretraining)
                data = {"name": name, "root": name, "fingerprint": fake_hash(name)}
                change(path, data=data)
    (table,) = board_of(tmp_path).small_sets
    means = [row.mean for row in table.rows]
    assert [round(mean.mean) for mean in means if mean is not None] == [60, 45]
    # 15 +- 10 * sqrt(2 / 3) * t(4) = 15 +- 22.7, whatever the number of data sets.
    assert [mean.rank for mean in means if mean is not None] == [1, 1]
