"""Test what is read of a run's predictions image by image: its mean is the score, and damaged files are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.simulated_images import Experiment, coverage, detection, segmentation

from simmim_bench.errors import DataError
from simmim_bench.results.metrics import (
    scores_from_predictions,
    segmentation_scores,
    write_confusion,
    write_logits,
)
from simmim_bench.results.per_image import ImageScores, join_runs, read_image_scores
from simmim_bench.results.record import read_record
from simmim_bench.results.row_runs import read_run
from simmim_bench.results.shift import condition_number, write_corruptions, write_multilabel
from simmim_bench.tasks import columns
from simmim_bench.uncertainty.jackknife import GROUPS, MAX_IMAGES, from_left_out, group_weights

RECORDS = Path(__file__).parents[2] / "benchmarks" / "records"


def read(task: str, file: Path, metric: str, images: int | None = None) -> ImageScores:
    found = read_image_scores(task, file, None, metric, images=images)
    assert found is not None
    return found


def test_scores_of_the_committed_records_are_those_of_their_images() -> None:
    shown = {(column.task, column.metric) for column in columns()}
    kinds = set()
    records = {p.parts[-3]: p for p in sorted(RECORDS.rglob("seed0/record.json"))}  # by protocol
    for path in records.values():
        record = read_record(path)
        metrics = [metric for metric in record.metrics if (record.task, metric) in shown]
        found = read_run(path, record, metrics)
        assert [*found] == metrics
        for metric, run in found.items():
            assert run.images == record.evaluated
            assert run.score == pytest.approx(record.metrics[metric], abs=1e-9)
            kinds.add(metric)
    assert kinds == {"top1", "miou", "box_ap"}


def test_answers_by_image_are_those_of_the_rankings(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(50, 12)), generator.integers(0, 12, 50)
    write_logits(tmp_path / "a.npz", logits, labels)
    for metric, ranks in (("top1", 1), ("top5", 5)):
        found = read("linear", tmp_path / "a.npz", metric)
        wanted = [
            label in np.argsort(-row)[:ranks] for row, label in zip(logits, labels, strict=True)
        ]
        assert found.correct is not None
        assert found.correct.tolist() == wanted
        assert found.score == 100 * np.mean(wanted)
    assert read_image_scores("linear", tmp_path / "a.npz", None, "nll") is None

    ranked = np.argsort(-logits, axis=1)[:, :10]
    several = [[int(label), int(label + 1) % 12] for label in labels]
    several[0] = several[0][:1]
    scores = np.take_along_axis(logits, ranked, 1).astype(np.float16)
    write_multilabel(tmp_path / "real.npz", ranked, scores, several, 12)
    for metric, ranks in (("top1", 1), ("top5", 5)):
        found = read("shift-real", tmp_path / "real.npz", metric)
        wanted = [
            bool({*row[:ranks]} & {*own}) for row, own in zip(ranked.tolist(), several, strict=True)
        ]
        assert found.correct is not None
        assert found.correct.tolist() == wanted
        assert found.score == pytest.approx(
            scores_from_predictions("shift-real", tmp_path / "real.npz", None)[metric]
        )


def test_an_image_of_several_conditions_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "c.npz"
    generator = np.random.default_rng(0)
    conditions = [("fog", 1), ("fog", 3), ("snow", 5), ("saturate", 1)]
    labels = generator.integers(0, 4, 30)
    best = generator.integers(0, 4, (len(conditions), 30))

    def write(labels_of: np.ndarray) -> None:
        numbers = np.repeat([condition_number(*condition) for condition in conditions], 30)
        write_corruptions(file, best.ravel(), labels_of.ravel(), numbers, classes=4, imagenet=False)

    write(np.tile(labels, (len(conditions), 1)))
    found = read("shift-c", file, "top1")
    right = (best == labels).astype(float)
    assert found.images == 30
    assert found.correct == pytest.approx((right[0] + right[1]) / 4 + right[2] / 2)
    scores = scores_from_predictions("shift-c", file, None)
    assert found.score == pytest.approx(scores["top1"])
    assert read_image_scores("shift-c", file, None, "mce") is None
    # Conditions of other images cannot be matched by their order.
    write(np.stack([labels, labels[::-1], labels, labels]))
    assert read_image_scores("shift-c", file, None, "top1") is None


def test_segmentation_without_a_group_equals_a_loop_over_the_other_images(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    classes, images = 4, 9
    confusions = [generator.integers(0, 9, (classes, classes)) for _ in range(images)]
    for image, confusion in enumerate(confusions):
        if image != 2:  # class 3 is in one image alone
            confusion[3], confusion[:, 3] = 0, 0
    confusions[5][:], confusions[8][:] = 0, 0  # all pixels of these are ignored
    write_confusion(tmp_path / "c.npz", confusions, list("abcd"))
    for metric in ("miou", "macc", "aacc"):
        found = read("ade20k", tmp_path / "c.npz", metric, images)
        assert found.images == images
        assert found.score == pytest.approx(segmentation_scores(np.sum(confusions, 0))[metric])
        wanted = {
            round(
                segmentation_scores(np.sum([*confusions[:i], *confusions[i + 1 :]], 0))[metric], 9
            )
            for i in range(images)
        }
        assert found.left_out is not None
        assert {round(score, 9) for score in found.left_out.tolist()} == wanted
    assert read("ade20k", tmp_path / "c.npz", "miou").images == 8  # the ninth is not mentioned
    assert read_image_scores("ade20k", tmp_path / "c.npz", None, "fwiou") is None


def test_images_are_identified_by_their_ground_truth_alone(tmp_path: Path) -> None:
    def identity(logits: np.ndarray, labels: np.ndarray) -> str:
        write_logits(tmp_path / "a.npz", logits, labels)
        return read("knn", tmp_path / "a.npz", "top1").identity  # the file's hash keys the cache

    generator = np.random.default_rng(0)
    labels = np.array([3, 1, 2, 0])
    first = identity(generator.normal(size=(4, 6)), labels)
    assert first == identity(generator.normal(size=(4, 6)), labels)
    assert first != identity(generator.normal(size=(4, 6)), labels[::-1])
    # The same in every process, which Python's `hash` is not.
    assert first == hashlib.sha256(b"ranking(4,)" + labels.astype("<i8").tobytes()).hexdigest()

    truth, confusions = np.array([[5, 0], [2, 2]]), []
    for share in (0.2, 0.8):
        correct = (truth * share).astype(int)
        confusions.append(
            [np.diag(c) + np.diag(t - c)[:, ::-1] for t, c in zip(truth, correct, strict=True)]
        )
    write_confusion(tmp_path / "c.npz", confusions[0], ["a", "b"])
    write_confusion(tmp_path / "d.npz", confusions[1], ["a", "b"])
    one, other = (read("ade20k", tmp_path / name, "miou") for name in ("c.npz", "d.npz"))
    assert one.identity == other.identity
    assert one.score != other.score
    write_confusion(tmp_path / "d.npz", confusions[1][::-1], ["a", "b"])
    assert read("ade20k", tmp_path / "d.npz", "miou").identity != one.identity
    with pytest.raises(DataError, match="different images"):
        join_runs([one, read("ade20k", tmp_path / "d.npz", "miou")])


def test_runs_with_equal_predictions_have_a_difference_without_variance(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    confusions = [generator.integers(0, 9, (3, 3)) for _ in range(20)]
    write_confusion(tmp_path / "c.npz", confusions, ["a", "b", "c"])
    run = read("ade20k", tmp_path / "c.npz", "miou")
    covariance = join_runs([run, run]).covariance
    assert covariance[0, 0] > 0
    assert (covariance == covariance[0, 0]).all()


def change_entries(entries: np.ndarray, row: int, column: int, value: int) -> np.ndarray:
    changed = entries.astype(np.uint64)
    changed[row, column] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: change_entries(e, 0, 0, 5), "they are of image 5 among 3"),
        (lambda e: change_entries(e, 0, 0, 2**63 + 5), "cannot be read"),
        (lambda e: change_entries(e, 0, 1, 7), r"a class number is not in \[0, 2\)"),
        (lambda e: e[:0], "at least one row of 4"),
        (lambda e: e.astype(float), "has type float64"),
    ],
)
def test_damaged_confusions_are_refused(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    file = tmp_path / "c.npz"
    write_confusion(file, [np.ones((2, 2), int)] * 3, ["a", "b"])
    with np.load(file) as stored:
        arrays = {**stored}
    np.savez(file, **{**arrays, "entries": change(arrays["entries"])})
    with pytest.raises(DataError, match=message):
        read_image_scores("ade20k", file, None, "miou", images=3)


def test_a_number_of_images_that_takes_all_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.npz"
    entries = np.array([[10**12, 0, 0, 1]])
    np.savez(file, entries=entries, classes=np.array(2), names=np.array(["a", "b"]))
    for images in (None, 10**13):
        with pytest.raises(DataError, match=f"at most {MAX_IMAGES:,} images"):
            read_image_scores("ade20k", file, None, "miou", images=images)
    with pytest.raises(DataError, match="does not exist"):
        read_image_scores("ade20k", tmp_path / "missing.npz", None, "miou")
    for task in ("ade20k", "linear", "shift-real", "shift-c"):
        (tmp_path / "cut.npz").write_bytes(file.read_bytes()[:-30])
        with pytest.raises(DataError, match="cannot be read"):
            read_image_scores(task, tmp_path / "cut.npz", None, "top1")


@pytest.mark.parametrize("images", [1, 7, 200, 1001])
def test_every_image_is_in_one_group(images: int) -> None:
    weights = group_weights(images)
    assert weights.shape == (1 + min(images, GROUPS), images)
    assert (weights[0] == 1).all()
    left_out = 1 - weights[1:].astype(int)
    assert (left_out.sum(0) == 1).all()
    assert left_out.sum(1).max() - left_out.sum(1).min() <= 1
    # Groups of consecutive images would be as one image where images are sorted by class.
    assert images < 1000 or np.ptp(np.flatnonzero(left_out[0])) > 5


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=(2, 90))
    weights = group_weights(90)
    means = 100 * (values @ weights.T) / weights.sum(1)
    covariance = from_left_out(means[:, 0], means[:, 1:], 90).covariance
    assert covariance == pytest.approx(np.cov(100 * values) / 90)
    values = np.random.default_rng(0).normal(size=(1, 3100))  # groups of 15 and 16 images
    weights = group_weights(3100)
    means = (values @ weights.T) / weights.sum(1)
    error = from_left_out(means[:, 0], means[:, 1:], 3100).covariance[0, 0] ** 0.5
    assert error == pytest.approx(3100**-0.5, rel=0.15)
    # Without the only image, nothing has a score.
    assert np.isfinite(from_left_out([50.0, 40.0], [[np.nan], [np.nan]], 1).covariance).all()


def test_intervals_of_miou_contain_the_true_difference() -> None:
    covered = coverage(segmentation((0.5, 0.5), 8, 0.4), 60, 200, population=10_000)
    assert 0.91 <= covered <= 0.99


# With 500 trials, a coverage of 95 % is estimated with a standard error of 1 %.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "images"),
    [
        (segmentation((0.5, 0.5), 5, 0.5), 30),
        (segmentation((0.8, 0.3), 50, 0.05), 100),
        (segmentation((0.5, 0.5), 20, 0.2), 400),  # groups of two images
        (detection((0.3, 0.3), 5, 0.6), 100),
        (detection((-2.0, -1.5), 5, 0.6), 100),  # an AP of a few percent
        (detection((0.6, 0.1), 20, 0.05), 100),  # five objects of a class
        (detection((0.3, 0.3), 5, 0.6), 400),
    ],
)
def test_coverage_of_miou_and_average_precision(experiment: Experiment, images: int) -> None:
    assert 0.92 <= coverage(experiment, images, 500) <= 0.995
