"""Tests of `leaderboard compare`: names of rows, differences, reasons, the table and the plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from support.records import (
    board_of,
    change,
    fake_hash,
    make_record,
    pretrained,
    run_leaderboard,
)

from simmim_bench.errors import DataError, UsageError
from simmim_bench.leaderboard.comparable import comparable_tables, find_labels
from simmim_bench.leaderboard.compare import (
    ColumnDifference,
    compare_rows,
)
from simmim_bench.leaderboard.forest import describe_units, draw_interval
from simmim_bench.leaderboard.rows import ScoreCell
from simmim_bench.uncertainty.interval import Difference


def compare(*arguments: object) -> dict[str, Any]:
    done = run_leaderboard("compare", *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def two_rows(root: Path) -> None:
    for seed in range(3):
        make_record(root, label="ours", correct=8 + seed % 2, seed=seed)
        make_record(root, label="theirs", correct=3 - seed % 2, seed=seed)
    make_record(root, label="ours", task="knn", correct=7)
    make_record(root, label="theirs", task="knn", correct=6)
    make_record(root, label="ours", task="fewshot-1%", correct=10)
    make_record(root, label="theirs", task="fewshot-1%", correct=2)
    make_record(root, label="ours", task="fewshot-10%", correct=9)


def test_differences_and_their_adjusted_p_values(tmp_path: Path) -> None:
    two_rows(tmp_path)
    found = compare("ours", "theirs", tmp_path)
    by_column = {one["column"]: one for one in found["differences"]}
    assert list(by_column) == ["linear", "k-NN", "1 %"]
    linear, knn, few = by_column.values()
    assert linear["points"] == pytest.approx(100 * (8 + 9 + 8 - 3 - 2 - 3) / 30)
    assert (linear["units"], linear["a"]["unit"], linear["verdict"]) == ([3, 3], "seed", "higher")
    # One image of ten differs; one image in favour of each side is added (Bonett and Price 2012).
    gains = np.array([0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, -1])
    margin = 100 * stats.t.ppf(0.975, 9) * gains.std() / 12**0.5
    assert knn["high"] - knn["points"] == pytest.approx(margin)
    assert knn["points"] - knn["low"] == pytest.approx(margin)
    assert knn["verdict"] == "not distinguishable"
    # Another seed of few-shot has another score, and there is one: the interval is of the images alone.
    assert few["images_alone"]
    assert few["low"] > 0
    assert few["verdict"] == "undecided"
    assert few["p_holm"] is None
    assert linear["p_holm"] == pytest.approx(2 * linear["p_value"])
    assert knn["p_holm"] == pytest.approx(max(knn["p_value"], linear["p_holm"]))
    assert found["not_compared"] == [
        {"table": "A", "column": "10 %", "reason": "only A has a score"}
    ]
    assert "these two checkpoints" in found["claim"]
    swapped = compare("theirs", "ours", tmp_path)
    for one, other in zip(found["differences"], swapped["differences"], strict=True):
        assert other["low"] == pytest.approx(-one["high"])
        assert other["p_value"] == pytest.approx(one["p_value"])
    assert swapped["differences"][0]["verdict"] == "lower"


def test_the_terminal_shows_every_column_and_every_reason(tmp_path: Path) -> None:
    two_rows(tmp_path)
    done = run_leaderboard("compare", "ours", "theirs", tmp_path, "--plot", tmp_path / "f.svg")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[:2] == ["A: ours", "B: theirs"]
    (few,) = (line for line in lines if line.startswith("1 %"))
    assert "one seed: images alone" in few
    assert few.rstrip().endswith("undecided")
    assert "  10 %: only A has a score" in lines
    assert "Run A and B with --seeds 3." in done.stdout


def test_a_comparison_of_methods_is_over_pretrainings(tmp_path: Path) -> None:
    for seed in range(2):
        for label, correct in (("new", 9), ("old", 2)):
            name = f"{label}{seed}"
            pretrained(make_record(tmp_path, label=name, correct=correct - seed), label, seed)
    pretrained(make_record(tmp_path, label="old2", correct=3), "old", 2)
    board = board_of(tmp_path)
    found = compare_rows(board, "new", "old")
    assert found.ours.startswith("new (2 pretrainings)")
    assert found.differences[0].difference.units == (2, 3)
    assert (
        found.claim == "The differences are about the methods, over 2 pretrainings of A and 3 of B."
    )
    one = compare_rows(board, fake_hash("new0")[:6], fake_hash("old1")[:8])
    assert one.differences[0].difference.points == pytest.approx(100 * (9 - 1) / 10)
    assert "these two checkpoints" in one.claim


def test_a_comparison_of_a_method_with_a_checkpoint_is_about_one_method(tmp_path: Path) -> None:
    for seed in range(3):
        pretrained(make_record(tmp_path, label=f"new{seed}", correct=8 - seed), "new", seed)
        make_record(tmp_path, label="one", correct=2 + seed, seed=seed)
    single = make_record(tmp_path, label="single", correct=1)
    weights = json.loads(single.read_text())["checkpoint"] | {"provenance": {"method": "random"}}
    change(single, checkpoint=weights)
    board = board_of(tmp_path)
    found = compare_rows(board, "new", "one")
    claim = "about the method of A, over 3 pretrainings, and about this checkpoint of B, not about its method."
    assert found.claim.endswith(claim)
    assert describe_units(found.differences[0]) == "3 pretrainings and 3 seeds"
    assert "this checkpoint of A" in compare_rows(board, "one", "new").claim
    assert describe_units(compare_rows(board, "one", "single").differences[0]) == "3 and 1 seeds"
    assert compare_rows(board, "one", "single").claim.endswith(
        "about this checkpoint of A, not about its method, and about the random weights of B, initialised anew for "
        "each seed."
    )
    shown = run_leaderboard("compare", "one", "single", tmp_path).stdout
    assert "A row with one seed takes its variance over seeds from rows with several." in shown


def test_damaged_predictions_are_reported(tmp_path: Path) -> None:
    two_rows(tmp_path)
    damaged = tmp_path / "ours-knn-0" / "predictions" / "logits.npz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    for command in (["show"], ["compare", "ours", "theirs"]):
        done = run_leaderboard(*command, tmp_path)
        assert done.exit_code == 0
        assert done.stderr.count(f"predictions {damaged} have changed") == 1


def test_named_data_sets_are_compared(tmp_path: Path) -> None:
    for label, correct in (("a", 9), ("b", 4)):
        path = make_record(tmp_path, label=label, task="knn", correct=correct)
        change(path, data=json.loads(path.read_text())["data"] | {"name": "pets"})
    (one,) = compare("a", "b", tmp_path)["differences"]
    assert one["column"] == "knn: pets"
    assert one["points"] == pytest.approx(50)


def test_scores_under_other_protocols_or_without_predictions_are_not_compared(
    tmp_path: Path,
) -> None:
    two_rows(tmp_path)
    other = make_record(tmp_path, label="theirs", task="fewshot-10%", correct=1)
    change(other, deviates={"max_iter": 7})
    (tmp_path / "ours-knn-0" / "predictions" / "logits.npz").unlink()
    reasons = {
        one["column"]: one["reason"] for one in compare("ours", "theirs", tmp_path)["not_compared"]
    }
    assert reasons == {
        "k-NN": "no uncertainty of A: predictions or annotations are missing, damaged or of different images",
        "10 %": "other protocols: row A in 'A', row B in 'B'",
    }


def test_rows_without_a_common_column_are_refused_with_the_reasons(tmp_path: Path) -> None:
    make_record(tmp_path, label="a", task="knn")
    make_record(tmp_path, label="b", task="linear")
    done = run_leaderboard("compare", "a", "b", tmp_path)
    assert isinstance(done.exception, DataError)
    assert "k-NN: only A has a score" in str(done.exception)
    assert "linear: only B has a score" in str(done.exception)


def test_a_row_has_several_names(tmp_path: Path) -> None:
    for label in ("SimMIM, large", "SimMIM, small", "random"):
        make_record(tmp_path, label=label)
    board = board_of(tmp_path)
    tables = comparable_tables(board)

    def find(name: str, other: str = "random") -> str:
        return find_labels(tables, board.records, name, other)[0]

    assert find("random", "LARGE") == "random"
    assert find("LARGE") == "SimMIM, large"
    assert find("nowhere/SimMIM, small") == "SimMIM, small"
    assert find(fake_hash("random")[:6], "small") == "random"
    with pytest.raises(UsageError, match=r"2 rows; use one of 'SimMIM, large', 'SimMIM, small'"):
        find("SimMIM")
    with pytest.raises(UsageError, match="did you mean 'random'"):
        find("randon")
    with pytest.raises(UsageError, match="no row"):
        find(fake_hash("random")[:5])
    done = run_leaderboard("compare", "random", "rand", tmp_path)
    assert isinstance(done.exception, UsageError)
    assert "are both 'random'" in str(done.exception)


def test_a_baseline_of_several_groups_is_the_one_of_the_other_rows_group(tmp_path: Path) -> None:
    make_record(tmp_path, label="ours")
    make_record(tmp_path, label="random, small")
    for label in ("theirs", "random, large"):
        change(make_record(tmp_path, label=label), deviates={"l2": 1})
    assert [compare(a, "random", tmp_path)["b"] for a in ("ours", "theirs")] == [
        "random, small",
        "random, large",
    ]
    assert compare("random", "ours", tmp_path)["a"] == "random, small"
    assert "is the name of 2 rows" in str(
        run_leaderboard("compare", "random", "RANDOM", tmp_path).exception
    )


@pytest.mark.parametrize("name", ["forest.svg", "new/forest.PNG"])
def test_the_plot_is_written_in_the_format_of_its_name(tmp_path: Path, name: str) -> None:
    two_rows(tmp_path)
    for path in tmp_path.glob("ours-*/record.json"):
        checkpoint = json.loads(path.read_text())["checkpoint"]
        change(path, checkpoint=checkpoint | {"label": r"ours $\frac{ <b>"})
    file = tmp_path / name
    assert run_leaderboard("compare", "frac", "theirs", tmp_path, "--plot", file).exit_code == 0
    if name.endswith("svg"):
        texts = "".join(ElementTree.parse(file).getroot().itertext())
        assert r"A: ours $\frac{ <b>" in texts
        assert "k-NN" in texts
    else:
        with Image.open(file) as image:
            assert image.format == "PNG"


def test_a_plot_of_an_unknown_format_is_refused_first(tmp_path: Path) -> None:
    done = run_leaderboard("compare", "a", "b", tmp_path / "missing", "--plot", "forest.pdf")
    assert isinstance(done.exception, UsageError)
    assert ".svg or .png" in str(done.exception)


def test_a_plot_below_a_file_is_refused(tmp_path: Path) -> None:
    two_rows(tmp_path)
    (tmp_path / "file").touch()
    plot = tmp_path / "file" / "forest.svg"
    done = run_leaderboard("compare", "ours", "theirs", tmp_path, "--plot", plot)
    assert isinstance(done.exception, DataError)
    assert "choose another --plot" in str(done.exception)


def test_an_interval_is_drawn_to_scale() -> None:
    def draw(low: float, points: float, high: float) -> str:
        found = Difference(points, low, high, 0.5, 10, (2, 2))
        cell = ScoreCell((50.0,))
        return draw_interval(ColumnDifference("A", 0, "linear", (cell, cell), found), (-5, 5), 11)

    assert draw(1, 2, 4) == "     │─●── "
    assert draw(-3, -1, 1) == "  ──○┼─    "
