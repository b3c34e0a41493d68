"""Tests of the tables: Markdown, CSV, JSON and LaTeX, published results, and changes."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.records import board_of, change, make_record, plain_cells, run_leaderboard, table_lines

from simmim_bench.errors import DataError
from simmim_bench.leaderboard.board import select_columns
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.reported import read_reported
from simmim_bench.leaderboard.tables import to_csv, to_json, to_latex, to_markdown
from simmim_bench.leaderboard.text_tables import print_scores, text_rows
from simmim_bench.tasks import columns

SPREAD = re.compile(r"<br>(seeds|images) ± \d+\.\d")


def test_there_is_one_row_per_checkpoint_and_a_dash_for_a_missing_score(tmp_path: Path) -> None:
    make_record(tmp_path, label="a", correct=6)
    make_record(tmp_path, label="b", correct=8)
    make_record(tmp_path, label="b", correct=9, task="knn")
    board = board_of(tmp_path)
    assert [row.label for row in board.rows] == ["b", "a"]
    text = plain_cells(to_markdown(board))
    assert text.startswith(
        "### Group A: d, 10 images\n\n- linear: linear on d, 10 images\n- k-NN: knn on d"
    )
    # Without the columns in which no row has a score.
    assert [SPREAD.sub("", line) for line in table_lines(text)] == [
        "| checkpoint | linear | k-NN |",
        "| --- | ---: | ---: |",
        "| b | 80.0 | 90.0 |",
        "| a | 60.0 | – |",
    ]


def test_a_metric_that_the_data_set_cannot_provide_is_not_applicable(tmp_path: Path) -> None:
    record = make_record(tmp_path, label="a")
    change(record, task="coco", metrics={"box_ap": 30.0})
    lines = table_lines(to_markdown(select_columns(board_of(tmp_path))))
    assert lines[0] == "| checkpoint | detection box AP | mask AP |"
    assert lines[2] == "| a | 30.0 | n/a |"


def test_the_uncertainty_of_a_score_is_shown_in_every_table(tmp_path: Path) -> None:
    for seed, correct in enumerate((5, 6, 7)):
        make_record(tmp_path, correct=correct, seed=seed)
    board = board_of(tmp_path)
    # Closed form: five images are right by all seeds, one each by two and by one; two right and two wrong are added
    # (Agresti and Coull 1998).
    by_image = np.array([1, 1, 1, 1, 1, 2 / 3, 1 / 3, 0, 0, 0, 1, 1, 0, 0])
    images = 100 * by_image.std() / len(by_image) ** 0.5
    assert f"{images:.1f}" == "12.3"
    text = to_markdown(board)
    small = "<sub>seeds&nbsp;±&nbsp;10.0</sub><br><sub>images&nbsp;±&nbsp;12.3</sub>"
    assert f"| 60.0<br>{small} |" in text
    assert "seeds ±: sample standard deviation over transfer seeds" in text
    assert "images ±: standard error from the finite number of images" in text
    latex = r"\begin{tabular}[t]{@{}r@{}}60.0 \\ seeds $\pm$ 10.0 \\ images $\pm$ 12.3\end{tabular}"
    assert latex in to_latex(board)
    (row,) = csv.DictReader(io.StringIO(to_csv(board)))
    assert float(row["linear/top1 images ±"]) == pytest.approx(images, rel=1e-5)
    assert row["linear/top1 rank"] == row["rank"] == ""
    score = json.loads(to_json(board))["rows"][0]["scores"]["linear/top1"]
    assert score["images_se"] == pytest.approx(images, rel=1e-5)
    assert (score["rank"], score["best"]) == (None, False)
    shown = run_leaderboard("show", tmp_path).output
    assert re.search(r"│ +60\.0 │.*\n.*│ +seeds ± 10\.0 │.*\n.*│ +images ± 12\.3 │", shown)


def test_a_narrow_terminal_shows_every_score_and_whole_labels(tmp_path: Path) -> None:
    for seed, correct in enumerate((5, 6, 7)):
        make_record(tmp_path, correct=correct, seed=seed, label="a/long/label")
    rows = text_rows(board_of(tmp_path).rows)
    titles = [column.title for column in columns()]

    def show(width: int) -> str:
        console = Console(width=width, file=io.StringIO())
        with console.capture() as capture:
            print_scores(console, titles, rows, None)
        return capture.get()

    assert "seeds ± 10.0" in show(40)
    narrow = show(24)
    assert "60.0" in narrow
    assert "seeds" not in narrow
    assert "wider terminal" in " ".join(narrow.split())
    for shown in (show(40), narrow):
        assert "…" not in shown
        assert "k-NN" not in shown  # no row has a score there


def test_scores_of_different_protocols_are_neither_grouped_nor_ranked_together(
    tmp_path: Path,
) -> None:
    make_record(tmp_path, label="a", correct=6)
    other = make_record(tmp_path, label="a", correct=9, seed=1)
    change(other, deviates={"l2": 1})
    board = board_of(tmp_path)
    assert [[row.label for row in group.rows] for group in board.groups] == [["a"], ["a"]]
    cells = [cell for row in board.rows for cell in row.cells if cell is not None]
    assert [(cell.rank, cell.best) for cell in cells] == [(None, False)] * 2
    text = to_markdown(board)
    assert "90.0*" in text
    assert "**" not in text
    # Groups on the same data are distinguished by their recipes.
    titles = ["Group A: d, 10 images (linear)", "Group B: d, 10 images (linear with l2=1)"]
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == titles
    shown = run_leaderboard("show", tmp_path).output
    assert all(title in shown for title in titles)
    assert "linear: linear with l2=1 on d, 10 images" in shown
    assert "\n\\* Some settings differ" in text  # not the item of a list


def test_a_group_has_the_name_that_any_of_its_runs_was_given(tmp_path: Path) -> None:
    make_record(tmp_path, label="a", correct=6)
    other = make_record(tmp_path, label="b", correct=9)
    data = json.loads(other.read_text())["data"]
    change(other, data={**data, "title": "CIFAR-10"})
    assert "### Group A: CIFAR-10, 10 images\n" in to_markdown(board_of(tmp_path))


def test_bold_and_ranks_are_in_every_table(tmp_path: Path) -> None:
    for label, counts in {"a": (60, 62), "b": (64, 62), "c": (9, 10)}.items():
        for seed, correct in enumerate(counts):
            make_record(tmp_path, label=label, correct=correct, seed=seed, images=100)
    board = board_of(tmp_path)
    text = to_markdown(board)
    assert [line.partition("<br>")[0] for line in table_lines(text)[2:5]] == [
        "| b | **63.0**",
        "| a | **61.0**",
        "| c | 9.5",
    ]
    assert "Bold: not distinguishable from the best score" in text
    assert r"\textbf{63.0} \\ seeds" in to_latex(board)
    rows = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert {row["checkpoint"]: row["linear/top1 rank"] for row in rows} == {
        "a": "1",
        "b": "1",
        "c": "3",
    }
    scores = [row["scores"]["linear/top1"] for row in json.loads(to_json(board))["rows"]]
    assert [(s["rank"], s["best"]) for s in scores] == [(1, True), (1, True), (3, False)]


def test_mean_ranks_are_shown_on_request_only(tmp_path: Path) -> None:
    for label, correct in {"a": 90, "b": 50}.items():
        for task in ("linear", "knn"):
            for seed in range(2):
                make_record(
                    tmp_path, label=label, correct=correct + seed, seed=seed, images=100, task=task
                )
    found = find_records([tmp_path])
    plain = to_markdown(found.board())
    assert "mean rank" not in plain.lower()
    assert "there is no rank over all tasks" in plain
    assert [row["rank"] for row in json.loads(to_json(found.board()))["rows"]] == [None, None]
    board = found.board(overall=True)
    lines = table_lines(to_markdown(board))
    assert lines[0] == "| checkpoint | mean rank | linear | k-NN |"
    assert [line[:12] for line in lines[2:4]] == ["| a | 1.00 |", "| b | 2.00 |"]
    assert "Mean rank: mean over the tasks" in to_markdown(board)
    assert [row["rank"] for row in json.loads(to_json(board))["rows"]] == [1.0, 2.0]
    assert [row["rank"] for row in csv.DictReader(io.StringIO(to_csv(board)))] == ["1.0", "2.0"]
    assert r"checkpoint & mean rank & linear" in to_latex(board)


@pytest.mark.parametrize(
    ("fields", "mark"),
    [
        ({"evaluated": 9, "status": "partial"}, "†"),
        ({"environment": {"dirty": True}}, "‡"),
    ],
)
def test_partial_and_dirty_results_are_marked_and_not_ranked(
    tmp_path: Path, fields: dict[str, object], mark: str
) -> None:
    for seed in range(2):
        change(make_record(tmp_path, label="a", correct=9, seed=seed), **fields)
        make_record(tmp_path, label="b", correct=6, seed=seed)
        make_record(tmp_path, label="c", correct=5, seed=seed)
    board = board_of(tmp_path)
    cells = {row.label: cell for row in board.rows if (cell := row.cells[1])}
    assert {label: cell.rank for label, cell in cells.items()} == {"b": 1, "c": 1, "a": None}
    assert [row.label for row in board.rows] == ["b", "c", "a"]
    text = to_markdown(board)
    assert f"| 90.0{mark}<br>" in text
    assert "**60.0**" in text
    assert f"\n{mark} " in text


def test_csv_and_json_have_means_in_full_precision(tmp_path: Path) -> None:
    for seed, correct in enumerate((7, 7, 6)):
        make_record(tmp_path, correct=correct, seed=seed)
    board = board_of(tmp_path)
    (row,) = csv.DictReader(io.StringIO(to_csv(board)))
    assert float(row["linear/top1"]) == pytest.approx(200 / 3, abs=1e-12)
    assert float(row["linear/top1 std"]) == pytest.approx((100 / 3) ** 0.5, abs=1e-12)
    assert row["coco/box_ap"] == ""
    plain = json.loads(to_json(board))
    assert plain["rows"][0]["scores"]["linear/top1"]["mean"] == pytest.approx(200 / 3, abs=1e-12)
    assert plain["groups"]["A"]["linear"]["recipe"] == "linear"


def test_names_in_records_are_escaped_in_markdown_and_latex(tmp_path: Path) -> None:
    path = make_record(tmp_path)
    name = "<script>x</script>|y_1 50% & $z$ \\input{f} [l](u) `c`"
    change(path, checkpoint=json.loads(path.read_text())["checkpoint"] | {"label": name})
    board = board_of(tmp_path)
    markdown = to_markdown(board)
    assert "<script>" not in markdown
    assert "\\|y" in markdown
    assert "](u)" not in markdown.replace("\\](u)", "")
    latex = to_latex(board)
    assert r"y\_1 50\% \& \$z\$ \textbackslash{}input\{f\}" in latex
    assert latex.count("{") - latex.count(r"\{") == latex.count("}") - latex.count(r"\}")


def test_published_results_are_listed_separately_and_not_ranked(tmp_path: Path) -> None:
    make_record(tmp_path / "runs")
    result = run_leaderboard("build", tmp_path / "runs", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    computed, _, published = (
        (tmp_path / "out" / "LEADERBOARD.md").read_text().partition("<details>")
    )
    assert "60.0" in computed
    assert "MAE" not in computed
    assert "**" not in published
    # The README of the official implementation; the tasks have a table each.
    _, finetuned, linear, *_ = re.split(r"^#### Published: ", published, flags=re.MULTILINE)
    assert finetuned.startswith("fine-tuned top-1 on ImageNet\n")
    assert "| SimMIM, Swin-L (IN1K, 800 epochs) | 85.4 | imagenet_swin_l_800ep | 1 |" in finetuned
    assert "| SimMIM, Swin-L" not in linear
    table = list(csv.DictReader((tmp_path / "out" / "leaderboard.csv").open()))
    assert {row["rank"] for row in table if row["group"] == "reported"} == {""}


def test_every_published_score_has_a_source_and_a_plausible_value() -> None:
    scores = [score for row in read_reported() for score in row.scores if score is not None]
    assert len(scores) > 400
    for score in scores:
        assert 0 < score.value < 100
        assert score.source
        assert score.confidence in ("high", "medium")


def test_published_protocols_describe_and_notes_advise() -> None:
    scores = [score for row in read_reported() for score in row.scores if score is not None]
    advice = re.compile(r"\b(see|treat|compare|do not)\b", re.IGNORECASE)
    assert [score.protocol for score in scores if advice.search(score.protocol)] == []


def test_a_damaged_record_is_reported_and_left_out(tmp_path: Path) -> None:
    make_record(tmp_path / "runs", label="a")
    half = make_record(tmp_path / "runs", label="b")
    half.write_text(half.read_text()[:50])
    result = run_leaderboard("build", "--no-reported", tmp_path / "runs", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert f"warning: record {half} cannot be read" in result.stderr
    text = (tmp_path / "out" / "LEADERBOARD.md").read_text()
    assert "| a |" in text
    assert "b-linear-0/record.json cannot be read" in text
    with pytest.raises(DataError, match="does not exist"):
        find_records([tmp_path / "nothing"])


def test_only_changed_scores_are_listed(tmp_path: Path) -> None:
    for label in "ab":
        make_record(tmp_path / "runs", label=label)
    before = tmp_path / "before.json"
    before.write_text(to_json(board_of(tmp_path / "runs")))
    arguments = ("show", tmp_path / "runs", "--against", before)
    assert run_leaderboard(*arguments).output == "The leaderboard has not changed.\n"
    make_record(tmp_path / "runs", label="b", correct=8)
    make_record(tmp_path / "runs", label="c", correct=9, task="knn")
    changes = run_leaderboard(*arguments).output
    assert "in 2 rows" in changes
    assert "| b | linear/top1 | linear | 60.00 (1) | 80.00 (1) |" in changes
    assert "| c | knn/top1 | knn | – | 90.00 (1) |" in changes
    assert "| a |" not in changes
    before.write_text("[]")
    assert f"{before} is not a leaderboard.json" in str(run_leaderboard(*arguments).exception)


def test_a_short_table_links_the_scores_of_complete_rows(tmp_path: Path) -> None:
    for label in ("full", "part"):
        for seed in range(2):
            make_record(tmp_path / "records", label=label, seed=seed)
    make_record(tmp_path / "records", label="full", task="knn")
    document = tmp_path / "docs" / "page.md"
    document.parent.mkdir()
    document.write_text("<!-- leaderboard compact: begin -->\n<!-- leaderboard compact: end -->\n")
    arguments = (tmp_path / "records", "--out", tmp_path / "out", "--into", document)
    assert run_leaderboard("build", "--no-reported", *arguments).exit_code == 0
    text = document.read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert table[2].startswith("| full |")
    targets = re.findall(r"\]\(([^)]+)\)", table[2])
    names = ("full-linear-0", "full-linear-1", "full-knn-0")
    assert targets == [f"../records/{name}/record.json" for name in names]
    assert run_leaderboard("check", "--no-reported", *arguments).exit_code == 0
    document.write_text(text.replace("60.0", "61.0"))
    stale = run_leaderboard("check", "--no-reported", *arguments)
    assert "page.md does not match the records" in str(stale.exception)
