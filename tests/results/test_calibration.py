"""Tests of ECE, NLL and Brier score, and of what predictions store for them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support.records import change, make_record
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_calibration_error

from simmim_bench.errors import DataError
from simmim_bench.files import sha256_file
from simmim_bench.leaderboard.check import check_records
from simmim_bench.results.calibration import BINS, CHUNK, calibration_columns, calibration_scores
from simmim_bench.results.metrics import (
    join_rankings,
    rank_logits,
    rank_votes,
    scores_from_predictions,
    write_logits,
    write_ranking,
)
from simmim_bench.results.record import read_record
from transfer.recipes import RECIPES


def sample(images: int, classes: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Sample logits whose argmax is the label of about half of the images."""
    generator = np.random.default_rng(classes)
    labels = generator.integers(0, classes, images)
    logits = generator.normal(size=(images, classes))
    logits[np.arange(images), labels] += generator.normal(2, 2, images)
    return (scale * logits).astype(np.float32), labels


def scores_of(folder: Path, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    write_logits(folder / "logits.npz", logits, labels)
    return scores_from_predictions("linear", folder / "logits.npz", None)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(("images", "classes"), [(400, 2), (300, 200)])
def test_stored_scores_equal_torchmetrics_torch_and_a_loop(
    tmp_path: Path, images: int, classes: int, scale: float
) -> None:
    logits, labels = sample(images, classes, scale)
    scores = scores_of(tmp_path, logits, labels)
    exact, truth = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    probabilities = exact.softmax(1)
    ece = multiclass_calibration_error(probabilities, truth, classes, n_bins=BINS, norm="l1")
    assert scores["ece"] == pytest.approx(100 * ece.item(), rel=1e-5)
    assert scores["nll"] == pytest.approx(cross_entropy(exact, truth).item(), rel=1e-6)
    brier = 0.0
    for row, label in zip(probabilities.tolist(), labels, strict=True):
        brier += sum((p - (k == label)) ** 2 for k, p in enumerate(row))
    assert scores["brier"] == pytest.approx(brier / images, rel=1e-6)


def test_certain_and_borderline_confidences_fall_into_the_bins_of_guo_et_al() -> None:
    """The loop of temperature_scaling.py: bins exclude their lower and include their upper edge."""
    confidence = np.array([1.0, 1.0, 1 / 15 + 1e-6, *np.arange(2, 15) / 15])
    correct = np.arange(len(confidence)) % 3 == 0
    ece = 0.0
    for low, high in zip(np.linspace(0, 1, 16)[:-1], np.linspace(0, 1, 16)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(confidence[inside].mean() - correct[inside].mean())
            ece += gap * inside.mean()
    columns = np.stack([np.log(confidence), confidence, 1 - confidence], axis=1)
    assert calibration_scores(columns, correct)["ece"] == pytest.approx(100 * ece)


def test_a_certain_and_right_classifier_has_no_error_and_a_wrong_one_the_largest(
    tmp_path: Path,
) -> None:
    logits, labels = np.eye(6, dtype=np.float32) * 1e30, np.arange(6)
    right = scores_of(tmp_path, logits, labels)
    assert right == {"top1": 100, "top5": 100, "ece": 0, "nll": 0, "brier": 0}
    wrong = scores_of(tmp_path, np.roll(logits, 1, axis=0), labels)
    assert (wrong["ece"], wrong["brier"]) == (100, 2)
    assert wrong["nll"] == pytest.approx(1e30)
    limit = float(np.finfo(np.float32).max)
    furthest = np.array([[limit, -limit]], np.float32)  # their difference is no float32
    assert scores_of(tmp_path, furthest, np.array([1]))["nll"] == pytest.approx(limit)


def test_chunks_of_images_change_nothing() -> None:
    logits, labels = sample(70, 2**16, 1.0)
    assert logits.size > CHUNK
    whole = calibration_columns(logits, labels)
    assert (whole[60:] == calibration_columns(logits[60:], labels[60:])).all()


def test_masked_classes_are_left_out_and_shifted_logits_change_nothing() -> None:
    logits, labels = sample(50, 20, 1.0)
    kept = np.arange(0, 20, 2)
    among = calibration_columns(logits[:, kept], labels % 10)
    masked = np.where(np.isin(np.arange(20), kept), logits, -1e30)
    assert among == pytest.approx(calibration_columns(masked, kept[labels % 10]), rel=1e-6)
    shifted = calibration_columns(logits.astype(np.float64) + 1e6, labels)
    assert shifted == pytest.approx(calibration_columns(logits, labels), rel=1e-4, abs=1e-6)


def test_rankings_of_several_processes_join_to_that_of_one() -> None:
    logits, labels = sample(31, 12, 1.0)
    whole = rank_logits(logits, labels)
    halves = [rank_logits(logits[part], labels[part]) for part in (slice(0, 17), slice(17, 31))]
    joined = join_rankings(halves)
    assert whole.calibration is not None
    assert joined.calibration is not None
    assert (joined.calibration == whole.calibration).all()
    assert joined.calibration.dtype == np.float32
    votes = [rank_votes(np.abs(logits))] * 2
    assert join_rankings(votes).calibration is None


def test_predictions_without_probabilities_have_the_other_scores(tmp_path: Path) -> None:
    logits, labels = sample(40, 12, 1.0)
    calibrated = scores_of(tmp_path, logits, labels)
    write_ranking(tmp_path / "older.npz", rank_votes(logits), labels)
    with np.load(tmp_path / "older.npz") as stored:
        assert set(stored) == {"ranked", "logits", "labels", "classes"}
    older = scores_from_predictions("linear", tmp_path / "older.npz", None)
    assert older == {name: calibrated[name] for name in ("top1", "top5")}
    assert scores_from_predictions("knn", tmp_path / "logits.npz", None) == older
    assert {"ece", "nll", "brier"} <= {
        *scores_from_predictions("fewshot-50%", tmp_path / "logits.npz", None)
    }


# The columns are log-probability of the label, confidence and squared error; the label of image 0 is ranked first,
# that of image 1 is not.
@pytest.mark.parametrize(
    ("image", "column", "value", "message"),
    [
        (0, 0, 1e-3, r"a log-probability of a label is not in \[-3.403e\+38, 0\]"),
        (0, 0, math.nan, "a number of its calibration is not finite"),
        (1, 0, -math.inf, "a number of its calibration is not finite"),
        (0, 1, 1.5, r"a confidence is not in \[1/6, 1\]"),
        (0, 1, 0.1, "a confidence is not in"),
        (1, 1, math.nan, "a number of its calibration is not finite"),
        (0, 0, -2.0, "a label's probability contradicts the confidence and the ranking"),
        (1, 0, -0.3, "a label's probability contradicts"),
        (1, 1, 0.9999, "a label's probability contradicts"),
        (0, 2, -0.1, "a squared error contradicts"),
        (0, 2, 1.0, "a squared error contradicts"),
        (1, 2, 0.5, "a squared error contradicts"),
        (1, 2, math.inf, "a number of its calibration is not finite"),
    ],
)
def test_impossible_probabilities_are_rejected(
    tmp_path: Path, image: int, column: int, value: float, message: str
) -> None:
    file = tmp_path / "logits.npz"
    write_logits(file, np.log([[0.75, 0.05, 0.05, 0.05, 0.05, 0.05]] * 2), np.array([0, 1]))
    with np.load(file) as stored:
        arrays = dict(stored)
    scores_from_predictions("linear", file, None)
    arrays["calibration"][image, column] = value
    if math.isnan(value):  # a signalling one: a conversion of it warns
        arrays["calibration"].view(np.uint32)[image, column] = 0x7F800001
    np.savez(file, **arrays)
    with pytest.raises(DataError, match=rf"logits.npz cannot be read: {message}"):
        scores_from_predictions("linear", file, None)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2), np.float32), r"its calibration has shape \(2, 2\), not \(2, 3\)"),
        (np.zeros((1, 3), np.float32), r"its calibration has shape \(1, 3\)"),
        (np.zeros((2, 3), np.int64), "array 'calibration' has type int64, which is not allowed"),
    ],
)
def test_calibration_of_another_shape_or_type_is_rejected(
    tmp_path: Path, array: np.ndarray, message: str
) -> None:
    file = tmp_path / "logits.npz"
    write_logits(file, np.zeros((2, 6)), np.arange(2))
    with np.load(file) as stored:
        np.savez(file, **{**stored, "calibration": array})
    with pytest.raises(DataError, match=message):
        scores_from_predictions("linear", file, None)


def problems_of(path: Path) -> str:
    return " ".join(check_records({path: read_record(path)}, RECIPES))


@pytest.mark.parametrize("metric", ["ece", "nll", "brier"])
def test_leaderboard_check_computes_calibration_again(tmp_path: Path, metric: str) -> None:
    path = make_record(tmp_path)
    metrics = read_record(path).metrics
    assert not problems_of(path)
    change(path, metrics={**metrics, metric: metrics[metric] + 1e-4})
    assert f"{metric} is {metrics[metric] + 1e-4} in the record but " in problems_of(path)
    change(path, metrics={k: v for k, v in metrics.items() if k != metric})
    assert f"{metric} is None in the record but {metrics[metric]}" in problems_of(path)


def test_a_record_without_calibration_verifies(tmp_path: Path) -> None:
    path = make_record(tmp_path)
    predictions = path.parent / "predictions" / "logits.npz"
    with np.load(predictions) as stored:
        np.savez(predictions, **{k: v for k, v in stored.items() if k != "calibration"})
    described = {"file": "predictions/logits.npz", "sha256": sha256_file(predictions)}
    metrics = json.loads(path.read_text())["metrics"]
    top = {k: v for k, v in metrics.items() if k.startswith("top")}
    change(path, predictions=described, metrics=top)
    assert not problems_of(path)
    change(path, metrics=metrics)
    assert f"brier is {metrics['brier']} in the record but None" in problems_of(path)
