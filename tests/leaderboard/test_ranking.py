"""Tests of ranks, bold scores and mean ranks, with scores of known truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.records import board_of, change, make_record

from simmim_bench.leaderboard.board import Board, build_board
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.ranking import mean_ranks, rank_cells, rank_rows
from simmim_bench.leaderboard.rows import Row, ScoreCell
from simmim_bench.leaderboard.samples import ColumnSample
from simmim_bench.results.record import read_record
from simmim_bench.tasks import Column, columns
from simmim_bench.uncertainty.interval import Side, uncertainty
from simmim_bench.uncertainty.jackknife import from_left_out
from simmim_bench.uncertainty.run_scores import RunScores

LINEAR = 1  # index of the column


def board_with(
    root: Path, correct: Mapping[str, Sequence[int]], *, images: int = 1000, task: str = "linear"
) -> Board:
    """Build the board of records by label, with one number of correctly classified images per seed."""
    for label, counts in correct.items():
        for seed, count in enumerate(counts):
            make_record(root, label=label, correct=count, seed=seed, images=images, task=task)
    return board_of(root)


def ranked(board: Board, task: str = "linear") -> dict[str, tuple[int | None, bool]]:
    """Return the rank of every row in a task's column, and whether it is bold."""
    index = [column.task for column in board.columns].index(task)
    cells = {row.label: row.cells[index] for row in board.rows}
    return {label: (cell.rank, cell.best) for label, cell in cells.items() if cell is not None}


def test_scores_that_cannot_be_distinguished_share_rank_and_bold(tmp_path: Path) -> None:
    # 15.5 ± 3.1 and 14.0 ± 2.1 over three seeds.
    board = board_with(tmp_path, {"a": (124, 155, 186), "b": (119, 140, 161)})
    assert [str(cell) for row in board.rows if (cell := row.cells[LINEAR])] == [
        "15.5, seeds ± 3.1, images ± 1.1",
        "14.0, seeds ± 2.1, images ± 1.1",
    ]
    assert ranked(board) == {"a": (1, True), "b": (1, True)}
    # Seeds and images that leave no doubt.
    other = board_with(tmp_path / "x", {"a": (900, 901, 902), "b": (600, 601, 599)})
    assert ranked(other) == {"a": (1, True), "b": (2, False)}


def test_equal_scores_share_a_rank(tmp_path: Path) -> None:
    correct = {"a": (500, 510, 520), "b": (500, 510, 520), "c": (510, 500, 520), "d": (0, 0, 1)}
    assert ranked(board_with(tmp_path, correct)) == {
        **dict.fromkeys("abc", (1, True)),
        "d": (4, False),
    }


def test_a_single_seed_outranks_no_score_of_three_seeds(tmp_path: Path) -> None:
    board = board_with(tmp_path, {"one": (640,), "three": (580, 600, 620), "low": (1, 2)})
    # `one` may be the best by chance: nothing is bold.
    assert ranked(board) == {"one": (1, False), "three": (1, False), "low": (3, False)}
    # Nor is a single seed that cannot be distinguished from the best.
    board = board_with(tmp_path / "x", {"one": (590,), "three": (580, 600, 620)})
    assert ranked(board) == {"one": (1, False), "three": (1, True)}
    # Without seeds of any row, nothing is known about the spread.
    board = board_with(tmp_path / "y", {"a": (900,), "b": (100,)})
    assert ranked(board) == {"a": (None, False), "b": (None, False)}


def test_a_task_without_randomness_needs_one_seed(tmp_path: Path) -> None:
    correct = {"a": (900,), "b": (500,), "c": (490,)}
    board = board_with(tmp_path, correct, task="knn")
    assert ranked(board, "knn") == {"a": (1, True), "b": (2, False), "c": (3, False)}
    # Ten images that only b has right are enough, a single one is not.
    correct = {"a": (900,), "b": (500,), "c": (499,)}
    board = board_with(tmp_path / "x", correct, task="knn")
    assert ranked(board, "knn")["c"] == (2, False)
    # Every seed initialises random weights anew.
    record = next((tmp_path / "x").glob("a-*/record.json"))
    change(record, checkpoint={**_checkpoint(record), "name": "random:vit_pocket"})
    assert ranked(board_of(tmp_path / "x"), "knn") == {
        "a": (None, False),
        "b": (None, False),
        "c": (None, False),
    }


def _checkpoint(path: Path) -> dict[str, object]:
    return dict(json.loads(path.read_text())["checkpoint"])


def test_scores_without_predictions_are_not_compared(tmp_path: Path) -> None:
    correct = {"a": (950, 951), "b": (900, 901), "c": (600, 601), "d": (300, 301)}
    board = board_with(tmp_path, correct)
    assert [rank for rank, _ in ranked(board).values()] == [1, 2, 3, 4]
    predictions = next(tmp_path.glob("c-*-1/predictions/*"))
    content = predictions.read_bytes()
    predictions.unlink()
    board = board_of(tmp_path)
    # Whether c is higher than d is unknown, that it is not higher than b is not needed.
    assert ranked(board) == {
        "a": (1, True),
        "b": (2, False),
        "c": (None, False),
        "d": (None, False),
    }
    assert board.problems == ()
    predictions.write_bytes(content[:-10])
    board = board_of(tmp_path)
    assert [row.label for row in board.rows] == [*"abcd"]
    (problem,) = board.problems
    assert problem.startswith(f"{predictions.parent.parent / 'record.json'} has no uncertainty: ")
    assert "hash mismatch" in problem
    cell = board.rows[2].cells[LINEAR]
    assert cell is not None
    assert (cell.uncertainty, f"{cell}") == (None, "60.0, seeds ± 0.1")


def test_predictions_are_read_once_for_each_record_and_only_if_wanted(tmp_path: Path) -> None:
    records = {}
    for seed in range(3):
        path = make_record(tmp_path, seed=seed)
        records[path] = read_record(path)
    calls: list[None] = []
    build_board(records, advance=lambda: calls.append(None))
    assert len(calls) == 3
    for path in records:
        next((path.parent / "predictions").iterdir()).write_bytes(b"")
    board = build_board(records, read_predictions=False)
    assert board.problems == ()
    assert str(board.rows[0].cells[LINEAR]) == "60.0, seeds ± 0.0"


def test_a_score_that_is_not_that_of_its_predictions_has_no_uncertainty(tmp_path: Path) -> None:
    change(make_record(tmp_path), metrics={"top1": 99.0})
    board = board_of(tmp_path)
    assert (
        "top1 is 99.0 in the record but 60.0 when recomputed from the predictions; run"
        in board.problems[0]
    )
    assert str(board.rows[0].cells[LINEAR]) == "99.0"


def test_rows_on_other_images_are_not_compared(tmp_path: Path) -> None:
    board_with(tmp_path, {"a": (90, 91), "b": (80, 81), "c": (20, 21)}, images=100)
    for seed in range(2):
        path = make_record(tmp_path, label="other", correct=50, seed=seed, images=90)
        change(path, evaluated=90, expected=100, status="partial")
    board = board_of(tmp_path)
    assert ranked(board) == {
        "a": (1, True),
        "b": (2, False),
        "c": (3, False),
        "other": (None, False),
    }
    (sample,) = (sample for sample in board.groups[0].samples if sample is not None)
    assert sample.compare("a", "other") is None
    assert board.rows[-1].label == "other"
    assert "images ±" in str(board.rows[-1].cells[LINEAR])


def test_ranks_and_bold_agree_with_a_naive_loop() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        check_ranks(generator)


def check_ranks(generator: np.random.Generator) -> None:
    count = int(generator.integers(1, 8))
    means = generator.integers(50, 58, count).astype(float)
    widths = generator.choice([0.5, 2.0, 6.0], count)
    single = generator.random(count) < 0.2
    sound = generator.random(count) < 0.8
    values = [(means[i],) if single[i] else (means[i] - 1, means[i] + 1) for i in range(count)]
    cells = [ScoreCell(v, dirty=not s) for v, s in zip(values, sound, strict=True)]

    def is_higher(i: int, j: int) -> bool | None:
        return bool(means[i] - means[j] > widths[i] + widths[j])

    found = rank_cells([*cells], is_higher)
    rows = [i for i in range(count) if sound[i]]
    for i, cell in enumerate(found):
        assert cell is not None
        if i not in rows or len(rows) < 2:
            assert (cell.rank, cell.best) == (None, False)
            continue
        counts = {
            j: 1 + sum(bool(is_higher(k, j)) for k in rows) for j in rows if means[j] >= means[i]
        }
        assert cell.rank == max(counts.values())
    highest = [i for i in rows if means[i] == max(means[rows])] if rows else []
    references = [i for i in highest if not single[i]]
    best = {i for i, cell in enumerate(found) if cell is not None and cell.best}
    if len(rows) < 2 or not references:
        assert best == set()
        return
    assert best == {
        i
        for i in rows
        if not single[i] and not any(is_higher(reference, i) for reference in references)
    }
    # The order of the rows has no influence.
    order = generator.permutation(count).tolist()
    permuted = rank_cells([cells[i] for i in order], lambda i, j: is_higher(order[i], order[j]))
    assert permuted == [found[i] for i in order]


def samples_of(
    scores: Mapping[str, Sequence[float]], shown: Sequence[Column]
) -> tuple[list[Row], list[ColumnSample]]:
    """Return rows and samples of exact scores: any difference is distinguishable."""
    labels = [*scores]
    rows = [
        Row(label, label, "x", tuple(ScoreCell((value,), varies=False) for value in values))
        for label, values in scores.items()
    ]
    sides = {label: Side(((i,),), (0,), varies=False) for i, label in enumerate(labels)}
    exact = 1e-9 * np.eye(len(labels))
    samples = [
        ColumnSample(
            RunScores(np.array([scores[label][i] for label in labels]), exact, 100), sides, False
        )
        for i in range(len(shown))
    ]
    return rows, samples


def shown(*tasks: str) -> list[Column]:
    return [column for column in columns() if column.task in tasks]


def test_a_task_has_one_vote_whatever_its_scale() -> None:
    tasks = shown("imagenet", "linear", "knn", "ade20k")
    rows, samples = samples_of({"a": (81, 61, 41, 30), "b": (80, 60, 40, 35)}, tasks)
    # The mean of the percentages would put b first.
    assert mean_ranks(rows, tasks, samples) == {"a": 1.25, "b": 1.75}


@pytest.mark.parametrize("double", ["coco", "fewshot-1%"])
def test_a_task_of_two_columns_has_one_vote(double: str) -> None:
    names = (double, "fewshot-10%") if double != "coco" else (double,)
    tasks = shown("linear", "knn", *names)
    assert len(tasks) == 4
    better = [column.task in names for column in tasks]
    rows, samples = samples_of(
        {
            "a": [30 + 1.0 * one for one in better],
            "b": [30 + 1.0 * (not one) for one in better],
        },
        tasks,
    )
    assert mean_ranks(rows, tasks, samples) == pytest.approx({"a": 5 / 3, "b": 4 / 3})


def test_ties_share_the_mean_of_their_ranks() -> None:
    tasks = shown("linear", "knn")
    rows, samples = samples_of({"a": (3, 3), "b": (3, 2), "c": (1, 1)}, tasks)
    assert mean_ranks(rows, tasks, samples) == {"a": 1.25, "b": 1.75, "c": 3.0}


def test_an_unsound_row_changes_no_mean_rank() -> None:
    tasks = shown("linear", "knn", "ade20k")
    scores = {"a": (3, 5, 2), "b": (4, 3, 2), "c": (1, 4, 6)}
    rows, samples = samples_of(scores, tasks)
    before = mean_ranks(rows, tasks, samples)
    assert len(before) == 3
    rows, samples = samples_of({**scores, "d": (3.5, 4.5, 2)}, tasks)
    cell = rows[3].cells[0]
    assert cell is not None
    # Only its first score is partial, and it lacks the last.
    cells = (replace(cell, partial=True), rows[3].cells[1], None)
    rows[3] = replace(rows[3], cells=cells)
    assert mean_ranks(rows, tasks, samples) == before
    # Its sound score is ranked among those of its column.
    of_column = [row.cells[1] for row in rank_rows(rows, samples)]
    assert [cell.rank for cell in of_column if cell is not None] == [1, 4, 3, 2]


def test_an_unsound_record_changes_no_mean_rank_of_a_board(tmp_path: Path) -> None:
    for task in ("linear", "knn"):
        board_with(tmp_path, {"a": (90, 88), "b": (70, 74), "c": (40, 44)}, images=100, task=task)
    before = {row.label: row.mean_rank for row in _overall(tmp_path)}
    assert before == {"a": 1.0, "b": 2.0, "c": 3.0}
    path = make_record(tmp_path, label="d", correct=80, images=100)
    change(path, environment={"dirty": True})
    assert {row.label: row.mean_rank for row in _overall(tmp_path)} == {**before, "d": None}
    assert all(row.mean_rank is None for row in board_of(tmp_path).rows)


def _overall(root: Path) -> tuple[Row, ...]:
    return find_records([root]).board(overall=True).rows


def test_scores_of_zero_on_all_resamples_have_no_interval() -> None:
    left_out = np.array([[7.0, 8.0, 7.5, 6.9], [0.0] * 4, [0.0] * 4])
    runs = from_left_out([7.3, 0.0, 0.0], left_out, 4)
    sides = {name: Side(((i,),), (0,), varies=False) for i, name in enumerate("abc")}
    assert uncertainty(runs, sides["b"]).images is None
    sample = ColumnSample(runs, sides, paired=False)
    assert sample.compare("b", "c") is None
    assert sample.compare("a", "b") is not None
    rows = [
        Row(name, "", "x", (ScoreCell((s,), varies=False),))
        for name, s in zip("abc", runs.scores, strict=True)
    ]
    assert [c.rank for row in rank_rows(rows, [sample]) for c in row.cells if c] == [1, 2, 2]
    zeros = ColumnSample(runs, {name: sides[name] for name in "bc"}, paired=False)
    ranked = rank_rows(rows[1:], [zeros])
    marks = [(cell.rank, cell.best) for row in ranked for cell in row.cells if cell is not None]
    assert marks == [(None, False)] * 2
