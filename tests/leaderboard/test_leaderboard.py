"""Claims about scores, records and the table derived from them."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from support.records import board_of, change, make_record
from support.tiny import TINY

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, write_checkpoint
from simmim_bench.cli.main import cli
from simmim_bench.errors import DataError, DivergedError
from simmim_bench.leaderboard.board import group_protocols
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.reported import read_reported
from simmim_bench.leaderboard.tables import to_csv, to_json, to_latex, to_markdown
from simmim_bench.models.build import build_backbone
from simmim_bench.results.metrics import (
    correct_from_predictions,
    scores_from_predictions,
    segmentation_scores,
    write_confusion,
    write_logits,
)
from simmim_bench.results.record import Record, read_record


def scores_of(folder: Path, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    write_logits(folder / "logits.npz", logits, labels)
    return scores_from_predictions("linear", folder / "logits.npz", None)


def test_top1_and_top5_equal_a_naive_ranking(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(200, 12)), generator.integers(0, 12, 200)
    ranks = [list(np.argsort(-row)).index(label) for row, label in zip(logits, labels, strict=True)]
    scores = scores_of(tmp_path, logits, labels)
    assert scores["top1"] == pytest.approx(100 * np.mean([r < 1 for r in ranks]))
    assert scores["top5"] == pytest.approx(100 * np.mean([r < 5 for r in ranks]))


def test_equal_logits_are_not_all_correct(tmp_path: Path) -> None:
    scores = scores_of(tmp_path, np.zeros((10, 10)), np.arange(10))
    assert scores == {"top1": 10.0, "top5": 50.0}


def test_stored_logits_are_small_and_ranked_before_they_are_rounded(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(2000, 1000)), generator.integers(0, 1000, 2000)
    logits[0, :2], labels[0] = (100.0, 100.001), 1  # equal as float16
    scores = scores_of(tmp_path, logits, labels)
    assert scores["top1"] == pytest.approx(100 * np.mean(logits.argmax(1) == labels))
    assert correct_from_predictions(tmp_path / "logits.npz")[0]
    assert (tmp_path / "logits.npz").stat().st_size < 50 * len(logits)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("labels", np.array([0, 7]), "a class is not among the 6"),
        ("ranked", np.full((2, 6), 9), "a class is not among the 6"),
        ("logits", np.arange(12.0).reshape(2, 6), "do not fall from rank to rank"),
        ("logits", np.zeros((2, 3)), "do not fall from rank to rank"),
    ],
)
def test_stored_logits_that_contradict_themselves_are_refused(
    tmp_path: Path, key: str, value: np.ndarray, message: str
) -> None:
    file = tmp_path / "logits.npz"
    write_logits(file, np.zeros((2, 6)), np.arange(2))
    with np.load(file) as stored:
        np.savez(file, **{**stored, key: value})
    with pytest.raises(DataError, match=message):
        scores_from_predictions("knn", file, None)


@pytest.mark.parametrize("damage", ["empty", "cut", "changed"])
def test_predictions_that_cannot_be_read_are_named(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "logits.npz"
    write_logits(file, np.random.default_rng(0).normal(size=(500, 20)), np.arange(500) % 20)
    content = bytearray(file.read_bytes())
    if damage == "changed":
        content[400:440] = bytes(40)
    file.write_bytes({"empty": b"", "cut": bytes(content[:-200])}.get(damage, bytes(content)))
    for read in (
        correct_from_predictions,
        lambda path: scores_from_predictions("knn", path, None),
    ):
        with pytest.raises(DataError, match=r"logits.npz cannot be read"):
            read(file)


def test_miou_equals_a_loop_over_classes_and_leaves_absent_ones_out(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    confusions = [generator.integers(0, 50, (4, 4)) for _ in range(3)]
    for confusion in confusions:
        confusion[3], confusion[:, 3] = 0, 0
    total = sum(confusions)
    ious = [total[c, c] / (total[c].sum() + total[:, c].sum() - total[c, c]) for c in range(3)]
    write_confusion(tmp_path / "c.npz", confusions, ["a", "b", "c"])
    with np.load(tmp_path / "c.npz") as stored:
        again = np.zeros((4, 4))
        for _, true, predicted, count in stored["entries"]:
            again[true, predicted] += count
    assert (again == total).all()
    assert segmentation_scores(total)["miou"] == pytest.approx(100 * np.mean(ious))


def test_a_row_is_a_checkpoint_and_a_missing_cell_a_dash(tmp_path: Path) -> None:
    make_record(tmp_path, label="a", correct=6)
    make_record(tmp_path, label="b", correct=8)
    make_record(tmp_path, label="b", correct=9, task="knn")
    board = board_of(tmp_path)
    assert [(row.label, row.rank) for row in board.rows] == [("b", 1), ("a", 2)]
    lines = to_markdown(board).splitlines()
    assert lines[2].startswith("| b | – | **80.0** | 90.0 | – |")
    assert lines[3].startswith("| a | – | 60.0 | – | – |")


def test_what_the_data_cannot_give_is_not_applicable(tmp_path: Path) -> None:
    record = make_record(tmp_path, label="a")
    change(record, task="coco", metrics={"box_ap": 30.0})
    make_record(tmp_path, label="b", task="knn")
    lines = to_markdown(board_of(tmp_path)).splitlines()
    assert "| a | – | – | – | – | – | 30.0 | n/a | – |" in lines


def test_seeds_become_mean_and_standard_deviation(tmp_path: Path) -> None:
    for seed, correct in enumerate((5, 6, 7)):
        make_record(tmp_path, correct=correct, seed=seed)
    assert "60.0 ± 10.0" in to_markdown(board_of(tmp_path))


def test_scores_of_different_protocols_share_no_group_no_rank_and_no_crown(tmp_path: Path) -> None:
    make_record(tmp_path, label="a", correct=6)
    other = make_record(tmp_path, label="a", correct=9, seed=1)
    change(other, deviates={"l2": 1})
    board = board_of(tmp_path)
    assert [[row.label for row in group.rows] for group in board.groups] == [["a"], ["a"]]
    assert [row.rank for row in board.rows] == [None, None]
    text = to_markdown(board)
    assert "90.0*" in text
    assert "**" not in text
    assert "with l2=1 on d, 10 images" in text


def test_equals_have_no_best(tmp_path: Path) -> None:
    for label in "abc":
        make_record(tmp_path, label=label, correct=6 if label == "c" else 7)
    assert "**" not in to_markdown(board_of(tmp_path))


def test_random_weights_of_two_data_sets_stand_beside_the_checkpoints_of_each(
    tmp_path: Path,
) -> None:
    for data in ("x", "y"):
        for task in ("linear", "knn"):
            for label in (data, "r"):
                path = make_record(tmp_path / data, label=label, task=task)
                change(path, data={"root": data, "fingerprint": data})
    board = board_of(tmp_path)
    assert sorted(sorted(row.label for row in group.rows) for group in board.groups) == [
        ["r", "x"],
        ["r", "y"],
    ]
    assert all(cell is not None for row in board.rows for cell in row.cells[1:3])


def test_a_protocol_is_in_one_group_and_a_group_has_one_of_a_task() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        measured = [
            [*{(f"t{t}", f"p{t}{p}") for t, p in generator.integers(0, 4, (n, 2))}]
            for n in generator.integers(1, 8, 5)
        ]
        groups = group_protocols(measured)
        placed = [pair for group in groups for pair in group.items()]
        assert sorted(placed) == sorted({pair for pairs in measured for pair in pairs})


def test_rows_are_ranked_by_the_columns_that_all_have(tmp_path: Path) -> None:
    make_record(tmp_path, label="a", correct=6)
    make_record(tmp_path, label="a", correct=10, task="knn")
    make_record(tmp_path, label="b", correct=7)
    assert [row.label for row in board_of(tmp_path).rows] == ["b", "a"]


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
    change(make_record(tmp_path, label="a", correct=9), **fields)
    make_record(tmp_path, label="b", correct=6)
    make_record(tmp_path, label="c", correct=5)
    board = board_of(tmp_path)
    assert [(row.label, row.rank) for row in board.rows] == [("b", 1), ("c", 2), ("a", None)]
    text = to_markdown(board)
    assert f"90.0{mark}" in text
    assert "**60.0**" in text
    assert f"\n{mark} " in text


def test_checkpoints_of_one_name_are_told_apart(tmp_path: Path) -> None:
    first = make_record(tmp_path / "1", label="a")
    second = make_record(tmp_path / "2", label="a", correct=7)
    checkpoint = json.loads(first.read_text())["checkpoint"]
    change(first, checkpoint=checkpoint | {"sha256": "12345678" * 8})
    change(second, checkpoint=checkpoint | {"sha256": "abcdef00" * 8})
    assert sorted(row.label for row in board_of(tmp_path).rows) == ["a [12345678]", "a [abcdef00]"]


def test_csv_and_json_have_the_means_in_full(tmp_path: Path) -> None:
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


def test_names_in_records_mean_nothing_to_markdown_and_latex(tmp_path: Path) -> None:
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


def test_published_results_stand_apart_and_win_nothing(tmp_path: Path) -> None:
    make_record(tmp_path / "runs")
    arguments = [str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, ["leaderboard", "build", *arguments])
    assert done.exit_code == 0, done.output
    ours, _, theirs = (tmp_path / "out" / "LEADERBOARD.md").read_text().partition("<details>")
    assert "60.0" in ours
    assert "MAE" not in ours
    assert "**" not in theirs
    (swin,) = (line for line in theirs.splitlines() if line.startswith("| SimMIM, Swin-L"))
    assert "| 85.4 |" in swin  # Swin-L, 800 epochs: the README of the official implementation
    table = list(csv.DictReader((tmp_path / "out" / "leaderboard.csv").open()))
    assert {row["rank"] for row in table if row["group"] == "reported"} == {""}


def test_every_published_figure_has_its_source_and_a_believable_value() -> None:
    figures = [figure for row in read_reported() for figure in row.figures if figure is not None]
    assert len(figures) > 400
    for figure in figures:
        assert 0 < figure.value < 100
        assert figure.source
        assert figure.confidence in ("high", "medium")


def build_and_check(runs: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(
        cli,
        [
            "leaderboard",
            "check",
            "--no-reported",
            str(runs),
            "--out",
            str(runs.parent / "out"),
            *more,
        ],
    )
    return (done.exit_code, done.output) if done.exception is None else (6, str(done.exception))


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Give a record whose tables are built, and held."""
    (tmp_path / "README.md").write_text(
        "# x\n<!-- leaderboard: begin -->\n<!-- leaderboard: end -->\nend\n"
    )
    path = make_record(tmp_path / "runs")
    into = str(tmp_path / "README.md")
    arguments = [str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--into", into]
    assert (
        CliRunner().invoke(cli, ["leaderboard", "build", "--no-reported", *arguments]).exit_code
        == 0
    )
    assert build_and_check(tmp_path / "runs", "--into", into) == (
        0,
        "1 records and their tables hold.\n",
    )
    return path


def damage_metric(path: Path) -> None:
    change(path, metrics=json.loads(path.read_text())["metrics"] | {"top1": 61.0})


def damage_predictions(path: Path) -> None:
    write_logits(path.parent / "predictions" / "logits.npz", np.zeros((10, 6)), np.arange(10) % 6)


def damage_recipe(path: Path) -> None:
    recipe = json.loads(path.read_text())["recipe"]
    change(path, recipe=recipe | {"fields": recipe["fields"] | {"epochs": 1}})


def damage_deviations(path: Path) -> None:
    change(path, deviates={"epochs": 1})


def damage_status(path: Path) -> None:
    change(path, evaluated=9)


def damage_half(path: Path) -> None:
    path.write_text(path.read_text()[:200])


def damage_nothing_left(path: Path) -> None:
    (path.parent / "predictions" / "logits.npz").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_metric, "top1 is 61.0 in the record, 60.0 from the predictions"),
        (damage_predictions, "not the ones that were scored"),
        (damage_nothing_left, "are not there"),
        (damage_recipe, "the fields of recipe 'linear' in the record are not those of its hash"),
        (damage_deviations, "recipe 'linear' with what deviates is not what was run"),
        (damage_status, "status is 'reproduced' with 9 of 10 images evaluated"),
        (damage_half, "cannot be read as JSON"),
    ],
)
def test_tampering_is_found_and_the_record_named(
    built: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(built)
    code, said = build_and_check(built.parent.parent)
    assert code == 6
    assert message in said
    assert str(built) in said


def write_weights(checkpoint: Path, seed: int) -> None:
    spec = TINY["vit"]
    write_checkpoint(
        checkpoint,
        state=build_backbone(spec, seed=seed).state_dict(),
        spec=spec,
        form="transfer",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"label": "a"},
    )


def test_another_checkpoint_under_the_same_name_is_found(tmp_path: Path) -> None:
    checkpoint = tmp_path / "ckpt"
    write_weights(checkpoint, seed=0)
    path = make_record(tmp_path / "runs")
    described = json.loads(path.read_text())["checkpoint"]
    sha256 = json.loads((checkpoint / "meta.json").read_text())["sha256"]
    change(path, checkpoint=described | {"name": str(checkpoint), "sha256": sha256})
    (path.parent / "env.json").write_text("{}")  # it is still in its run
    arguments = [str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert (
        CliRunner().invoke(cli, ["leaderboard", "build", "--no-reported", *arguments]).exit_code
        == 0
    )
    assert build_and_check(tmp_path / "runs")[0] == 0
    write_weights(checkpoint, seed=1)
    code, said = build_and_check(tmp_path / "runs")
    assert code == 6
    assert f"{path}: checkpoint {checkpoint} is another" in said
    (path.parent / "env.json").unlink()
    assert build_and_check(tmp_path / "runs")[0] == 0


@pytest.mark.parametrize(
    "name", ["LEADERBOARD.md", "leaderboard.csv", "leaderboard.json", "leaderboard.tex"]
)
def test_an_edited_table_is_found(built: Path, name: str) -> None:
    table = built.parent.parent.parent / "out" / name
    table.write_text(table.read_text().replace("60.0", "99.0", 1))
    code, said = build_and_check(built.parent.parent)
    assert code == 6
    assert f"{name} is not what the records give" in said


def test_an_edited_document_is_found_and_one_without_a_place_refused(built: Path) -> None:
    document = built.parent.parent.parent / "README.md"
    assert document.read_text().startswith("# x\n<!-- leaderboard: begin -->\n| checkpoint |")
    assert document.read_text().endswith("<!-- leaderboard: end -->\nend\n")
    document.write_text(document.read_text().replace("60.0", "99.0"))
    assert (
        "README.md is not what" in build_and_check(built.parent.parent, "--into", str(document))[1]
    )
    document.write_text("nothing\n")
    arguments = [str(built.parent.parent), "--out", str(document.parent / "out")]
    done = CliRunner().invoke(
        cli, ["leaderboard", "build", "--no-reported", *arguments, "--into", str(document)]
    )
    assert "has no place for the table" in str(done.exception)
    assert document.read_text() == "nothing\n"


def test_a_damaged_record_stops_no_table(tmp_path: Path) -> None:
    make_record(tmp_path / "runs", label="a")
    half = make_record(tmp_path / "runs", label="b")
    half.write_text(half.read_text()[:50])
    arguments = [str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, ["leaderboard", "build", "--no-reported", *arguments])
    assert done.exit_code == 0
    assert f"warning: record {half} cannot be read" in done.stderr
    text = (tmp_path / "out" / "LEADERBOARD.md").read_text()
    assert "| a |" in text
    assert "b-linear-0/record.json cannot be read" in text
    with pytest.raises(DataError, match="is not there"):
        find_records([tmp_path / "nothing"])


def test_a_copied_record_does_not_count_as_another_seed(tmp_path: Path) -> None:
    path = make_record(tmp_path / "runs")
    assert len(find_records([tmp_path / "runs", tmp_path]).records) == 1
    shutil.copytree(path.parent, tmp_path / "runs" / "copy")
    make_record(tmp_path / "runs", seed=1, correct=8)
    (row,) = board_of(tmp_path / "runs").rows
    cell = row.cells[1]
    assert cell is not None
    assert sorted(cell.values) == pytest.approx([60.0, 80.0])
    make_record(tmp_path / "other", correct=7)
    with pytest.raises(DataError, match="would count twice, with different predictions"):
        board_of(tmp_path / "runs", tmp_path / "other")


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"metrics": [1]}, "metrics: "),
        ({"metrics": {"top1": "6"}}, "metrics.top1: "),
        ({"metrics": {"top1": float("nan")}}, "top1 is not a finite number"),
        ({"metrics": {"top1": 101}}, "metrics.top1: "),
        ({"recipe": "r"}, "recipe: "),
        ({"predictions": {}}, "predictions: "),
        ({"date": "yesterday"}, "date: "),
        ({"extra": 1}, "extra"),
        ({"schema": 3}, "schema 3"),
    ],
)
def test_a_record_that_the_schema_does_not_allow_is_named_with_the_key(
    tmp_path: Path, fields: dict[str, object], where: str
) -> None:
    path = make_record(tmp_path)
    change(path, **fields)
    with pytest.raises(DataError, match=str(path)) as raised:
        read_record(path)
    assert where in str(raised.value)


def test_logits_that_are_not_numbers_are_no_predictions(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="not finite"):
        write_logits(tmp_path / "logits.npz", np.full((2, 2), np.nan), np.arange(2))


def test_the_schema_says_of_every_key_what_it_is_for() -> None:
    text = resources.files("simmim_bench.results").joinpath("record.schema.json").read_text()
    schema = json.loads(text)
    Draft202012Validator.check_schema(schema)
    assert set(schema["properties"]) == {field.name for field in fields(Record)}

    def lacking(part: dict[str, Any], name: str) -> list[str]:
        inner = part.get("properties", {})
        missing = [] if part.get("description") else [name]
        return missing + [n for key, sub in inner.items() for n in lacking(sub, f"{name}.{key}")]

    assert lacking(schema, "record") == []


def test_a_record_of_version_1_is_read(tmp_path: Path) -> None:
    path = make_record(tmp_path)
    old = json.loads(path.read_text())
    for key in ("status", "cost", "command"):
        del old[key]
    del old["recipe"]["fields"], old["checkpoint"]["params"]
    path.write_text(json.dumps(old | {"schema": 1, "evaluated": 9}))
    record = read_record(path)
    assert record.status == "partial"
    assert record.cost["device_hours"] is None
    assert "60.0†" in to_markdown(board_of(tmp_path))


def test_processes_that_write_at_once_lose_no_record(tmp_path: Path) -> None:
    template = make_record(tmp_path / "template")
    script = (
        "import json, pathlib, sys; from simmim_bench.files import write_json\n"
        "record = json.loads(pathlib.Path(sys.argv[1]).read_text())\n"
        "for seed in range(200): write_json(\n"
        "    pathlib.Path(sys.argv[2], str(seed), 'record.json'), record | {'seed': seed})"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(template), str(tmp_path / letter)])
        for letter in "abcdefgh"
    ]
    assert [writer.wait() for writer in writers] == [0] * 8
    found = find_records([tmp_path])
    assert (len(found.records), found.problems) == (1601, ())


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


def test_changed_cells_are_listed_and_no_others(tmp_path: Path) -> None:
    for label in "ab":
        make_record(tmp_path / "runs", label=label)
    before = tmp_path / "before.json"
    before.write_text(to_json(board_of(tmp_path / "runs")))
    arguments = ["leaderboard", "show", str(tmp_path / "runs"), "--against", str(before)]
    assert CliRunner().invoke(cli, arguments).output == "The leaderboard is as before.\n"
    make_record(tmp_path / "runs", label="b", correct=8)
    make_record(tmp_path / "runs", label="c", correct=9, task="knn")
    said = CliRunner().invoke(cli, arguments).output
    assert "in 2 rows" in said
    assert "| b | linear/top1 | linear | 60.00 (1) | 80.00 (1) |" in said
    assert "| c | knn/top1 | knn | – | 90.00 (1) |" in said
    assert "| a |" not in said
    before.write_text("[]")
    assert "no leaderboard.json" in str(CliRunner().invoke(cli, arguments).exception)
