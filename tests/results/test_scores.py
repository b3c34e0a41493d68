"""Tests of the scores that are computed from stored predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simmim_bench.errors import DataError, DivergedError
from simmim_bench.results.metrics import (
    read_ranking,
    scores_from_predictions,
    segmentation_scores,
    write_confusion,
    write_logits,
)


def scores_of(folder: Path, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Store logits and compute the scores from the file."""
    write_logits(folder / "logits.npz", logits, labels)
    return scores_from_predictions("linear", folder / "logits.npz", None)


def test_top1_and_top5_equal_a_naive_ranking(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(200, 12)), generator.integers(0, 12, 200)
    ranks = [list(np.argsort(-row)).index(label) for row, label in zip(logits, labels, strict=True)]
    scores = scores_of(tmp_path, logits, labels)
    assert scores["top1"] == pytest.approx(100 * np.mean([r < 1 for r in ranks]))
    assert scores["top5"] == pytest.approx(100 * np.mean([r < 5 for r in ranks]))


def test_constant_logits_score_at_chance_level(tmp_path: Path) -> None:
    scores = scores_of(tmp_path, np.zeros((10, 10)), np.arange(10))
    assert scores["top1"] == 10
    assert scores["top5"] == 50
    assert scores["ece"] == pytest.approx(0, abs=1e-5)
    assert scores["nll"] == pytest.approx(np.log(10))
    assert scores["brier"] == pytest.approx(0.9)


def test_stored_logits_are_small_and_are_ranked_before_rounding(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(2000, 1000)), generator.integers(0, 1000, 2000)
    logits[0, :2], labels[0] = (100.0, 100.001), 1  # equal as float16
    scores = scores_of(tmp_path, logits, labels)
    assert scores["top1"] == pytest.approx(100 * np.mean(logits.argmax(1) == labels))
    assert read_ranking(tmp_path / "logits.npz")[0].ranked[0, 0] == 1
    assert (tmp_path / "logits.npz").stat().st_size < 60 * len(logits)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("labels", np.array([0, 7]), r"a class number is not in \[0, 6\)"),
        ("ranked", np.full((2, 6), 9), r"a class number is not in \[0, 6\)"),
        ("logits", np.arange(12.0).reshape(2, 6), "are not sorted in descending order"),
        ("logits", np.zeros((2, 3)), "are not sorted in descending order"),
    ],
)
def test_inconsistent_stored_logits_are_rejected(
    tmp_path: Path, key: str, value: np.ndarray, message: str
) -> None:
    file = tmp_path / "logits.npz"
    write_logits(file, np.zeros((2, 6)), np.arange(2))
    with np.load(file) as stored:
        np.savez(file, **{**stored, key: value})
    with pytest.raises(DataError, match=message):
        scores_from_predictions("knn", file, None)


@pytest.mark.parametrize("damage", ["empty", "cut", "changed"])
def test_the_error_names_unreadable_predictions(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "logits.npz"
    write_logits(file, np.random.default_rng(0).normal(size=(500, 20)), np.arange(500) % 20)
    content = bytearray(file.read_bytes())
    if damage == "changed":
        content[400:440] = bytes(40)
    file.write_bytes({"empty": b"", "cut": bytes(content[:-200])}.get(damage, bytes(content)))
    with pytest.raises(DataError, match=r"logits.npz cannot be read"):
        scores_from_predictions("knn", file, None)


def test_miou_equals_a_loop_over_classes_without_the_absent_ones(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    confusions = [generator.integers(0, 50, (4, 4)) for _ in range(3)]
    for confusion in confusions:
        confusion[3], confusion[:, 3] = 0, 0
    total = np.sum(confusions, axis=0)
    ious = [total[c, c] / (total[c].sum() + total[:, c].sum() - total[c, c]) for c in range(3)]
    write_confusion(tmp_path / "c.npz", confusions, ["a", "b", "c"])
    with np.load(tmp_path / "c.npz") as stored:
        restored = np.zeros((4, 4))
        for _, true, predicted, count in stored["entries"]:
            restored[true, predicted] += count
    assert (restored == total).all()
    assert segmentation_scores(total)["miou"] == pytest.approx(100 * np.mean(ious))


def test_non_finite_logits_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="not finite"):
        write_logits(tmp_path / "logits.npz", np.full((2, 2), np.nan), np.arange(2))
