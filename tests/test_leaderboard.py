"""Claims about scores, records and the table derived from them."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from simmim_bench.errors import DataError, DivergedError, DriftError
from simmim_bench.files import sha256_file
from simmim_bench.leaderboard import (
    COLUMNS,
    build_rows,
    check_record,
    check_tables,
    find_records,
    to_csv,
    to_html,
    to_markdown,
    write_leaderboard,
)
from simmim_bench.metrics import (
    correct_from_predictions,
    scores_from_predictions,
    segmentation_scores,
    write_confusion,
    write_logits,
)
from simmim_bench.record import Record


def make_record(
    root: Path, *, task: str = "linear", label: str = "a", correct: int = 6, seed: int = 0
) -> Path:
    """Write a run of ten images of which `correct` are right, as a runner would."""
    folder = root / f"{label}-{task}-{seed}"
    labels = np.arange(10) % 6
    logits = np.eye(6)[labels] * 5.0
    logits[correct:] = np.roll(logits[correct:], 1, axis=1)
    predictions = folder / "predictions" / "logits.npz"
    write_logits(predictions, logits, labels)
    record = Record(
        task=task,
        metrics=scores_from_predictions(task, predictions, None),
        details={},
        checkpoint={
            "label": label,
            "name": label,
            "sha256": label * 8,
            "arch": "x",
            "provenance": {},
        },
        recipe={"name": "r", "sha256": "r", "source": "s"},
        deviates={},
        seed=seed,
        data={"root": "d", "fingerprint": "f"},
        evaluated=10,
        expected=10,
        predictions={"file": "predictions/logits.npz", "sha256": sha256_file(predictions)},
        environment={},
        wall_time_s=1.0,
        date="2026-01-01T00:00:00Z",
    )
    path = folder / "record.json"
    path.write_text(json.dumps(asdict(record)))
    return path


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


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
    rows = build_rows(find_records([tmp_path]))
    assert [row.label for row in rows] == ["b", "a"]
    lines = to_markdown(rows).splitlines()
    assert lines[2].startswith("| b | – | **80.0** | 90.0 | – |")
    assert lines[3].startswith("| a | – | 60.0 | – | – |")


def test_what_the_data_cannot_give_is_not_applicable(tmp_path: Path) -> None:
    record = make_record(tmp_path, label="a")
    change(record, task="coco", metrics={"box_ap": 30.0})
    make_record(tmp_path, label="b", task="knn")
    rows = build_rows(find_records([tmp_path]))
    lines = to_markdown(rows).splitlines()
    assert "| a | – | – | – | – | – | 30.0 | n/a | – |" in lines
    assert lines[0].split("|")[8].strip() == "mask AP"


def test_seeds_become_mean_and_standard_deviation(tmp_path: Path) -> None:
    for seed, correct in enumerate((5, 6, 7)):
        make_record(tmp_path, correct=correct, seed=seed)
    assert "60.0 ± 10.0" in to_markdown(build_rows(find_records([tmp_path])))


def test_scores_of_different_protocols_share_no_cell_and_no_crown(tmp_path: Path) -> None:
    make_record(tmp_path, label="a", correct=6)
    other = make_record(tmp_path, label="a", correct=9, seed=1)
    change(other, deviates={"l2": 1})
    rows = build_rows(find_records([tmp_path]))
    texts = to_markdown(rows)
    assert len(rows) == 2
    assert "90.0*" in texts
    assert "**" not in texts


def test_a_partial_evaluation_is_marked(tmp_path: Path) -> None:
    change(make_record(tmp_path), evaluated=9)
    assert "60.0†" in to_markdown(build_rows(find_records([tmp_path])))


def test_csv_has_the_means_in_full(tmp_path: Path) -> None:
    make_record(tmp_path, correct=7)
    table = list(csv.DictReader(io.StringIO(to_csv(build_rows(find_records([tmp_path]))))))
    assert float(table[0]["linear/top1"]) == pytest.approx(70.0)
    assert table[0]["coco/box_ap"] == ""


def test_names_in_records_cannot_inject_markup(tmp_path: Path) -> None:
    path = make_record(tmp_path)
    checkpoint = json.loads(path.read_text())["checkpoint"] | {"label": "<script>x</script>|y"}
    change(path, checkpoint=checkpoint)
    records = find_records([tmp_path])
    rows = build_rows(records)
    assert "<script>" not in to_html(rows, records)
    assert "\\|y" in to_markdown(rows)


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    make_record(tmp_path)
    records = find_records([tmp_path])
    page = to_html(build_rows(records), records)
    assert "http" not in page
    assert all(column.title in page for column in COLUMNS)


def test_a_whole_record_passes_the_check(tmp_path: Path) -> None:
    path = make_record(tmp_path)
    check_record(path, find_records([tmp_path])[path])


def test_a_changed_score_a_swapped_file_and_an_edited_table_are_found(tmp_path: Path) -> None:
    path = make_record(tmp_path / "runs")
    record = find_records([tmp_path / "runs"])[path]
    with pytest.raises(DriftError, match="top1 is 61"):
        check_record(path, replace(record, metrics=record.metrics | {"top1": 61.0}))
    rows = write_leaderboard(find_records([tmp_path / "runs"]), tmp_path / "out")
    check_tables(rows, tmp_path / "out")
    table = tmp_path / "out" / "LEADERBOARD.md"
    table.write_text(table.read_text().replace("60.0", "99.0"))
    with pytest.raises(DriftError, match="not what the records give"):
        check_tables(rows, tmp_path / "out")
    write_logits(path.parent / "predictions" / "logits.npz", np.zeros((10, 6)), np.arange(10) % 6)
    with pytest.raises(DriftError, match="not the ones that were scored"):
        check_record(path, record)


def test_scores_that_are_not_numbers_pass_no_check(tmp_path: Path) -> None:
    path = make_record(tmp_path)
    record = find_records([tmp_path])[path]
    with pytest.raises(DriftError, match="top1 is nan"):
        check_record(path, replace(record, metrics=record.metrics | {"top1": float("nan")}))
    change(path, metrics={"top1": float("nan")})
    with pytest.raises(DataError, match="not a finite number"):
        find_records([tmp_path])
    with pytest.raises(DivergedError, match="not finite"):
        write_logits(tmp_path / "logits.npz", np.full((2, 2), np.nan), np.arange(2))


def test_a_copied_record_does_not_count_as_another_seed(tmp_path: Path) -> None:
    path = make_record(tmp_path / "runs")
    assert len(find_records([tmp_path / "runs", tmp_path])) == 1
    shutil.copytree(path.parent, tmp_path / "runs" / "copy")
    make_record(tmp_path / "runs", seed=1, correct=8)
    (row,) = build_rows(find_records([tmp_path / "runs"]))
    cell = row.cells[1]
    assert cell is not None
    assert sorted(cell.values) == pytest.approx([60.0, 80.0])
    make_record(tmp_path / "other", correct=7)
    with pytest.raises(DataError, match="would count twice, with different predictions"):
        build_rows(find_records([tmp_path / "runs", tmp_path / "other"]))


@pytest.mark.parametrize(
    "fields", [{"metrics": [1]}, {"metrics": {"top1": "6"}}, {"recipe": "r"}, {"predictions": {}}]
)
def test_a_record_with_fields_of_another_kind_is_named(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    path = make_record(tmp_path)
    change(path, **fields)
    with pytest.raises(DataError, match=r"record.json is damaged"):
        find_records([tmp_path])


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = make_record(tmp_path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(DataError, match=r"record.json cannot be read"):
        find_records([tmp_path])
    with pytest.raises(DataError, match="is not there"):
        find_records([tmp_path / "nothing"])
