"""Tests of the tables of named data sets."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from support.records import (
    board_of,
    change,
    fake_hash,
    make_record,
    plain_cells,
    run_leaderboard,
)

from simmim_bench.errors import DataError
from simmim_bench.leaderboard.page import render_page
from simmim_bench.leaderboard.page_data import page_data
from simmim_bench.leaderboard.small_set_tables import (
    small_sets_to_csv,
    small_sets_to_latex,
    small_sets_to_markdown,
)
from simmim_bench.leaderboard.tables import to_json, to_markdown
from simmim_bench.results.record import read_record

# Correctly classified images of ten by checkpoint and data set, for each seed.
SCORES: dict[str, dict[str, tuple[int, ...]]] = {
    "a": {"pets": (6, 8), "cars": (9,), "dtd": (5,)},
    "b": {"pets": (8,), "cars": (9,), "dtd": (7,)},
    "c": {"pets": (10,), "cars": (10,)},
}


def named(
    root: Path,
    name: str,
    *,
    data: str = "",
    label: str = "a",
    correct: int = 6,
    seed: int = 0,
    images: int = 10,
) -> Path:
    """Write a record of a named data set."""
    path = make_record(root / name, label=label, correct=correct, seed=seed, images=images)
    change(
        path, data={"name": name, "root": f"data/{name}", "fingerprint": fake_hash(data or name)}
    )
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for label, by_set in SCORES.items():
        for name, counts in by_set.items():
            for seed, correct in enumerate(counts):
                named(tmp_path / "runs", name, label=label, correct=correct, seed=seed)
    return tmp_path / "runs"


def test_scores_of_shift_on_own_folders_have_a_table(tmp_path: Path) -> None:
    """Classifiers of two tasks by one recipe have a table each."""
    for number, (name, correct, classifier) in enumerate(
        (("rain", 6, "linear"), ("fog", 8, "linear"), ("fog", 4, "fewshot-1%"))
    ):
        path = named(tmp_path / str(number), name, correct=correct)
        data = {"name": name, "root": name, "fingerprint": fake_hash(name)}
        change(path, task="shift", data={**data, "classifier": classifier})
    table, other = board_of(tmp_path).small_sets
    assert (table.title, table.data_sets) == ("shift, top1", ("fog", "rain"))
    assert [cell.mean for cell in table.rows[0].cells if cell is not None] == [80.0, 60.0]
    assert (other.title, other.data_sets) == ("shift, top1", ("fog",))
    assert table.protocol.startswith("classifier of linear by ")
    assert other.protocol.startswith("classifier of fewshot-1% by ")


def test_means_are_those_of_complete_rows(runs: Path) -> None:
    (table,) = board_of(runs).small_sets
    assert table.data_sets == ("cars", "dtd", "pets")
    assert [row.label for row in table.rows] == ["b", "a", "c"]
    for row in table.rows:
        found, mean = SCORES[row.label], row.mean
        if len(found) < 3:
            assert mean is None
            continue
        naive = sum(10 * sum(counts) / len(counts) for counts in found.values()) / 3
        assert mean is not None
        assert mean.mean == pytest.approx(naive)


def test_named_records_are_not_in_the_main_table(runs: Path) -> None:
    assert board_of(runs).groups == ()
    make_record(runs, label="d", correct=7)
    board = board_of(runs)
    assert [row.label for row in board.rows] == ["d"]
    assert "pets" not in to_markdown(board)
    assert {row.label for table in board.small_sets for row in table.rows} == {*"abc"}
    assert "small_sets" not in json.loads(to_json(board_of(make_record(runs / "x").parent)))


def test_the_tables_in_every_format(runs: Path) -> None:
    board = board_of(runs)
    lines = plain_cells(small_sets_to_markdown(board)).splitlines()[:7]
    assert [re.sub(r"<br>images ± \d+\.\d", "", line) for line in lines] == [
        "### Named data sets: linear, top1 (linear)",
        "",
        "| checkpoint | cars | dtd | pets | mean |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| b | 90.0 | 70.0 | 80.0 | 80.0 |",
        "| a | 90.0 | 50.0 | 70.0<br>seeds ± 14.1 | 70.0 |",
        "| c | 100.0 | – | 100.0 | – |",
    ]
    assert r"c & \begin{tabular}[t]{@{}r@{}}100.0 \\ images $" in small_sets_to_latex(board)
    rows = list(csv.DictReader(io.StringIO(small_sets_to_csv(board))))
    assert {(r["checkpoint"], r["data set"]): float(r["score"]) for r in rows} == pytest.approx(
        {
            **{("b", n): s for n, s in (("cars", 90), ("dtd", 70), ("pets", 80), ("", 80))},
            **{("a", n): s for n, s in (("cars", 90), ("dtd", 50), ("pets", 70), ("", 70))},
            **{("c", n): s for n, s in (("cars", 100), ("pets", 100))},
        }
    )
    (plain,) = json.loads(to_json(board))["small_sets"]
    assert [row["mean"] for row in plain["rows"]] == [pytest.approx(80), pytest.approx(70), None]
    page = render_page(page_data(board))
    assert "Named data sets: linear, top1" in page
    assert '<th scope="col">dtd</th>' in page
    shown = run_leaderboard("show", runs)
    assert shown.exit_code == 0
    assert "Named data sets: linear, top1 (linear)" in shown.output


def test_other_recipes_and_deviations_have_tables_of_their_own(tmp_path: Path) -> None:
    named(tmp_path, "pets")
    change(named(tmp_path, "cars"), deviates={"l2": 1})
    tables = board_of(tmp_path).small_sets
    assert sorted(table.data_sets for table in tables) == [("cars",), ("pets",)]


def test_different_data_of_one_name_have_columns_of_their_own(tmp_path: Path) -> None:
    named(tmp_path, "pets", label="a", data="one")
    named(tmp_path, "pets", label="b", data="other")
    (table,) = board_of(tmp_path).small_sets
    assert [name.partition(" ")[0] for name in table.data_sets] == ["pets", "pets"]
    assert len(set(table.data_sets)) == 2
    assert [row.mean for row in table.rows] == [None, None]


def test_partial_scores_mark_the_mean_and_are_not_ranked(runs: Path) -> None:
    change(runs / "dtd" / "b-linear-0" / "record.json", evaluated=9, status="partial")
    (table,) = board_of(runs).small_sets
    assert [row.label for row in table.rows] == ["a", "b", "c"]
    assert str(table.rows[1].mean).startswith("80.0†, images ± ")
    assert "† Partial" in small_sets_to_markdown(board_of(runs))


def test_variances_of_independent_data_sets_add(tmp_path: Path) -> None:
    scores = {"a": {"pets": (62, 64), "cars": (80, 84)}, "b": {"pets": (61, 62), "cars": (79, 81)}}
    scores["c"] = {"pets": (20, 22), "cars": (30, 33)}
    for label, by_set in scores.items():
        for name, counts in by_set.items():
            for seed, correct in enumerate(counts):
                named(tmp_path, name, label=label, correct=correct, seed=seed, images=100)
    (table,) = board_of(tmp_path).small_sets
    assert [row.label for row in table.rows] == ["a", "b", "c"]
    for row in table.rows:
        known = [cell.uncertainty.images for cell in row.cells if cell and cell.uncertainty]
        errors = [error for error in known if error is not None]
        assert row.mean is not None
        assert row.mean.uncertainty is not None
        assert row.mean.uncertainty.images == pytest.approx(
            (errors[0] ** 2 + errors[1] ** 2) ** 0.5 / 2
        )
        # One value per seed, as if the seeds were those of one data set.
        by_seed = np.mean([*scores[row.label].values()], axis=0)
        assert row.mean.std == pytest.approx(by_seed.std(ddof=1))
    means = [row.mean for row in table.rows if row.mean is not None]
    assert [(mean.rank, mean.best) for mean in means] == [(1, True), (1, True), (3, False)]
    text = plain_cells(small_sets_to_markdown(board_of(tmp_path)))
    assert "**72.5**<br>seeds ± 2.1<br>images ± " in text
    rows = csv.DictReader(io.StringIO(small_sets_to_csv(board_of(tmp_path))))
    assert [row["rank"] for row in rows if not row["data set"]] == ["1", "1", "3"]
    # A single seed on one data set is one in the mean.
    (tmp_path / "pets" / "a-linear-1" / "record.json").unlink()
    (table,) = board_of(tmp_path).small_sets
    means = [row.mean for row in table.rows if row.mean is not None]
    assert [mean.best for mean in means] == [False, False, False]


def test_archived_records_of_named_data_sets_pass_the_check(runs: Path, tmp_path: Path) -> None:
    # The same data under two names.
    named(runs, "again", data="pets", label="b", correct=8)
    kept, out = tmp_path / "kept", tmp_path / "out"
    assert run_leaderboard("keep", runs, "--out", kept).exit_code == 0
    before = small_sets_to_markdown(board_of(runs))
    assert small_sets_to_markdown(board_of(kept)) == before
    assert run_leaderboard("build", kept, "--out", out).exit_code == 0
    done = run_leaderboard("check", kept, "--out", out)
    assert (done.exit_code, "5 tables" in done.output) == (0, True), done.output
    (out / "small_sets.csv").write_text("edited")
    assert "small_sets.csv does not match" in str(
        run_leaderboard("check", kept, "--out", out).exception
    )


@pytest.mark.parametrize("name", ["", "a b", "../x", "-a", "a" * 65, "a\n", 3])
def test_a_record_with_a_bad_name_is_damaged(tmp_path: Path, name: object) -> None:
    path = make_record(tmp_path)
    data = json.loads(path.read_text())["data"]
    change(path, data={**data, "name": name})
    with pytest.raises(DataError, match=r"data\.name"):
        read_record(path)


def test_changes_of_named_data_sets_are_listed(runs: Path, tmp_path: Path) -> None:
    before = tmp_path / "before.json"
    before.write_text(to_json(board_of(runs)))
    same = run_leaderboard("show", runs, "--against", before)
    assert same.output == "The leaderboard has not changed.\n"
    named(runs, "dtd", label="c", correct=9)
    changed = run_leaderboard("show", runs, "--against", before).output
    assert "| c | linear/top1 on dtd | linear | – | 90.00 (1) |" in changed
    assert "changed in 1 row." in changed
