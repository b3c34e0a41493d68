"""Test the scores of shift sets from stored predictions: closed forms, and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simmim_bench.errors import DataError
from simmim_bench.results.metrics import scores_from_predictions
from simmim_bench.results.shift import (
    ALEXNET_ERRORS,
    CORRUPTIONS,
    condition_number,
    write_corruptions,
    write_multilabel,
)

IMAGES = 8  # per condition


def write(path: Path, wrong: dict[str, list[int]], *, imagenet: bool = True) -> Path:
    """Write predictions of which `wrong` images of eight are wrong, by corruption and severity."""
    parts = [
        (np.arange(IMAGES) < count, np.full(IMAGES, condition_number(name, severity)))
        for name, counts in wrong.items()
        for severity, count in enumerate(counts, 1)
    ]
    best = np.concatenate([part for part, _ in parts]).astype(int)
    conditions = np.concatenate([numbers for _, numbers in parts])
    write_corruptions(path, best, np.zeros_like(best), conditions, classes=1000, imagenet=imagenet)
    return path


def test_alexnet_has_a_mean_corruption_error_of_one_hundred_and_mce_is_not_the_mean_error(
    tmp_path: Path,
) -> None:
    # Half of the images wrong under every corruption: mCE is 100 times the mean of 0.5 / AlexNet's error.
    path = write(tmp_path / "half.npz", dict.fromkeys(CORRUPTIONS, [4] * 5))
    scores = scores_from_predictions("shift-c", path, None)
    wanted = 100 * sum(0.5 / error for error in ALEXNET_ERRORS.values()) / 15
    assert scores == {"top1": 50.0, "mce": pytest.approx(wanted)}
    # Every image wrong: above 100, which the record's schema allows for mce alone.
    path = write(tmp_path / "none.npz", dict.fromkeys(ALEXNET_ERRORS, [8] * 5))
    assert scores_from_predictions("shift-c", path, None)["mce"] > 120
    # The severities of a corruption are averaged before the division, and extra corruptions do not count.
    wrong = {name: [0] * 5 for name in ALEXNET_ERRORS}
    wrong |= {"fog": [0, 1, 2, 3, 4], "saturate": [8] * 5}
    scores = scores_from_predictions("shift-c", write(tmp_path / "fog.npz", wrong), None)
    assert scores["mce"] == pytest.approx(100 / 15 * (10 / 40) / 0.819324)
    assert scores["top1"] == pytest.approx(100 * (1 - 0.25 / 15))


def test_mce_needs_all_conditions_and_imagenets_classes(tmp_path: Path) -> None:
    full = dict.fromkeys(ALEXNET_ERRORS, [4] * 5)
    for wrong, imagenet in (({**full, "fog": [4] * 4}, True), (full, False)):
        path = write(tmp_path / "c.npz", wrong, imagenet=imagenet)
        assert scores_from_predictions("shift-c", path, None) == {"top1": pytest.approx(50.0)}
    path = write(tmp_path / "c.npz", {"saturate": [4] * 5})
    with pytest.raises(DataError, match="have none of gaussian_noise"):
        scores_from_predictions("shift-c", path, None)


def test_damaged_predictions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "real.npz"
    ranked, logits = np.arange(10)[None], np.zeros((1, 10), np.float16)
    write_multilabel(path, ranked, logits, [[3, 11]], 20)
    assert scores_from_predictions("shift-real", path, None) == {"top1": 0.0, "top5": 100.0}
    for labels, classes, said in (([[20]], 20, r"not in \[0, 20\)"), ([[-1]], 20, "no label")):
        write_multilabel(path, ranked, logits, labels, classes)
        with pytest.raises(DataError, match=said):
            scores_from_predictions("shift-real", path, None)
    one = np.zeros(1, int)
    write_corruptions(path, one, one + 5, one, classes=5, imagenet=False)
    with pytest.raises(DataError, match=r"not in \[0, 5\)"):
        scores_from_predictions("shift-c", path, None)
    write_corruptions(path, one, one, one + 95, classes=5, imagenet=False)
    with pytest.raises(DataError, match="a condition is unknown"):
        scores_from_predictions("shift-c", path, None)
